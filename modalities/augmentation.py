"""Random changes of training examples by transforms of torchvision (v2) and torchaudio, chosen by name.

A transform is described by its class's `name`, its parameters, and the `probability` with which it is applied, 1 by
default. A parameter can be drawn for every example: `{uniform: [low, high]}` (whole numbers if both ends are) or
`{choice: [a, b, c]}`. The random numbers of an example depend on its seed only, also in threads: the calls of torch's
random functions get a generator of their own.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from multisagd.libraries import check
from multisagd.seeds import derive, generator_seed

Transforms = Sequence[Mapping[str, Any]]
"""Descriptions of transforms, in the order in which they are applied."""
IMAGES, SOUNDS = "torchvision.transforms.v2", "torchaudio.transforms"
NOT_TRANSFORMS = ("Transform", "Lambda", "Compose", "RandomApply", "RandomChoice", "RandomOrder", "Module")
"""Classes that need functions or other transforms as parameters."""
LARGEST = {IMAGES: 10_000, SOUNDS: 1_000_000}
"""Maximum of the numbers in parameters, such as pixels of padding or sample rates: more would exhaust the memory."""
SLOW = 2.0
"""Seconds that a transform may take for one example without a note."""
RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "normal",
    "multinomial", "poisson", "uniform_", "normal_", "random_", "bernoulli_", "exponential_",
}  # fmt: skip
"""Functions and methods of torch that take random numbers from a generator."""
_TRIED: set[tuple[str, str, tuple[int, ...]]] = set()
"""The library, description and shape of transforms that were tried with success."""
log = logging.getLogger("multisagd")


class _OwnGenerator(TorchFunctionMode):
    """Within the context, torch's random functions in this thread use one generator instead of the global one."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if getattr(function, "__name__", "") in RANDOM and options.get("generator") is None:
            options["generator"] = self.generator
        return function(*args, **options)


@dataclass(frozen=True)
class Augmentation:
    """The transforms of `library` (`IMAGES` or `SOUNDS`) that a list of descriptions names.

    They are for media of this `shape`: (channels, height, width) or (audio channels, samples). Each is tried on an
    example of this shape, with each of the values that are to be drawn.

    Raises:
        BrokenLibraryError: If the library cannot be imported.
        ValueError: If a name or a parameter is unknown or unsuitable, or a transform cannot be applied, changes the
            shape of pictures, or takes random numbers that do not depend on the seed; the message names the transform.
    """

    library: str
    transforms: Transforms
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check(self.library, "augmentation")
        for number, described in enumerate(self.transforms):
            self._check(number, described)
            # A modality is built again for every bucket, and by every command.
            trial = (self.library, repr(described), self.shape)
            if trial in _TRIED:
                continue
            before = torch.get_rng_state()
            try:
                self._try(number)
                shared = not torch.equal(before, torch.get_rng_state())
            except Exception as error:  # transforms raise many kinds of errors for values that they do not support
                raise ValueError(f"{self._name(number)} cannot be used: {error}") from error
            finally:
                torch.set_rng_state(before)
            if shared:
                raise ValueError(
                    f"{self._name(number)} takes random numbers that do not depend on the example's seed, so a "
                    "continued training would differ: choose another transform"
                )
            _TRIED.add(trial)

    def __call__(self, media: Tensor, seed: int | None) -> Tensor:
        """Return media, changed as the seed says: uint8 pixels (..., channels, height, width) or samples of sound.

        Sounds are float32 (audio channels, samples), 1 being full scale; they keep their length: what is too long is
        cut, and silence is added to what is too short. Without a seed nothing is changed.
        """
        if seed is not None:
            for number, described in enumerate(self.transforms):
                own = derive(seed, "augment", number)
                rng = random.Random(own)
                if rng.random() >= described.get("probability", 1):
                    continue
                values = {key: _drawn(value, rng) for key, value in _parameters(described).items()}
                try:
                    media = self._apply(number, media, own, values)
                except Exception as error:  # of many kinds; the message alone would blame the file
                    raise ValueError(f"{self._name(number)} cannot be applied: {error}") from error
        return media

    @cached_property
    def _classes(self) -> dict[str, Callable[..., Any]]:
        module = importlib.import_module(self.library)
        found = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
        usable = {name: each for name, each in found.items() if issubclass(each, torch.nn.Module)}
        return {name: each for name, each in usable.items() if not name.startswith("_") and name not in NOT_TRANSFORMS}

    def _name(self, number: int) -> str:
        return f"augment: {self.transforms[number].get('name')}"

    def _check(self, number: int, described: Mapping[str, Any]) -> None:
        """Raise ValueError if a description has an unknown name or parameter."""
        from difflib import get_close_matches

        if not isinstance(described, Mapping):
            raise ValueError(
                f"augment must be a list such as [{{name: ColorJitter, hue: 0.1}}], got {described!r:.100}"
            )
        name = described.get("name")
        if not isinstance(name, str) or name not in self._classes:
            near = get_close_matches(str(name), self._classes, 1)
            hint = f"; did you mean {near[0]}?" if near else f": choose one of {', '.join(sorted(self._classes))}"
            raise ValueError(f"augment: {self.library} has no transform {name!r}{hint}")
        parameters = inspect.signature(self._classes[name]).parameters
        for key, value in described.items():
            if key not in ("name", "probability", *parameters):
                raise ValueError(f"augment: {name} has no parameter {key!r}; it has {', '.join(parameters)}")
            if isinstance(value, Mapping):
                _check_drawn(f"augment: {name}: {key}", value)
            if any(abs(each) > LARGEST[self.library] for each in _numbers(value)):
                raise ValueError(f"augment: {name}: {key} must be at most {LARGEST[self.library]:,}, got {value}")
        probability = described.get("probability", 1)
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise ValueError(f"augment: {name}: probability must be a number from 0 to 1, got {probability!r}")

    def _try(self, number: int) -> None:
        """Apply a transform to an example, with each of the values that are to be drawn."""
        trial = torch.arange(math.prod(self.shape)).reshape(self.shape).remainder(256).to(torch.uint8)
        if self.library == SOUNDS:
            trial = torch.linspace(-0.5, 0.5, self.shape[1]).repeat(self.shape[0], 1)
        parameters = _parameters(self.transforms[number])
        options = {key: _options(value) for key, value in parameters.items()}
        for turn in range(max(map(len, options.values()), default=1)):
            begin = time.monotonic()
            changed = self._apply(number, trial, turn, {key: each[turn % len(each)] for key, each in options.items()})
            if not bool(changed.isfinite().all()):
                raise ValueError("it returns values that are not finite")
        if (needed := time.monotonic() - begin) > SLOW:
            log.warning(
                "%s takes %.0f seconds for one example, so training will wait for it: choose another transform or "
                "other parameters", self._name(number), needed,
            )  # fmt: skip

    def _apply(self, number: int, media: Tensor, seed: int, values: Mapping[str, Any]) -> Tensor:
        described = self.transforms[number]
        with torch.no_grad(), _OwnGenerator(torch.Generator().manual_seed(generator_seed(seed))):
            changed = self._classes[described["name"]](**values)(media)
        changed = changed[0] if isinstance(changed, tuple) else changed  # SpeedPerturbation also returns lengths
        if not isinstance(changed, Tensor) or changed.dtype != media.dtype:
            raise ValueError(f"{described['name']} does not return what it was given: {media.dtype} values")
        if self.library == SOUNDS and changed.ndim == 2 and len(changed) == len(media):
            kept = changed[:, : media.shape[1]]
            return torch.nn.functional.pad(kept, (0, media.shape[1] - kept.shape[1]))
        if changed.shape != media.shape:
            raise ValueError(
                f"{described['name']} changes the shape from {tuple(media.shape)} to {tuple(changed.shape)}; the size "
                "is that of the modality"
            )
        return changed


