"""Build a run's denoiser from its configuration, for training and for sampling."""

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from modalities.base import Dataset, Modality
from modalities.derived_conditions import DerivedCondition, with_derived_condition
from modalities.scalars import Scalar
from modalities.wrapped import with_standardised
from multisagd import (
    ConditionedCovariance,
    Corruption,
    Covariance,
    CovarianceRule,
    DataStatistics,
    Denoiser,
    Euler,
    Flat,
    GaussianIntegrator,
    NoiseFloor,
    PaddedCovariance,
    Process,
    RestoringDenoiser,
    SpectralCovariance,
    Spectrum,
    UniPC,
    seeds,
    terminal_snr,
)
from multisagd.channel_covariance import ChannelCovariance, covariance_of
from multisagd.channel_spectra import CrossTable, DataChannels, PerChannel
from multisagd.data_spectra import DataPower, Omitting
from multisagd.mixing import Refinement, power_fraction
from multisagd.radial import Rings
from multisagd.samplers import Sampler
from multisagd.spectrum import Outside, Power, Product, Sum
from multisagd.table import Table
from recipes.base.errors import MissingError, RecipeError, as_recipe_error
from recipes.config.build import Builder
from recipes.runs.quiet_notes import floor_notes, last_level_notes
from recipes.runs.schedules import build_schedule
from recipes.runs.settings import CorruptionOptions, Group, ModelSettings
from recipes.runs.state import mismatch, shapes

T = TypeVar("T")
MAX_PADDING = 1000
"""Maximum size of a padded grid, as a multiple of the data's grid."""
LARGE_FRACTION = 0.5
"""Fraction of the noise's power at zero frequency above which noise is mostly a random offset, such as brightness."""
LARGE_SIGMA = 2.0
"""Noise level, in units of the data's range, above which the inputs of a network need scaling."""
UNEQUAL = 1e-9
"""Difference of powers, relative to the largest power, above which noise is shaped along an axis."""
LOW_LOG_SNR = -12.0
"""Log-SNR below which a noise prediction contains almost no information about the data."""
RESTORE = "Restore the config.yaml that the run was trained with"
LARGER = f"network: the configured network is far larger than the one in the checkpoint. {RESTORE}"


