"""Sounds and clips that are longer than those of training: drawn in overlapping windows, and joined into one medium.

Each window has the length of training, and continues the end of what is there already: with condition=first_frames as
the network has learned it, and otherwise as inpainting, in which that end is known. See `multisagd.continuation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from modalities.audio import Audio
from modalities.derived_conditions import FirstFrames
from modalities.unknown import known_outside, marking_what_lacks
from modalities.video import Video
from multisagd import DataStatistics, Denoiser
from multisagd.condition import AnyCondition, as_condition, mapped
from multisagd.continuation import continued, window_count
from multisagd.inpainting import put_back
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.runs.assembly import Assembly
from recipes.runs.model import TrainedModel
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.sampling.condition import DenseConditions
from recipes.sampling.dense import DROPPED
from recipes.sampling.generate import SamplingRequest, chosen_modality, generate
from recipes.sampling.held_out import HELD_OUT, read_held_out
from recipes.sampling.media_files import COUNT, named_files
from recipes.sampling.start import Start

TIME = 2
"""Dimension of time in media (batch, channels, time, ...)."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Samples of the modality `whole`, drawn in windows of the modality `window` that overlap by `overlap` samples.

    `firsts` are the media that the samples begin with, each (channels, time, ...), or None; `names` are the names of
    the samples, or None. `native` says whether the network has learned to continue (condition=first_frames). `labels`
    are the classes of held-out examples, or None.
    """

    window: Audio | Video
    whole: Audio | Video
    overlap: int
    count: int
    firsts: Sequence[Tensor] | None = None
    names: list[str] | None = None
    native: bool = False
    labels: list[int] | None = None

    @classmethod
    def chosen(cls, settings: SampleSettings, model: TrainedModel, assembly: Assembly) -> Self | None:
        """Return the windows that a command asks for, or None if it does not.

        Raises:
            RecipeError: If the run's media cannot be continued, or not with these settings.
        """
        if settings.overlap is None:
            return None
        window, whole = _modalities(settings, assembly)
        overlap = round(settings.overlap * length_of(window))
        if not 1 <= overlap < length_of(window):
            raise RecipeError(
                f"overlap={settings.overlap:g} is {overlap} of the {length_of(window)} samples of a window: it "
                "must be at least one, and leave one to be drawn"
            )
        native = _check_run(assembly, window, overlap)
        key, given = ("condition", settings.condition) if native else ("initial", settings.initial)
        plan = cls(window, whole, overlap, settings.count or COUNT, native=native)
        if native and settings.initial is not None:
            raise RecipeError("overlap: this run continues the media in condition: remove initial")
        if given is None or given == DROPPED:
            return plan
        if given == HELD_OUT:
            held_out = read_held_out(model, assembly, window, plan.count, settings.seed, key)
            own = held_out.labels if settings.labels == "all" and assembly.classes is not None else None
            turn = [number % len(held_out.media.x0) for number in range(plan.count)]
            examples = held_out.media
            masks = [None] * len(examples.x0) if examples.present is None else examples.present
            media = [medium_of(*each, window) for each in zip(examples.x0, masks, strict=True)]
            media = [_cut(each, overlap, f"{key}={HELD_OUT}: an example") for each in media] if native else media
            labels = None if own is None else [int(own[number]) for number in turn]
            return replace(plan, firsts=[media[number] for number in turn], labels=labels)
        files = named_files(Path(given), whole.suffixes, key)
        count = settings.count or len(files.named)
        media = [_beginning(path, whole, key, overlap if native else None) for path in files.first(count).paths]
        firsts = [media[number % len(media)] for number in range(count)]
        return replace(plan, count=count, firsts=firsts, names=files.names(count))

    def conditions(self) -> DenseConditions:
        """Return the names of the samples, and the dense conditions of their first windows, if there are any."""
        if self.firsts is None or not self.native:
            return DenseConditions(names=self.names, labels=self.labels)
        x0, known = beginning(torch.stack(list(self.firsts)), self.window)
        return DenseConditions(x0.masked_fill(~known, torch.nan), self.window, self.names, self.labels)

    @property
    def lengths(self) -> list[int]:
        """The number of samples along time that each sample begins with."""
        return [0] * self.count if self.firsts is None else [each.shape[1] for each in self.firsts]

    @property
    def total(self) -> int:
        """The number of windows of all samples together."""
        window, whole = length_of(self.window), length_of(self.whole)
        return sum(window_count(each, whole, window, self.overlap) for each in self.lengths)


@dataclass(frozen=True, eq=False)
class WindowSampler:
    """Draws media in windows, each sample by its own seed of `seeds` and its own row of the `condition`."""

    windows: Windows
    denoiser: Denoiser
    request: SamplingRequest
    runtime: Runtime
    statistics: DataStatistics
    keep_known: bool
    seeds: Sequence[int]
    condition: AnyCondition

    def draw(self, report: Callable[[int], None]) -> list[Tensor]:
        """Return the media of the samples, each (channels, time, ...), in the form of the modality in memory.

        `report` is called with the number of windows drawn so far.

        Raises:
            RecipeError: If samples are to be refined, the overlap is too short to continue, or sampling fails.
        """
        if self.request.refinement.iterations:
            raise RecipeError("overlap and refine exclude each other, as refine starts from noise: set refine=none")
        windows, media, done = self.windows, dict[int, Tensor](), 0

        def draw_window(group: list[int], tail: Tensor | None, number: int) -> Tensor:
            nonlocal done
            drawn = self._window(group, tail, number)
            done += len(group)
            report(done)
            return drawn

        for length in sorted(set(windows.lengths)):
            group = [number for number, each in enumerate(windows.lengths) if each == length]
            first = None if windows.firsts is None else torch.stack([windows.firsts[number] for number in group])
            joined = continued(
                partial(draw_window, group), first, length_of(windows.whole), length_of(windows.window),
                windows.overlap, TIME,
            )  # fmt: skip
            media |= dict(zip(group, joined, strict=True))
        return [media[number] for number in range(windows.count)]

    def _window(self, group: list[int], tail: Tensor | None, number: int) -> Tensor:
        """Return window `number` of a group of samples, which begins with the media `tail`, as media."""
        modality = self.windows.window
        seeds = [self.seeds[each] for each in group]
        if number:
            seeds = [derive(seed, "window", number) for seed in seeds]
        condition = mapped(self.condition, lambda part: part[group])
        start = known = None
        if tail is not None:
            given, known = beginning(tail, modality)
            if self.windows.native:
                dense = given.masked_fill(~known, torch.nan)
                condition = as_condition(condition, True, True)._replace(dense=dense)
            else:
                start = Start(given, 1.0, self.statistics, known)
        shape = modality.tensor_shape
        x0 = generate(self.denoiser, self.request, shape, seeds, condition, self.runtime, start=start)
        if known is not None and self.keep_known:
            x0 = put_back(x0, given, known)
        with as_recipe_error(ValueError):
            return torch.stack([modality.decode(each) for each in x0])


def medium_of(x0: Tensor, present: Tensor | None, window: Audio | Video) -> Tensor:
    """Return an encoded example (channels, *grid) as a medium (channels, time, ...), without padding at its end.

    `present` is bool (1 or channels, *grid), False for padding, or None if there is none. A sound may lose its last
    samples, fewer than the distance of two points on the axis of time.
    """
    medium: Tensor = window.decode(x0)
    if present is None:
        return medium
    axis = window.grid().axis(time_axis(window))
    other = [each for each in range(present.dim()) if each != 1 + window.grid().names.index(axis.name)]
    last = int(present.any(other).nonzero().max()) if bool(present.any()) else 0
    return medium[:, : 1 + round(last * axis.spacing * rate_of(window))]


def beginning(media: Tensor, window: Audio | Video) -> tuple[Tensor, Tensor]:
    """Return media (batch, channels, up to a window, ...) as x0 (batch, channels, *grid) of windows that begin so.

    The second result is bool (batch, 1, *grid): which values of x0 depend on these media only.

    Raises:
        RecipeError: If there are none.
    """
    length = media.shape[TIME]
    blank = media.new_zeros((*media.shape[:TIME], length_of(window) - length, *media.shape[TIME + 1 :]))
    x0 = torch.stack([window.encode(each) for each in torch.cat([media, blank], TIME)])
    known = known_outside([{time_axis(window): (length / rate_of(window), None)}], window)
    if not bool(known.any()):
        raise RecipeError(
            f"overlap: {length / rate_of(window):.3g} s are too short to be continued, because every value of this "
            f"representation depends on {2 * max(window.reach.values()):.3g} s: increase the overlap, or begin with "
            "longer media"
        )
    return x0, known.expand(len(x0), *known.shape)


def length_of(modality: Audio | Video) -> int:
    """Return the number of samples of a sound, or of frames of a clip."""
    return modality.samples if isinstance(modality, Audio) else modality.frames


def rate_of(modality: Audio | Video) -> float:
    """Return the number of samples or frames per second."""
    return modality.rate if isinstance(modality, Audio) else modality.fps


def time_axis(modality: Audio | Video) -> str:
    """Return the name of the axis that is time."""
    return "time" if isinstance(modality, Audio) else "frame"


def _modalities(settings: SampleSettings, assembly: Assembly) -> tuple[Audio | Video, Audio | Video]:
    """Return the modality of the windows, and that of the samples, which is longer.

    Raises:
        RecipeError: If the media are neither sounds nor clips, or the length is not given or not more than a window.
    """
    trained = assembly.modality
    if not isinstance(trained, Audio | Video):
        raise RecipeError(
            f"overlap: samples of {type(trained).__name__} have one length: overlapping windows are for sounds and "
            "clips (modality=audio or video) that are not encoded into latents. Remove overlap"
        )
    key = _key(trained)
    sizes = dict(settings.sizes)
    if key not in sizes:
        raise RecipeError(f"overlap needs the length of the samples, beyond that of training: add {key}=…")
    length = sizes.pop(key)
    window = chosen_modality(assembly, sizes)
    with as_recipe_error(ValueError):
        whole = window.at(**{key: length})
    assert isinstance(window, Audio | Video)
    assert isinstance(whole, Audio | Video)
    if length_of(whole) <= length_of(window):
        longest = length_of(window) / rate_of(window) if key == "seconds" else length_of(window)
        raise RecipeError(
            f"overlap: {key}={length:g} is not longer than a window, {longest:g}, so samples are drawn at once: remove "
            f"overlap, or increase {key}"
        )
    return window, whole


def _check_run(assembly: Assembly, window: Audio | Video, overlap: int) -> bool:
    """Return whether the network of a run has learned to continue; it need not have.

    Raises:
        RecipeError: If the run has another dense condition or corrupted data, or has learned another overlap.
    """
    derived = assembly.derived_condition()
    if isinstance(derived, FirstFrames):
        size, length = window.grid().shape[0], length_of(window)
        if size != length:
            raise RecipeError(
                f"overlap: this run continues its axis {window.grid().names[0]}, which is not time: remove overlap"
            )
        if overlap != derived.count:
            raise RecipeError(
                f"overlap: this run continues the first {derived.count} of {size} samples of a window: set "
                f"overlap={derived.count / size:g}"
            )
        return True
    if (
        assembly.dense is not None
        or assembly.corruption() is not None
        or any((assembly.settings.padding or {}).values())
    ):
        raise RecipeError(
            "overlap: runs with another dense condition than first_frames, on corrupted data, or with noise drawn on a "
            "larger grid (padding) cannot continue media: remove overlap"
        )
    return False


def _beginning(path: Path, whole: Audio | Video, key: str, count: int | None) -> Tensor:
    """Return the media in a file, (channels, time, ...), or its first `count` samples.

    Raises:
        RecipeError: If it cannot be read, leaves nothing to be drawn, or is shorter than `count`.
    """
    with as_recipe_error(Exception, f"{key}: {path}: "):
        media: Tensor = marking_what_lacks(whole).load(path, None)
    if count is not None:
        return _cut(media, count, f"{key}: {path}")
    if media.shape[1] >= length_of(whole):
        raise RecipeError(f"{key}: {path} is at least as long as the samples: increase {_key(whole)}")
    return media


def _cut(media: Tensor, count: int, name: str) -> Tensor:
    """Return the first `count` samples of media (channels, time, ...); RecipeError if there are fewer."""
    if media.shape[1] < count:
        raise RecipeError(f"{name} has {media.shape[1]} samples along time, but {count} are continued")
    return media[:, :count]


def _key(modality: Audio | Video) -> str:
    return "seconds" if isinstance(modality, Audio) else "frames"
