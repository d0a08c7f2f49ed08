"""Use diffusers schedulers with coloured injected noise.

`shape_scheduler(scheduler, shaped)` returns the same scheduler, as an instance of a subclass, with steps that draw
coloured noise. Pipelines accept it, although they check a scheduler's class and signatures. This module has an
attribute `Shaped…Scheduler` for every diffusers scheduler class, created on first access. Its configuration contains
the noise as plain data, so a saved scheduler, alone or in a pipeline, is loaded with its noise.

Only the noise changes: every scheduler's step combines tensors with scalar factors, which is valid for noise of any
covariance (arXiv 2510.09660). Noise passed to `add_noise` is not changed.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from multisagd.integrations.scheduled import noise_level
from multisagd.integrations.shaped_noise import ShapedNoise
from multisagd.libraries import importing

DRAWING = ("step", "undo_step", "add_noise", "add_noise_to_input")
"""Methods that draw Gaussian noise in some schedulers, in addition to methods whose names begin with `step_`."""
LARGEST_SIGNAL = 0.1
"""Maximum fraction of signal in a noisy sample's power for which the colour of the noise can be detected."""
MIN_ODDS = 6.9
"""Log of the odds, 1,000 to 1, above which the initial sample counts as white: at most 1 in 1,000 warnings is false."""


def shape_scheduler(scheduler: Any, shaped: ShapedNoise) -> Any:
    """Return a new scheduler with the same configuration that draws the noise of `shaped` in its steps.

    The new scheduler accepts generators, lists of generators and the caller's noise as before. A step that draws noise
    of a different shape than the grid raises ValueError. The initial sample is drawn elsewhere, by `shaped.noise` or,
    in a pipeline, by `shape_pipeline`; the scheduler checks it at the first step after `set_timesteps`, and warns if it
    is white noise.

    Raises:
        ValueError: If `scheduler` is not a diffusers scheduler.
    """
    cls: Any = type(scheduler)
    return shaped_class(cls).from_config(scheduler.config, shaped_noise=shaped)


def __getattr__(name: str) -> Any:
    """Return `Shaped…Scheduler` for any diffusers scheduler class.

    diffusers calls this when it loads a saved scheduler.
    """
    if name.startswith("Shaped"):
        base = getattr(diffusers_library(), name.removeprefix("Shaped"), None)
        if base is not None and isinstance(base, type) and issubclass(base, diffusers_library().SchedulerMixin):
            return shaped_class(base)
    if name == "SchedulerMixin":  # by which diffusers recognises schedulers in this module
        return diffusers_library().SchedulerMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def shaped_class(base: Any) -> Any:
    """Return the subclass of a scheduler class with coloured noise in its steps; a shaped class is returned unchanged.

    Raises:
        ValueError: If the class is not a diffusers scheduler.
    """
    if not issubclass(base, diffusers_library().SchedulerMixin):
        raise ValueError(f"{base.__name__} is not a diffusers scheduler: it is not a subclass of SchedulerMixin")
    if issubclass(base, Shaped):
        return base
    steps = {
        name: _in_colour(method)
        for name, method in inspect.getmembers(base, inspect.isfunction)
        if name in DRAWING or name.startswith("step_")
    }
    body = {"__module__": __name__, "__doc__": f"{base.__name__} whose steps draw coloured noise.", "unshaped": base}
    return type(f"Shaped{base.__name__}", (Shaped, base), body | steps | {"__init__": _initialiser(base)})


class Shaped:
    """Base class of shaped schedulers, which store their noise in the configuration."""

    unshaped: ClassVar[Any]
    shaped_noise: ShapedNoise
    _undescribed: str | None = None
    _seen: Any = None

    def to_json_string(self) -> str:
        """Return the configuration as JSON.

        Raises:
            ValueError: If the noise has no description from which it could be loaded.
        """
        if self._undescribed is not None:
            raise ValueError(f"this scheduler cannot be saved: {self._undescribed}")
        return super().to_json_string()  # type: ignore[misc]

    def in_white(self) -> Any:
        """Return this scheduler as an instance of its original class, which draws white noise."""
        config = {key: value for key, value in self.config.items() if key != "shaped_noise"}  # type: ignore[attr-defined]
        return self.unshaped.from_config(config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shaped_noise}, {dict(self.config)})"  # type: ignore[attr-defined]


def _initialiser(base: Any) -> Callable[..., None]:
    """Return the initialiser of a shaped class, which also accepts the noise, as an object or a description."""

    @functools.wraps(base.__init__)
    def initialise(self: Any, *args: Any, shaped_noise: Any = None, **kwargs: Any) -> None:
        if not isinstance(shaped_noise, ShapedNoise | Mapping):
            raise ValueError(
                f"{type(self).__name__} requires a ShapedNoise: create the scheduler with shape_scheduler(scheduler, "
                "ShapedNoise(…)), or from a configuration with the key shaped_noise"
            )
        base.__init__(self, *args, **kwargs)
        self.shaped_noise = shaped_noise if isinstance(shaped_noise, ShapedNoise) else ShapedNoise.of(shaped_noise)
        try:
            self.register_to_config(shaped_noise=self.shaped_noise.describe())
        except ValueError as error:
            self._undescribed = str(error)

    # diffusers uses the signature to decide which entries of a configuration it passes.
    signature = inspect.signature(base.__init__)
    own = inspect.Parameter("shaped_noise", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    open_ended = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    initialise.__signature__ = signature.replace(parameters=[*parameters, own, *open_ended])  # type: ignore[attr-defined]
    return initialise


def _in_colour(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step, or another method that draws noise, so that its draws are coloured."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        tensors = (given.get(name) for name in ("sample", "model_output", "original_samples"))
        sample = next((tensor for tensor in tensors if tensor is not None), None)
        if isinstance(sample, Tensor):
            _warn_of_white_start(self, sample, given.get("timestep"))
        with self.shaped_noise.draws(like=sample):
            return method(self, *args, **kwargs)

    return step


def _warn_of_white_start(scheduler: Any, sample: Tensor, timestep: Any) -> None:
    """Warn if the first sample after `set_timesteps` is detectably white noise."""
    timesteps, shaped = getattr(scheduler, "timesteps", None), scheduler.shaped_noise
    if timestep is None or timesteps is None or scheduler._seen is timesteps:
        return
    scheduler._seen = timesteps
    # Sampling that begins at a later timestep, such as image-to-image, begins from data of any colour.
    if float(torch.as_tensor(timestep).flatten()[0]) != float(timesteps[0]):
        return
    if sample.dim() < shaped.dimensions + 2 or not bool(torch.isfinite(sample).all()):
        return
    try:
        level = noise_level(scheduler, timestep)
    except ValueError:  # a scheduler with unsupported levels
        return
    if float((level.alpha**2 / (level.alpha**2 + level.sigma**2)).max()) > LARGEST_SIGNAL:
        return
    if shaped.white_odds(sample) > MIN_ODDS:
        warnings.warn(
            f"sampling with {type(scheduler).__name__} started from white noise, but the noise of the scheduler has "
            f"the spectrum {shaped.spectrum}: draw the initial noise with shaped.noise(shape), or create the "
            "pipeline with shape_pipeline(pipeline, shaped)",
            UserWarning,
            stacklevel=4,
        )


def diffusers_library() -> Any:
    """Import the diffusers library on demand and return it.

    Raises:
        BrokenLibraryError: If diffusers cannot be imported.
    """
    with importing("diffusers", "its schedulers and pipelines"):
        import diffusers
    return diffusers
