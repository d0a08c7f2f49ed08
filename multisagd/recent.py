"""Cache a few values that are slow to compute and the same for every tensor of a shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")

MAX_VALUES = 64
"""Maximum number of cached values. A training run uses one shape, or one for each bucket; a service may see any."""


class Recent(Generic[Value]):
    """Cache at most `maximum` values; the least recently used value is removed first.

    The cache is thread-safe, since each step is one operation on a dictionary. Compiled graphs can read it. Copies and
    unpickled caches start empty.
    """

    def __init__(self, maximum: int = MAX_VALUES) -> None:
        self.maximum = maximum
        self._values: dict[Hashable, tuple[Value]] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key; compute it with `make` if it is missing."""
        entry = self._values.get(key)
        if entry is None:
            with torch.inference_mode(False):  # cached values must be usable in training too
                entry = self._values.setdefault(key, (make(),))
            for old in list(self._values)[: -self.maximum]:
                self._values.pop(old, None)
        elif not torch.compiler.is_compiling():  # reordering inside a graph would add guards
            self._values[key] = self._values.pop(key, entry)
        return entry[0]

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[type[Recent[Value]], tuple[int]]:
        return type(self), (self.maximum,)
