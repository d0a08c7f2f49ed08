"""The configurations of training and sampling as frozen dataclasses, which check all values before work begins."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from multisagd.loss import Metric, TimeDistribution
from multisagd.regularisation import SpectralPenalty
from multisagd.sampling import Spacing
from multisagd.weighting import Weighting
from recipes.base.errors import check_minimum
from recipes.config.build import Builder
from recipes.runs.learning_rate import RateShape
from recipes.runtime.device import EngineSettings

Group = Mapping[str, Any]
"""A group of keys that describes an object to be built."""
Which = Literal["ema", "network"]
"""The weights of a run: their average or the last ones."""
Width = float
"""The width of an average that is made from stored averages of other widths."""


@dataclass(frozen=True)
class Averages:
    """Averages that are stored `snapshots` times during training, one of each width, to make others afterwards."""

    snapshots: int = 0
    widths: tuple[float, ...] = (0.05, 0.15)

    def __post_init__(self) -> None:
        check_minimum(self, 0, "snapshots")
        names = {average_part(width) for width in self.widths}
        if len(self.widths) < 2 or len(names) < len(self.widths) or not all(0 < width < 0.28 for width in self.widths):
            raise ValueError(
                f"widths must be two or more different numbers between 0 and 0.28, got {list(self.widths)}"
            )


def average_part(width: float) -> str:
    """Return the name of an average of this width in a checkpoint."""
    return f"average_{round(1000 * width):03d}"


@dataclass(frozen=True)
class Training:
    """Training settings; counts are in samples. Raises ValueError if a value is invalid."""

    samples: int
    batch: int
    accumulation: int
    learning_rate: float
    warmup: int
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    ema: float
    conditional: bool | None
    condition_dropout: float
    statistics: int
    max_skips: int = 10
    max_rollbacks: int = 3
    initial: Path | None = None
    learning_rate_schedule: RateShape = "constant"
    stable: float | None = None
    decay: Literal["once", "restart"] = "once"
    averages: Averages = field(default_factory=Averages)
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "accumulation", "learning_rate", "clip", "ema", "statistics", "max_skips"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.batch % self.accumulation:
            raise ValueError(f"batch={self.batch} cannot be split into accumulation={self.accumulation} equal parts")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout must be a fraction from 0 to 1, got {self.condition_dropout}")
        if not self.ema < 0.28:
            raise ValueError(f"ema, the relative width of the average, must be below 0.28, got {self.ema}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {list(self.betas)}")
        if self.stable is not None and not 0 <= self.stable < 1:
            raise ValueError(f"stable must be a fraction, at least 0 and below 1, got {self.stable}")
        check_minimum(self, 0, "warmup", "weight_decay", "max_rollbacks")


@dataclass(frozen=True)
class Every:
    """Intervals of outputs in samples seen, and the maximum time between checkpoints in minutes; 0 means never.

    If `checkpoint` is 0, `checkpoint_minutes` has no effect.
    """

    log: int
    validation: int
    samples: int
    checkpoint: int
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        check_minimum(self, 0, "log", "validation", "samples", "checkpoint", "checkpoint_minutes")


@dataclass(frozen=True)
class Validation:
    """The held-out examples, and the numbers of noise levels and frequency bands into which their loss is divided.

    `holdout` is a number of examples, or a fraction if it is below 1. `root` is the location of separate examples; then
    none are held out. `group` is a regular expression for groups that are held out whole, or "manifest". The lowest
    `score` selects the best checkpoint; `samples` is the number of samples for the score `distance`. Training ends
    early after `patience` consecutive validations without a lower score.
    """

    holdout: float
    items: int
    levels: int
    bands: int
    root: str | None = None
    group: str | None = None
    score: Literal["loss", "distance", "likelihood"] = "loss"
    samples: int = 512
    patience: int | None = None

    def __post_init__(self) -> None:
        check_minimum(self, 1, "items", "levels", "bands", "patience")
        check_minimum(self, 4, "samples")
        check_minimum(self, 0, "holdout")
        if self.root is not None and self.group is not None:
            raise ValueError(
                f"root={self.root} and group={self.group} contradict each other, because with root, nothing is held "
                "out of the training data: remove one of them"
            )
        if math.isinf(self.holdout):
            raise ValueError("holdout must be a fraction below 1 or a number of examples, got infinity")


@dataclass(frozen=True)
class Sampling:
    """The samples drawn during training."""

    count: int
    steps: int
    spacing: Spacing | None
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_minimum(self, 1, "count", "steps")
        check_ends(self.ends, self.spacing)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance in an `interval` of log-SNR, or everywhere if it is None."""

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be a finite number, got {self.scale}")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(f"interval must be a pair of increasing log-SNRs, got {list(self.interval)}")


