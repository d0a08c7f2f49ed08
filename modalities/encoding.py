"""The settings on which encoded data depend, in a form that can be stored and compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any


def describe(part: object, name: str) -> dict[str, Any]:
    """Return the class and settings of a modality or autoencoder, as a mapping from dotted names to JSON values.

    The settings of a dataclass are the fields that its equality depends on; those of any other object are its public
    attributes. A `fingerprint` is included if it exists.

    Raises:
        ValueError: If JSON cannot represent a setting; the message names it.
    """
    kind = type(part)
    keys: dict[str, Any] = {f"{name}._target_": f"{kind.__module__}.{kind.__qualname__}"}
    if dataclasses.is_dataclass(part):
        settings = {
            setting.name: getattr(part, setting.name) for setting in dataclasses.fields(part) if setting.compare
        }
    else:
        # Cached properties are excluded: they exist only after first use.
        settings = {
            key: value
            for key, value in getattr(part, "__dict__", {}).items()
            if not key.startswith("_") and not isinstance(getattr(kind, key, None), cached_property)
        }
    if isinstance(fingerprint := getattr(part, "fingerprint", None), str):
        settings["fingerprint"] = fingerprint
    for key, value in settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            keys |= describe(value, f"{name}.{key}")
        else:
            keys[f"{name}.{key}"] = _plain(value, f"{name}.{key}", kind.__qualname__)
    return keys


def _plain(value: Any, name: str, owner: str) -> Any:
    """Return a setting after conversion to JSON and back."""

    def other(inner: Any) -> Any:
        if isinstance(inner, Path):
            return str(inner)
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            return describe(inner, name)
        raise TypeError(f"a {type(inner).__name__}")

    try:
        return json.loads(json.dumps(value, default=other))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be compared with that of earlier latents ({error}): make {owner} a frozen dataclass "
            "with plain settings (numbers, strings, lists), and begin the names of all other attributes with _"
        ) from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the keys in which two mappings differ, with both values, or an empty string if they are equal.

    A `name` is only a location, and is ignored if both mappings have the same `fingerprint` for it.
    """
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    keys = [key for key in keys if not (key.endswith(".name") and _known(before, now, f"{key[:-5]}.fingerprint"))]
    return ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys)


def _known(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    return isinstance(before.get(key), str) and before[key] == now.get(key)