def _parameters(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key not in ("name", "probability")}


def _numbers(value: Any) -> list[float]:
    """Return all numbers in a parameter."""
    if isinstance(value, Mapping | list | tuple):
        parts = value.values() if isinstance(value, Mapping) else value
        return [number for part in parts for number in _numbers(part)]
    return [value] if isinstance(value, int | float) else []


def _options(value: Any) -> list[Any]:
    """Return the values of a parameter to try: each of a choice, and the ends of a range; of integers also the next."""
    if not isinstance(value, Mapping):
        return [_drawn(value, random.Random())]
    kind, options = next(iter(value.items()))
    whole = kind == "uniform" and all(isinstance(each, int) for each in options) and options[0] < options[1]
    return [*options, options[0] + 1] if whole else list(options)


def _check_drawn(where: str, value: Mapping[str, Any]) -> None:
    """Raise ValueError if a mapping does not describe a parameter that is drawn."""
    kind, options = next(iter(value.items()), (None, None))
    if len(value) != 1 or kind not in ("uniform", "choice") or not isinstance(options, list | tuple) or not options:
        raise ValueError(f"{where} must be a value, {{uniform: [low, high]}} or {{choice: [a, b]}}, got {dict(value)}")
    if kind == "uniform":
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in options)
        if len(options) != 2 or not numbers or not options[0] <= options[1]:
            raise ValueError(f"{where}: uniform must be two numbers, the lower one first, got {list(options)}")


def _drawn(value: Any, rng: random.Random) -> Any:
    """Return a parameter; if it is described by a mapping, it is drawn."""
    if not isinstance(value, Mapping):
        return list(value) if isinstance(value, list | tuple) else value
    kind, options = next(iter(value.items()))
    if kind == "choice":
        return rng.choice(list(options))
    low, high = options
    return rng.randint(low, high) if isinstance(low, int) and isinstance(high, int) else rng.uniform(low, high)
