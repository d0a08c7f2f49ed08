"""Axes and variables of generated fields (`modalities.field_sets`), which a configuration need not state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modalities.variables import Variable

NAMES = ("y", "x")
SIZE = 32
"""Number of points along each axis, unless the configuration sets another."""


@dataclass(frozen=True)
class GeneratedField:
    """A periodic field on two axes: its variables, its unit of length, and the side of the square or the spacing."""

    variable: Variable
    unit: str
    side: float | None = None
    spacing: float | None = None
    others: tuple[Variable, ...] = ()

    def axes(self, given: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """Return two axes in full; what is `given` takes precedence."""
        entries = given or [{"name": name} for name in NAMES]
        filled = []
        for entry in entries:
            size = entry.get("size") or SIZE
            spacing = self.spacing if self.side is None else self.side / size
            stated = {"size": size, "spacing": spacing, "unit": self.unit, "periodic": True}
            filled.append({**stated, **{key: value for key, value in entry.items() if value is not None}})
        return filled

    def variables(self, given: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """Return all variables in full, in their order; what is `given` takes precedence."""
        known = (self.variable, *self.others)
        entries = given or [{"name": each.name} for each in known]
        filled = []
        for number, entry in enumerate(entries):
            own = known[number] if number < len(known) else self.variable
            stated = {"unit": own.unit, "scale": own.scale, "offset": own.offset}
            filled.append({**stated, **{key: value for key, value in entry.items() if value is not None}})
        return filled


TWO_PHASE = GeneratedField(Variable("phase"), "µm", spacing=1.0)
VORTICITY = GeneratedField(Variable("vorticity", "1/s", scale=4.6), "m", side=2 * math.pi)
VORTICITY_TRACER = replace(VORTICITY, others=(Variable("tracer", scale=3.2),))
GENERATED = {
    "modalities.field_sets.TwoPhase": TWO_PHASE,
    "modalities.field_sets.Vorticity": VORTICITY,
    "modalities.tracer_sets.VorticityTracer": VORTICITY_TRACER,
}
"""By the target of a configuration's data."""