@dataclass(frozen=True)
class Loss:
    """Arguments of `Denoiser.loss`, and the distribution of training times."""

    metric: Metric
    weighting: Weighting
    times: TimeDistribution
    penalty: SpectralPenalty | None = None
    uncertainty: bool = False


@dataclass(frozen=True)
class CorruptionOptions:
    """How a corruption is handled: the keys of its group that do not describe the corruption itself.

    If `added`, the corruption is added to clean data, for experiments; otherwise the data are already corrupted. If
    `redrawn`, the corruption of an example is drawn again each time it is read. Before training, data are restored with
    their covariance to the conditional mean or a sample, as `restored` says, or not at all (None). The covariance is
    measured on `examples` examples, or on all (None).
    """

    added: bool = True
    redrawn: bool = False
    restored: Literal["mean", "sample"] | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.examples is not None and self.examples < 4:
            raise ValueError(f"examples must be at least 4, or null for all, got {self.examples}")

    @classmethod
    def of(cls, group: Group, builder: Builder) -> Self:
        """Return the options in a configuration's group `corruption`.

        Raises RecipeError if a value has the wrong type.
        """
        return builder.settings(cls, {key: group[key] for key in cls.names() & group.keys()}, "corruption")

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of the options."""
        return {field.name for field in fields(cls)}


@dataclass(frozen=True)
class TrackingSettings:
    """The `tracking` group: where metrics are logged in addition to `metrics.jsonl`."""

    tensorboard: bool = False
    wandb: bool = False
    project: str = "multisagd"
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The keys that define a run's model; groups that describe objects are built later."""

    seed: int
    modality: Group
    spectrum: Group
    schedule: Group
    process: Group
    denoiser: Group
    network: Group
    # These keys may be missing.
    text: Group = field(default_factory=dict)
    condition: Group = field(default_factory=dict)
    corruption: Group = field(default_factory=dict)
    covariance: Group = field(default_factory=dict)
    padding: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ModelParts):
    """All keys of `configs/train.yaml`."""

    run_dir: Path
    allow_targets: tuple[str, ...]
    training: Training
    every: Every
    keep: int
    validation: Validation
    sampling: Sampling
    guidance: Guidance
    loss: Loss
    engine: EngineSettings
    tracking: TrackingSettings
    data: Group
    sampler: Group
    keep_every: int = 0
    report: bool = False
    environment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be a number of checkpoints, at least 1, got {self.keep}")
        check_minimum(self, 0, "keep_every")
        if self.validation.patience is not None:
            for name in ("validation", "checkpoint"):
                if not getattr(self.every, name):
                    raise ValueError(
                        f"validation.patience={self.validation.patience} needs validation and checkpoints during "
                        f"training, but every.{name} is 0: set every.{name} to a number of samples"
                    )
        if self.validation.score != "loss" and not self.every.validation:
            raise ValueError(
                f"validation.score={self.validation.score} needs validation during training, but every.validation is "
                "0: set it to a number of samples, or use validation.score=loss"
            )
        _folder("run_dir", self.run_dir)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ModelParts):
    """The keys of a run's configuration that sampling needs; other keys may be from another version."""

    training: Group
    loss: Group

    def __post_init__(self) -> None:
        dropout = self.training.get("condition_dropout")
        if not isinstance(dropout, int | float) or not 0 <= dropout <= 1 or "metric" not in self.loss:
            raise ValueError("training.condition_dropout or loss.metric is missing or invalid")

    @classmethod
    def of(cls, config: Mapping[str, Any], builder: Builder) -> Self:
        """Return the settings in a run's configuration. Raises RecipeError if a value is missing or wrong."""
        own = {field.name for field in fields(cls)}
        return builder.settings(cls, {key: value for key, value in config.items() if key in own}, "")


Box = Mapping[str, tuple[float | None, float | None]]
"""An interval along each named axis, in its unit; see `modalities.unknown`."""


