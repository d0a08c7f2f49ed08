"""Check and convert values of a configuration against the type hints of the parameter that receives them.

A number where a name belongs is found here, with the key that holds it, and not hours later inside a tensor operation.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from recipes.base.errors import RecipeError

Nested = Callable[[Mapping[str, Any], tuple[type, ...], str], Any]
"""Builds the object that a mapping describes: `(mapping, types expected there, dotted key) -> object`."""


def convert(value: Any, hint: Any, where: str, nested: Nested) -> Any:
    """Return `value` as the type `hint` says: lists become tuples, whole floats ints, mappings objects.

    Raises:
        RecipeError: naming `where`, the type expected and the value, if it does not fit.
    """
    if isinstance(value, Mapping):
        return _mapping(value, hint, where, nested)
    if hint is Any or hint is object:
        return value
    for option in _options(hint):
        fits, converted = _try(value, option, where, nested)
        if fits:
            return converted
    raise RecipeError(f"{where}: expected {describe(hint)}, got {value!r:.200}")


def describe(hint: Any) -> str:
    """Name a type hint the way a person would."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    options = _options(hint)
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    names = {type(None): "null", int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin = get_origin(hint)
    if origin in (tuple, list, Sequence):
        inner = [describe(part) for part in get_args(hint) if part is not Ellipsis]
        return f"a list of {' and '.join(dict.fromkeys(inner))}" if inner else "a list"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _try(value: Any, hint: Any, where: str, nested: Nested) -> tuple[bool, Any]:
    """Convert to one hint that is no union: `(whether it fits, the converted value)`."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint), value
    if hint in (None, type(None)):
        return value is None, None
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool), value
    if hint is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole, int(value) if whole else None
    if hint is float:
        # Not a number: it passes every check of a range, since no comparison with it holds.
        number = isinstance(value, float) and not math.isnan(value)
        number = number or (isinstance(value, int) and abs(value) <= sys.float_info.max)
        return number, float(value) if number else None
    if hint is Path:
        return isinstance(value, str | Path), Path(value) if isinstance(value, str | Path) else None
    if (origin or hint) in (tuple, list, Sequence):
        return _sequence(value, hint, where, nested)
    return isinstance(hint, type) and isinstance(value, hint), value


def _sequence(value: Any, hint: Any, where: str, nested: Nested) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    inner = get_args(hint)
    if get_origin(hint) is tuple and inner and inner[-1] is not Ellipsis:
        if len(inner) != len(value):
            return False, None
        hints: Sequence[Any] = inner
    else:
        hints = [inner[0] if inner else Any] * len(value)
    try:
        parts = [
            convert(part, h, f"{where}[{i}]", nested) for i, (part, h) in enumerate(zip(value, hints, strict=True))
        ]
    except RecipeError:
        if any(isinstance(part, Mapping) for part in value):
            raise
        return False, None
    return True, parts if (get_origin(hint) or hint) is list else tuple(parts)


def _mapping(value: Mapping[str, Any], hint: Any, where: str, nested: Nested) -> Any:
    options = [get_origin(option) or option for option in _options(hint)]
    if any(option in (dict, Mapping, Any) for option in options):
        return dict(value)
    # A function's type asks for an object that can be called.
    kinds = tuple(option for option in options if isinstance(option, type) and option.__module__ != "builtins")
    if not kinds:
        raise RecipeError(f"{where}: expected {describe(hint)}, got a group of keys ({', '.join(map(str, value))})")
    return nested(value, kinds, where)
