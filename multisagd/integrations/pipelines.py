"""Use diffusers pipelines with coloured initial and injected noise.

A pipeline draws its initial noise itself and leaves the rest to its scheduler. `shape_pipeline(pipeline, shaped)`
returns the same pipeline, as an instance of a subclass, with a shaped scheduler; all noise that it draws during a call
is coloured. The noise belongs to the scheduler and is saved with it. This module has an attribute `Shaped…Pipeline` for
every diffusers pipeline class: `ShapedDDPMPipeline.from_pretrained(folder)` loads a saved pipeline.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from multisagd.integrations.schedulers import Shaped, diffusers_library, shape_scheduler
from multisagd.integrations.shaped_noise import ShapedNoise


def shape_pipeline(pipeline: Any, shaped: ShapedNoise) -> Any:
    """Return a copy of the pipeline, with the same models, that draws the noise of `shaped`.

    Latents that the pipeline packs after drawing them are coloured too. Latents that the caller passes are used
    unchanged.

    Raises:
        ValueError: If `pipeline` is not a diffusers pipeline, or has no scheduler.
    """
    base: Any = type(pipeline)
    cls = shaped_class(base)
    if getattr(pipeline, "scheduler", None) is None:
        raise ValueError(f"{type(pipeline).__name__} has no scheduler, so its noise cannot be shaped")
    result = copy.copy(pipeline)
    result.__class__ = cls
    result.register_modules(scheduler=shape_scheduler(pipeline.scheduler, shaped))
    return result


def __getattr__(name: str) -> Any:
    """Return `Shaped…Pipeline` for any diffusers pipeline class."""
    if name.startswith("Shaped"):
        base = getattr(diffusers_library(), name.removeprefix("Shaped"), None)
        if isinstance(base, type) and issubclass(base, diffusers_library().DiffusionPipeline):
            return shaped_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def shaped_class(base: Any) -> Any:
    """Return the subclass of a pipeline class that draws its scheduler's coloured noise, or a shaped class itself.

    Raises:
        ValueError: If the class is not a diffusers pipeline.
    """
    if not issubclass(base, diffusers_library().DiffusionPipeline):
        raise ValueError(f"{base.__name__} is not a diffusers pipeline: it is not a subclass of DiffusionPipeline")
    if issubclass(base, _ShapedPipeline):
        return base
    body = {"__module__": __name__, "__doc__": f"{base.__name__} that draws coloured noise."}
    methods = {"__init__": _initialiser(base), "__call__": _in_colour(base)}
    return type(f"Shaped{base.__name__}", (_ShapedPipeline, base), body | methods)


class _ShapedPipeline:
    """Base class that marks shaped pipelines."""


def _initialiser(base: Any) -> Callable[..., None]:
    @functools.wraps(base.__init__)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(base.__init__).bind(self, *args, **kwargs)
        given = bound.arguments.get("scheduler")
        if not isinstance(given, Shaped):
            raise ValueError(
                f"{type(self).__name__} needs a scheduler with coloured noise, got {type(given).__name__}: create "
                "one with shape_scheduler, or create the pipeline with shape_pipeline(pipeline, ShapedNoise(…))"
            )
        # Some pipelines replace the scheduler with one of a different class, which loses the colour.
        bound.arguments["scheduler"] = given.in_white()
        base.__init__(*bound.args, **bound.kwargs)
        self.register_modules(scheduler=shape_scheduler(self.scheduler, given.shaped_noise))

    return initialise


def _in_colour(base: Any) -> Callable[..., Any]:
    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # If the shaped scheduler was replaced later, the new scheduler would inject white noise.
        if not isinstance(self.scheduler, Shaped):
            raise ValueError(
                f"the scheduler of this {type(self).__name__} is a {type(self.scheduler).__name__}, which draws white "
                "noise: set pipeline.scheduler = shape_scheduler(scheduler, shaped)"
            )
        draws = self.scheduler.shaped_noise.draws()
        with draws:
            result = base.__call__(self, *args, **kwargs)
        if draws.left and not draws.coloured:
            raise ValueError(
                f"{type(self).__name__} drew no noise of the shape {self.scheduler.shaped_noise.layout}, so its "
                "initial noise was white: name the axes of its latents in ShapedNoise, or pass coloured latents"
            )
        return result

    return call
