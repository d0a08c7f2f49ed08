"""The best checkpoint of a run: the one with the lowest score on held-out examples.

Each checkpoint records the best one before it, so that a continued run agrees with an uninterrupted one, also after a
rollback to an earlier checkpoint. For other commands, `best.json` in the folder of the run names the best of all.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from recipes.base.errors import RecipeError
from recipes.base.files import write_text
from recipes.base.untrusted import read_object
from recipes.runs.state import REMEDY, is_count

BEST = "best.json"


@dataclass(frozen=True)
class Best:
    """The score of the best checkpoint, and its number of samples seen."""

    samples: int
    score: float

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return the best checkpoint in a record. Raises ValueError if it is not a count and a finite number."""
        if not isinstance(value, Mapping) or not is_count(value.get("samples")):
            raise ValueError(f"{value!r:.80} does not contain a number of samples")
        score = value.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{score!r:.80} is not a score")
        return cls(value["samples"], float(score))


@dataclass(frozen=True)
class Selected:
    """The best checkpoint so far, and the number of validations since.

    `measure` identifies how the scores were computed: scores of different measures are not compared.
    """

    measure: str = ""
    best: Best | None = None
    since: int = 0

    def after(self, samples: int, score: float) -> Self:
        """Return the selection after a validation. A score that is equal or not finite is not an improvement."""
        if math.isfinite(score) and (self.best is None or score < self.best.score):
            return replace(self, best=Best(samples, score), since=0)
        return replace(self, since=self.since + 1)

    def record(self) -> dict[str, Any]:
        """Return the selection for a checkpoint's record."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the selection in a checkpoint's record. Raises RecipeError if it is invalid."""
        value = record.get("selection")
        if value is None:
            return cls()
        try:
            measure, since = value["measure"], value["since"]
            if not isinstance(measure, str) or not is_count(since):
                raise ValueError("measure or since is invalid")
            return cls(measure, None if value["best"] is None else Best.of(value["best"]), since)
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(
                f"the checkpoint's record has selection={value!r:.80}, which is invalid ({error}): {REMEDY}"
            ) from error


def write_best(folder: Path, best: Best | None) -> None:
    """Write to `best.json` next to `folder` which of its checkpoints is the best; if there is none, remove the file."""
    path = folder.parent / BEST
    if best is not None:
        write_text(path, json.dumps(asdict(best)))
    else:
        path.unlink(missing_ok=True)


def read_best(folder: Path) -> Best | None:
    """Return the best checkpoint in `folder`, or None if none has been selected.

    Raises:
        RecipeError: If the file is unreadable.
    """
    path = folder.parent / BEST
    if not path.exists():
        return None
    try:
        return Best.of(read_object(path))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot read {path} ({error}): choose a checkpoint by its number of samples seen, or continue training, "
            "which writes the file again"
        ) from error