@dataclass(frozen=True)
class SampleSettings:
    """All keys of `configs/sample.yaml`."""

    run_dir: Path
    out: Path | None
    seed: int
    count: int | None
    steps: int
    spacing: Spacing | None
    ends: tuple[float, float] | None
    steps_file: Path | None
    batch: int
    labels: str | int | tuple[str | int, ...] | None
    prompts: str | tuple[str, ...] | None
    prompts_file: Path | None
    text_model: str | None
    weights: Which
    ema: Width | None
    guidance: Guidance
    allow_targets: tuple[str, ...]
    engine: EngineSettings
    sampler: Group
    refine: Group
    band: Literal["mean", "sample"]
    data: Group
    checkpoint: int | str | None
    size: int | tuple[int, int] | None
    seconds: float | None
    frames: int | None
    scalars: Mapping[str, float] | None
    condition: str | None
    initial: str | None
    strength: float | None
    unknown: str | Box | tuple[Box, ...] | None
    keep_known: bool
    overlap: float | None
    members: int | None
    rollout: int | None
    calibration: int | None
    vocoder: Path | None
    vocoder_steps: int

    def __post_init__(self) -> None:
        if self.calibration is not None and (self.overlap, self.rollout) != (None, None):
            raise ValueError("calibration is for samples of a single run of the sampler: remove overlap and rollout")
        check_minimum(self, 1, "count", "steps", "batch", "members", "rollout", "vocoder_steps")
        # With fewer samples, the factors of a calibration are mostly chance.
        check_minimum(self, 16, "calibration")
        check_media(self.initial, self.condition, self.strength, self.unknown)
        if self.overlap is not None and not 0 < self.overlap < 1:
            raise ValueError(f"overlap must be a fraction of a window, between 0 and 1, got {self.overlap:g}")
        if self.overlap is not None and (self.strength, self.unknown) != (None, None):
            raise ValueError(
                "overlap continues media, all of which are known: remove strength and unknown, or remove overlap"
            )
        if self.overlap is not None and (self.members, self.rollout) != (None, None):
            raise ValueError("overlap draws one sample for each file, in windows: remove members and rollout")
        if self.rollout is not None and self.initial is not None:
            raise ValueError("rollout starts from the states in condition: remove initial, or remove rollout")
        check_ends(self.ends, self.spacing)
        if self.ends is not None and self.steps_file is not None:
            raise ValueError(
                f"ends={list(self.ends)} have no effect on the steps of steps_file={self.steps_file}: set ends=null "
                "or steps_file=null"
            )
        chosen_weights(self.weights, self.ema)
        _folder("out", self.out)

    @property
    def sizes(self) -> dict[str, Any]:
        """The size of the samples, as arguments of `Modality.at`; empty for the modality's own size."""
        return given_sizes(self.size, self.seconds, self.frames)

    @property
    def chosen_weights(self) -> Which | Width:
        """The weights to use: the width of an average, or their name."""
        return chosen_weights(self.weights, self.ema)


def given_sizes(size: int | tuple[int, int] | None, seconds: float | None, frames: int | None) -> dict[str, Any]:
    """Return the sizes that are not None, as arguments of `Modality.at`."""
    given = {"size": size, "seconds": seconds, "frames": frames}
    return {name: value for name, value in given.items() if value is not None}


def chosen_weights(weights: Which, ema: Width | None) -> Which | Width:
    """Return the weights to use: the width `ema` of an average if it is given, or else their name.

    Raises ValueError if a width is given, but `weights` is not "ema".
    """
    if ema is not None and weights != "ema":
        raise ValueError(f"ema={ema:g} is the width of an average, but weights={weights}: remove one")
    return weights if ema is None else float(ema)


def weights_in_words(which: Which | Width) -> str:
    """Return weights as they are chosen on the command line, such as `network` or `ema=0.1`."""
    return f"ema={which:g}" if isinstance(which, float) else which


def check_ends(ends: tuple[float, float] | None, spacing: Spacing | None) -> None:
    """Raise ValueError if `ends`, two log-SNRs, are given for steps that are even in time."""
    if ends is not None and spacing == "time":
        raise ValueError(
            f"ends={list(ends)} are log-SNRs, which have no effect on steps that are even in time (spacing=time, or "
            "null with coefficients that depend on frequency or noise on a padded grid): set spacing=log_snr or "
            "karras, or ends=null"
        )


def check_media(initial: object, condition: object, strength: float | None, unknown: object) -> None:
    """Raise ValueError if `strength` or `unknown` has no effect with these settings, or the strength is invalid.

    None is a setting that is not given.
    """
    if strength is not None and initial is None:
        raise ValueError(f"strength={strength:g} is how far samples move away from media: add initial=FOLDER or a file")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, the fraction of the steps taken, got {strength:g}")
    if unknown is not None and initial is None and condition in (None, "none"):
        raise ValueError(f"unknown={unknown!s:.80} is a part of media: add initial=FOLDER or a file")


def _folder(name: str, path: Path | None) -> None:
    if path is not None and path.exists() and not path.is_dir():
        raise ValueError(f"{name}={path} is a file: choose a folder")