@dataclass(frozen=True)
class Assembly:
    """Builds the parts of a model. Its condition is `classes`, text embeddings of width `context`, or neither.

    `scalars` are part of the condition in addition, and so is a dense condition of `dense` channels, unless it is None.
    `kept` is the corruption of the run's data if it was saved and need not be built from the configuration.
    """

    settings: ModelSettings
    builder: Builder
    modality: Modality
    statistics: DataStatistics
    classes: tuple[str, ...] | None
    context: int | None = None
    kept: Corruption | None = None
    scalars: tuple[Scalar, ...] = ()
    dense: int | None = None

    def __post_init__(self) -> None:
        measured, expected = tuple(self.statistics.mean.shape), self.modality.tensor_shape
        if measured != expected:
            raise RecipeError(
                f"statistics have shape {measured}, but the modality produces {expected}: "
                "restore the run's statistics.safetensors and config.yaml, or measure the data and train again"
            )

    def process(self) -> Process:
        """Return the forward process.

        Raises RecipeError if a key is invalid, or if the spectrum is invalid on the grid.
        """
        spectrum = self._build_part("spectrum", Spectrum, statistics=self.statistics)
        covariance = self.covariance(spectrum)
        schedule = build_schedule(self.settings.schedule, self.builder, self.statistics, covariance)
        return self._build_part("process", Process, schedule=schedule, covariance=covariance)

    def corruption(self) -> Corruption | None:
        """Return the corruption of the run's data, or None; see `build_corruption`."""
        return self.kept or build_corruption(self.settings.corruption, self.modality, self.builder)

    def derived_condition(self) -> DerivedCondition | None:
        """Return the dense condition that is derived from the data, or None; see `build_derived_condition`."""
        return build_derived_condition(self.settings.condition, self.modality, self.builder)

    def conditioned(self, dataset: Dataset) -> Dataset:
        """Return a dataset whose batches contain the scalars and the derived condition that the network takes."""
        dataset = with_standardised(dataset, self.scalars)
        return with_derived_condition(dataset, self.derived_condition(), self.settings.seed)

    def covariance(self, spectrum: Spectrum) -> Covariance:
        """Return the covariance of a spectrum on the modality's grid, padded or following the condition as configured.

        Raises RecipeError if the spectrum, the padding or the rule is invalid.
        """
        grid, padding = self.modality.grid(), self.settings.padding or {}
        with as_recipe_error(ValueError, "spectrum: "):
            covariance = covariance_of(spectrum, grid)
        if isinstance(covariance, ChannelCovariance):
            self._check_channels(covariance, padded=any(padding.values()))
        if follows_condition(self.settings.covariance):
            return self._conditioned(spectrum, padded=any(padding.values()))
        if not any(padding.values()):
            return covariance
        if self.settings.loss["metric"] == "mahalanobis":
            raise RecipeError(
                "padding: noise from a padded grid cannot be whitened, but loss=mahalanobis whitens: remove one of them"
            )
        added = {
            name: samples for name, samples in padding.items() if isinstance(samples, int)
        }  # other values are refused later
        padded = math.prod(axis.size + added.get(axis.name, 0) for axis in grid.axes)
        if padded > MAX_PADDING * grid.numel:
            raise RecipeError(
                f"padding={dict(padding)} makes the grid {padded // grid.numel:,} times as large: reduce the padding"
            )
        with as_recipe_error(ValueError, "padding: "):
            return PaddedCovariance(spectrum, grid, padding)

    def _conditioned(self, spectrum: Spectrum, *, padded: bool) -> ConditionedCovariance:
        if padded:
            raise RecipeError(
                "padding and covariance=… exclude each other, because cropped noise has no exact inverse under an "
                "envelope: remove one of them"
            )
        parts = {"condition": self.derived_condition(), "modality": self.modality}
        rule = self.builder.build(self.settings.covariance, CovarianceRule, "covariance", **parts)  # type: ignore[type-abstract]
        with as_recipe_error(ValueError, "spectrum: "):
            return ConditionedCovariance(rule, self.modality.grid(), spectrum)

    def _check_channels(self, covariance: ChannelCovariance, *, padded: bool) -> None:
        if covariance.channels != self.modality.channels:
            raise RecipeError(
                f"spectrum: the noise has {covariance.channels} channels, but the data have "
                f"{self.modality.channels}: give as many spectra as there are channels"
            )
        if padded:
            raise RecipeError(
                "padding: noise that differs between channels cannot be drawn on a padded grid: remove the padding, or "
                "choose one spectrum for all channels, such as spectrum=data_power"
            )

    def network(self) -> nn.Module:
        """Return the network with initial weights, which depend only on the run's seed.

        Raises:
            RecipeError: If it cannot be built, or the run is trained on captions but the network does not accept text.
        """
        torch.manual_seed(seeds.derive(self.settings.seed, "initialisation"))
        network = self._build()
        if self.context is not None and "context" not in inspect.signature(type(network)).parameters:
            raise RecipeError(
                f"network: {type(network).__name__} does not accept text: add a parameter `context` (the width of "
                "text embeddings) to it, or train without text=encoder"
            )
        if self.scalars and "scalars" not in inspect.signature(type(network)).parameters:
            raise RecipeError(
                f"network: {type(network).__name__} does not accept scalars: choose network=unet or "
                "network=transformer, add a parameter `scalars` (their number) to it, or set training.scalars=[]"
            )
        if self.dense is not None and "dense" not in inspect.signature(type(network)).parameters:
            raise RecipeError(
                f"network: {type(network).__name__} does not accept a dense condition: choose network=unet or "
                "network=transformer, add a parameter `dense` (the number of its channels) to it, or train without "
                "condition=… and data.condition_root"
            )
        periodic = [axis.name for axis in self.modality.grid().axes if axis.periodic]
        if periodic and "periodic" not in inspect.signature(type(network)).parameters:
            raise RecipeError(
                f"network: {type(network).__name__} has no parameter `periodic`, so it would treat periodic axes of "
                f"the data ({', '.join(periodic)}) as if they had edges: choose network=unet or network=transformer; "
                "add the parameter (one bool per axis), if the network is yours; or make these axes not periodic"
            )
        return network

    def _build(self) -> nn.Module:
        classes, grid = None if self.classes is None else len(self.classes), self.modality.grid()
        outputs = self._outputs()
        return self.builder.build(
            self.settings.network, nn.Module, "network", channels=self.modality.channels,
            dimensions=grid.dimensions, classes=classes, context=self.context, scalars=len(self.scalars) or None,
            out_channels=None if outputs == 1 else outputs * self.modality.channels, periodic=grid.periodic,
            dense=self.dense,
        )  # fmt: skip

    def _outputs(self) -> int:
        """Return the number of output channels that the denoiser needs for each channel of the data.

        Raises RecipeError if the network cannot have more than one.
        """
        denoiser = self.builder.target(self.settings.denoiser, Denoiser, "denoiser")
        outputs: int = getattr(getattr(denoiser, "__self__", denoiser), "outputs", Denoiser.outputs)
        network = self.builder.target(self.settings.network, nn.Module, "network")
        if outputs > 1 and "out_channels" not in inspect.signature(network).parameters:
            raise RecipeError(
                f"network: {getattr(network, '__qualname__', network)} has no parameter out_channels, but "
                f"denoiser={self.settings.denoiser['_target_']} needs {outputs} outputs for each channel: add the "
                "parameter, or choose denoiser=velocity"
            )
        return outputs

    def check_weight_shapes(self, trained: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the configured network has weights with these names and shapes, without allocating memory.

        The configuration and the weights may come from someone else, and might need more memory than any machine has.

        Raises:
            RecipeError: If they differ; the message names the first difference.
        """
        # A network may register a weight more than once during construction.
        count, elements = 4 * len(trained), 4 * sum(map(math.prod, trained.values()))
        try:
            with torch.device("meta"), at_most(count, elements):
                different = mismatch(trained, shapes(self._build().state_dict()))
        except (RuntimeError, NotImplementedError) as error:
            # A user's network may need real tensors, not those of the meta device, during construction.
            if self.builder.extra:
                return
            raise RecipeError(f"network: {error}") from error
        if different is not None:
            raise RecipeError(f"the checkpoint does not match the configured network: {different}. {RESTORE}")

    def denoiser(self, network: nn.Module, process: Process) -> Denoiser:
        """Return the denoiser around a network.

        Raises RecipeError if it cannot be combined with the configured loss or restoration.
        """
        parts = {"network": network, "process": process, "statistics": self.statistics}
        denoiser = self._build_part("denoiser", Denoiser, **parts)
        if not isinstance(denoiser, RestoringDenoiser):
            return denoiser
        loss = self.settings.loss
        if self.settings.corruption.get("restored"):
            raise RecipeError("corruption.restored and denoiser=restoring both restore the data: remove one of them")
        if loss.get("metric") == "mahalanobis" or loss.get("penalty") is not None:
            raise RecipeError("denoiser=restoring requires loss=euclidean: add it to the command")
        return denoiser

    def _build_part(self, group: str, expected: type[T], **parts: Any) -> T:
        """Build the object of a configuration group, with `parts` and the corruption, if any, as further arguments."""
        corruption = self.corruption()
        if corruption is not None:
            parts["corruption"] = corruption
        node: Group = getattr(self.settings, group)
        try:
            return self.builder.build(node, expected, group, **parts)
        except MissingError as error:
            if "corruption" in error.parameters:
                raise RecipeError(
                    f"{group}={node['_target_']} requires corrupted data, but no corruption is configured: "
                    "choose one, for example corruption=band"
                ) from error
            raise


def follows_condition(group: Group) -> bool:
    """Whether a configuration group `covariance` makes the noise of each example follow its dense condition."""
    return group.get("_target_") is not None


def build_corruption(group: Group, modality: Modality, builder: Builder) -> Corruption | None:
    """Return the corruption that a configuration group describes, or None. Raises RecipeError if it is invalid."""
    if group.get("_target_") is None:
        return None
    described = {key: value for key, value in group.items() if key not in CorruptionOptions.names()}
    return builder.build(described, Corruption, "corruption", grid=modality.grid())


def build_derived_condition(group: Group, modality: Modality, builder: Builder) -> DerivedCondition | None:
    """Return the derived condition that a configuration group describes, or None.

    Raises RecipeError if it is invalid, or cannot be derived from data of the modality.
    """
    if group.get("_target_") is None:
        return None
    derived = builder.build(group, DerivedCondition, "condition")  # type: ignore[type-abstract]
    with as_recipe_error(ValueError, "condition: "):
        for size in modality.in_buckets():
            derived.check(size)
    return derived


@contextmanager
def at_most(count: int, elements: int, message: str = LARGER) -> Iterator[None]:
    """Inside the context, raise RecipeError if more than `count` parameters or `elements` values are created."""
    left = [count, elements]

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        left[0] -= 1
        left[1] -= 0 if parameter is None else parameter.numel()
        if min(left) < 0:
            raise RecipeError(message)

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()


def check_sampler(sampler: Sampler, process: Process) -> None:
    """Check that a sampler supports a process.

    Raises:
        RecipeError: If the sampler is an ODE solver in x_t and the coefficients of the process depend on frequency, if
            it needs noise at every frequency but some have none, or if it is UniPC and the process has a noise floor.
    """
    if isinstance(sampler, GaussianIntegrator):
        with as_recipe_error(ValueError, "sampler: "):
            sampler.check(process)
    if isinstance(process.modulation, NoiseFloor) and isinstance(sampler, UniPC):
        raise RecipeError(
            "sampler=unipc needs noise that decreases at every frequency, but process=floored keeps it above the noise "
            "of the corruption: choose sampler=ddim or dpm_solver"
        )
    if process.modulation is not None and isinstance(sampler, Euler):  # or Heun, its subclass
        raise RecipeError(
            f"sampler={type(sampler).__name__.lower()} needs equal coefficients at every frequency, but "
            f"process.modulation ({type(process.modulation).__name__}) makes them different: "
            "choose sampler=ddim, dpm_solver or unipc"
        )


def process_notes(process: Process, denoiser: Denoiser, statistics: DataStatistics, modality: Modality) -> list[str]:
    """Return warnings about a process: its spectrum (`axis_notes`), and t = 1 (pure noise), where sampling starts."""
    notes = covariance_notes(process, statistics, modality)
    end = torch.ones(1, dtype=torch.float64)
    log_snr, sigma = float(process.schedule.log_snr(end)), float(process.schedule.alpha_sigma(end)[1])
    if denoiser.preconditioning == "none" and sigma > LARGE_SIGMA:
        notes.append(
            f"the schedule's noise increases to sigma={sigma:.3g}, but the denoiser scales neither inputs nor targets: "
            "use denoiser=karras, which does"
        )
    if denoiser.preconditioning == "none" and denoiser.prediction == "noise" and log_snr < LOW_LOG_SNR:
        notes.append(
            f"predicting noise down to a log-SNR of {log_snr:.3g} multiplies the network's errors by "
            f"{math.exp(-log_snr / 2):.3g} where sampling starts: set schedule.log_snr_range=[-10,20], or "
            "choose denoiser=velocity"
        )
    return [*notes, *floor_notes(denoiser, statistics), *last_level_notes(process, statistics)]


def covariance_notes(process: Process, statistics: DataStatistics, modality: Modality) -> list[str]:
    """Return warnings about the power of the noise at each frequency, next to that of the data at t = 1."""
    covariance = process.covariance
    if covariance.item_wise:
        # How loud it is next to the data is measured on examples: `recipes.data.whitened`.
        return axis_notes(covariance.shared.spectrum, modality) if isinstance(covariance, ConditionedCovariance) else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        terminal_snr(process, statistics)
    own = axis_notes(covariance.spectrum, modality) if isinstance(covariance, SpectralCovariance) else []
    notes = own + [str(warning.message) for warning in caught]
    power = covariance.power().reshape(-1, *process.grid.half_shape).mean(0)
    fraction = float(power.flatten()[0]) / process.grid.numel
    if fraction > LARGE_FRACTION:
        notes.append(
            f"zero frequency, the mean of an example, has {fraction:.0%} of the noise's power, leaving little for the "
            "rest: use a smaller exponent or a higher corner frequency"
        )
    return notes


def axis_notes(spectrum: Spectrum, modality: Modality) -> list[str]:
    """Return warnings about axes along which frequencies mean nothing, but a spectrum has unequal power.

    Power that is measured from the data, or designed for them, follows the data along every axis and counts as equal.
    """
    if not modality.meaningless_axes:
        return []
    grid = modality.grid()
    power, notes = covariance_of(_without_data(spectrum), grid).power(), []
    for name, remedy in modality.meaningless_axes.items():
        low, high = power.aminmax(dim=grid.names.index(name) - grid.dimensions)
        if bool((high - low > UNEQUAL * power.max()).any()):
            notes.append(
                f"the noise has unequal power along {name}, where frequencies mean nothing with this modality: {remedy}"
            )
    return notes


def _without_data(spectrum: Spectrum) -> Spectrum:
    """Return a spectrum in which every part that depends on data is replaced by white noise."""
    if isinstance(spectrum, (Product, Sum)):
        return replace(spectrum, left=_without_data(spectrum.left), right=_without_data(spectrum.right))
    if isinstance(spectrum, Power):
        return replace(spectrum, base=_without_data(spectrum.base))
    if isinstance(spectrum, PerChannel):
        return replace(spectrum, spectra=tuple(map(_without_data, spectrum.spectra)))
    # Noise that omits the frequencies of measured data also follows the data.
    inner = spectrum.inner if isinstance(spectrum, Outside) else spectrum
    follows = (CrossTable, DataChannels, DataPower, Omitting, Rings, Table)
    return Flat() if isinstance(inner, follows) else spectrum


def check_refinement(refinement: Refinement, process: Process) -> None:
    """Check that samples of a process can be refined.

    Raises:
        RecipeError: If the low-pass filter is not in [0, 1], or does not fit the axes of the grid, or noise follows the
            condition of each example.
    """
    with as_recipe_error(ValueError, "refine: "):
        if refinement.iterations and process.covariance.item_wise:
            process.covariance.require_diagonal("refinement")
        power_fraction(refinement.low_pass, process.grid)
