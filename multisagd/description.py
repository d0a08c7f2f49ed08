"""Convert spectra to plain data for YAML and JSON and back, in the notation of this project's configurations.

`describe(PowerLaw(-0.5))` is `{"_target_": "multisagd.PowerLaw", "exponent": -0.5}`, and `spectrum_of` reads it back.
A description may come from an untrusted source. It must name one of the classes below, so reading it imports nothing
and runs only the checks of these classes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from multisagd import orientation, radial, spacetime, spectrum, table
from multisagd.grid import Axis, Grid
from multisagd.spectrum import Power, Product, Spectrum, Sum
from multisagd.table import Table

_ALL: tuple[type[Spectrum], ...] = tuple(
    cls
    for module in (orientation, radial, spacetime, spectrum, table)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Spectrum) and cls not in (Spectrum, radial.Radial)
    if cls.__module__ == module.__name__
)
"""The project's spectra that are fully determined by their parameters."""
_TARGETS = {f"multisagd.{cls.__name__}": cls for cls in _ALL if cls not in (Power, Product, Sum)} | {
    f"{cls.__module__}.{cls.__name__}": cls for cls in _ALL
}
_NAMES = {cls: name for name, cls in reversed(_TARGETS.items())}

LARGEST_TABLE = 1 << 16
"""Maximum number of values in the description of a table."""
DEEPEST = 64
"""Maximum nesting of spectra that is read; deeper descriptions were not written by `describe`."""


def describe(spectrum: Spectrum) -> dict[str, Any]:
    """Return a spectrum as a dictionary of numbers, strings, lists and dictionaries; `spectrum_of` reads it back.

    Parameters that are None are omitted. The description of a `Table` contains its values and the axes of its grid.

    Raises:
        ValueError: If a spectrum's class is not part of this project, a parameter is a tensor (a learned spectrum), a
            table has more than 65,536 values, or more than 64 spectra are nested.
    """
    return _describe(spectrum, 0)


def describe_axis(axis: Axis) -> dict[str, Any]:
    """Return an axis as a dictionary of its arguments; arguments that are None or false are omitted."""
    return {
        name: _plain(value, f"Axis.{name}", 0)
        for name, value in asdict(axis).items()
        if value is not None and value is not False
    }


def spectrum_of(description: Mapping[str, Any]) -> Spectrum:
    """Return the spectrum given by a description: the inverse of `describe`.

    Raises:
        ValueError: If a class is not a multisagd spectrum, a parameter is unknown, missing, of the wrong type or
            refused by its class, or more than 64 spectra are nested. The message names the location.
    """
    return _read(description, "spectrum", 0)


def _describe(spectrum: Spectrum, depth: int) -> dict[str, Any]:
    cls = type(spectrum)
    if depth > DEEPEST:
        raise ValueError(
            f"more than {DEEPEST} nested spectra cannot be described: write the outermost one as a multisagd.Table"
        )
    if cls not in _NAMES:
        raise ValueError(
            f"{cls.__module__}.{cls.__qualname__} is not a multisagd spectrum, so its description could not be read "
            "back: write it as a sum, product or power of multisagd's spectra, or as a multisagd.Table"
        )
    if isinstance(spectrum, Table):
        return {"_target_": _NAMES[cls], **_describe_table(spectrum)}
    # The class and its fields determine the spectrum: dataclasses have no other state.
    values = {field.name: getattr(spectrum, field.name) for field in fields(spectrum)}  # type: ignore[arg-type]
    return {"_target_": _NAMES[cls]} | {
        name: _plain(value, f"{cls.__name__}.{name}", depth) for name, value in values.items() if value is not None
    }


def _describe_table(table: Table) -> dict[str, Any]:
    if table.values.numel() > LARGEST_TABLE:
        raise ValueError(
            f"a table of {table.values.numel():,} numbers is too large to be described (at most {LARGEST_TABLE:,}): "
            "tabulate it on a coarser grid (tables are interpolated)"
        )
    return {"values": table.values.flatten().tolist(), "axes": [describe_axis(axis) for axis in table.grid.axes]}


def _plain(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, Spectrum):
        return _describe(value, depth + 1)
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{where}.{key}", depth) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part, where, depth) for part in value]
    if isinstance(value, str | bool):
        return value
    if isinstance(value, Real):  # includes NumPy's numbers, which JSON does not support
        return int(value) if isinstance(value, Integral) else float(value)
    raise ValueError(f"{where} is a {type(value).__name__}, which cannot be described: use a number instead")


def _read(node: Any, where: str, depth: int) -> Spectrum:
    if depth > DEEPEST:
        raise ValueError(f"{where}: nested too deeply, more than {DEEPEST} spectra")
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ValueError(f"{where}: expected a spectrum such as {{'_target_': 'multisagd.Flat'}}, got {node!r:.80}")
    cls = _TARGETS.get(node["_target_"])
    if cls is None:
        raise ValueError(f"{where}: {node['_target_']!r:.80} is not a spectrum{_nearest(node['_target_'], _TARGETS)}")
    values = {key: value for key, value in node.items() if key != "_target_"}
    if cls is Table:
        return _read_table(values, where)
    hints = get_type_hints(cls)
    known = {field.name: field.default is MISSING for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {cls.__name__} has no parameter {key!r:.80}{_nearest(str(key), known)}")
    missing = [name for name, required in known.items() if required and name not in values]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(missing)}")
    arguments = {key: _value(value, hints[key], f"{where}.{key}", depth) for key, value in values.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: {error}") from error


def _read_table(values: Mapping[str, Any], where: str) -> Table:
    if set(values) != {"values", "axes"} or not all(isinstance(value, list) for value in values.values()):
        raise ValueError(f"{where}: a table must have two lists, values and axes")
    names = {field.name for field in fields(Axis)}
    if not all(isinstance(axis, Mapping) and set(axis) <= names for axis in values["axes"]):
        raise ValueError(f"{where}.axes: each axis of a table must have the keys {', '.join(sorted(names))}")
    if len(values["values"]) > LARGEST_TABLE:
        raise ValueError(f"{where}.values: more than {LARGEST_TABLE:,} numbers")
    numbers = [_value(number, float, f"{where}.values", 0) for number in values["values"]]
    try:
        grid = Grid(tuple(Axis(**axis) for axis in values["axes"]))
        if math.prod(grid.half_shape) != len(numbers):
            raise ValueError(f"expected {math.prod(grid.half_shape)} values for a grid of shape {grid.shape}")
        return Table(torch.tensor(numbers, dtype=torch.float64, device="cpu").reshape(grid.half_shape), grid)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(value: Any, hint: Any, where: str, depth: int) -> Any:
    """Convert a value to its parameter's type hint: lists to tuples, descriptions to spectra."""
    options = [option for option in get_args(hint) if option is not type(None)]
    if value is None and type(None) in get_args(hint):
        return None
    if type(None) in get_args(hint) and len(options) == 1:
        return _value(value, options[0], where, depth)
    origin = get_origin(hint)
    if hint is Spectrum:
        return _read(value, where, depth + 1)
    if origin is Literal and value in get_args(hint):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        inner = get_args(hint)
        if inner[-1] is Ellipsis or len(inner) == len(value):
            return tuple(_value(part, inner[0], where, depth) for part in value)
    if origin is Mapping and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _value(part, get_args(hint)[1], f"{where}.{key}", depth) for key, part in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _float(value, where)
    if hint in (int, str) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r:.80}")


def _float(value: int | float, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: the number is too large for a float") from error


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
