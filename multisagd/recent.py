"""A small memory of what is the same for every tensor of a shape, and takes a while to compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")

MOST = 16
"""Values that are kept. Trainings meet one shape, or a handful of them; a service may meet any number."""


class Recent(Generic[Value]):
    """The values of the keys that were asked for last; where there are more than `most`, the longest unused one goes.

    It may be shared by threads, each of its steps being one operation on a dictionary. Compiled graphs read it without
    breaking. Copies and pickles begin empty.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._values: dict[Hashable, tuple[Value]] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key, which is made if it is not there."""
        found = self._values.get(key)
        if found is None:
            with torch.inference_mode(False):  # what is kept must serve training too
                found = self._values.setdefault(key, (make(),))
            for old in list(self._values)[: -self.most]:
                self._values.pop(old, None)
        elif not torch.compiler.is_compiling():  # a graph that changed the order would have to be checked for it
            self._values[key] = self._values.pop(key, found)
        return found[0]

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[type[Recent[Value]], tuple[int]]:
        return type(self), (self.most,)
