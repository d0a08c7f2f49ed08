"""Let the covariance of the noise follow the condition of each item, such as the loudness of a sound over time.

For item i of a batch, `Σ_i = E_i F⁻¹ diag(W_i) F E_i`: stationary noise of power W_i, times an envelope `E_i > 0` on
the grid. Both are computed from the item's condition by a rule, so training, the prior, scores, losses and likelihoods
agree about them. `W = 1` is noise that is independent at every point (PriorGrad, arXiv 2106.06406); without an
envelope, the noise has another spectrum for each item. SpecGrad (arXiv 2203.16749) filters noise with a filter that
varies in time; in this form, inverse and determinant are exact: `log det Σ_i = 2 Σ log E_i + Σ log W_i`. The level of E
and W carries information and is not normalised.

With `R = E F⁻¹ w F` and `W = w²`, `Σ = R Rᵀ`. R is not symmetric if E varies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from multisagd.condition import AnyCondition, Condition
from multisagd.covariance import Covariance, Gain, SpectralCovariance, filter_grid, log_determinant, raised
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.spectrum import Flat, Spectrum

REMEDY = "use noise that is the same for all items (covariance=shared)"


class CovarianceRule(ABC):
    """Computes the envelope and the power of the noise of each item from its dense condition."""

    @abstractmethod
    def __call__(self, dense: Tensor, grid: Grid) -> tuple[Tensor | None, Tensor | None]:
        """Return the envelope E and the power W for dense conditions `(batch, channels, *grid or coarser)`.

        E is positive, `(batch, 1 or channels of the data, *grid)`, in the units of the data, and W is at least 0,
        `(batch, 1 or channels of the data, *grid.half_shape)`, dimensionless. None stands for 1 everywhere. An item of
        a batch must not depend on the others.
        """


class _ItemWise(Covariance):
    """Base class of covariances that differ from item to item."""

    @property
    def diagonal(self) -> bool:
        """Whether all items have the same power at each frequency, and no envelope: they do not."""
        return False

    @property
    def item_wise(self) -> bool:
        """Whether Σ differs from item to item: it does."""
        return True

    def require_diagonal(self, purpose: str) -> None:
        """Raise an error, because items differ.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_refusal(purpose))


class ItemCovariance(_ItemWise):
    """The covariance `Σ_i = E_i F⁻¹ diag(W_i) F E_i` of each item i of a batch, for tensors `(batch, channels, *grid)`.

    `envelope` is E `(batch, 1 or channels, *grid)`, positive, and `power` is W `(batch, 1 or channels, *half_shape)`,
    at least 0; None stands for 1, and one of them must be given. `whiten`, `solve`, `mahalanobis` and `project` are
    inverses over the range of Σ.

    Raises:
        ValueError: If both are None, a shape does not fit, or, on the CPU, a value is out of range.
    """

    def __init__(self, grid: Grid, envelope: Tensor | None = None, power: Tensor | None = None) -> None:
        super().__init__(grid)
        given = [each for each in (envelope, power) if each is not None]
        if not given:
            raise ValueError(
                "an envelope or a power must be given: without them the noise is white (SpectralCovariance)"
            )
        self.batch = len(given[-1])
        self.register_buffer("envelope", _checked("envelope", envelope, grid.shape, self.batch), persistent=False)
        self.register_buffer("item_power", _checked("power", power, grid.half_shape, self.batch), persistent=False)
        self.envelope: Tensor | None
        self.item_power: Tensor | None
        self._like = given[0].new_empty(0)

    def power(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the power W of each item, `(batch, 1 or channels, *half_shape)`.

        Raises:
            ValueError: If there is an envelope, under which the noise has no power spectrum.
        """
        self._check_grid(shape)
        if self.envelope is not None or self.item_power is None:
            raise ValueError(_refusal("a power spectrum"))
        return self.item_power

    def support(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return which frequencies of `F E⁻¹ x` carry noise, boolean `(batch, 1 or channels, *half_shape)`."""
        self._check_grid(shape)
        if self.item_power is None:
            return torch.ones((self.batch, 1, *self.grid.half_shape), dtype=torch.bool, device=self._like.device)
        return self.item_power > 0

    def sample(
        self, seeds: Sequence[int], channels: int | Sequence[int] = 1, grid_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Draw noise `R ξ` of shape `(len(seeds), channels, *grid)`, one seed per item; see the base class.

        Raises:
            ValueError: If there is not one seed per item, or the grid is another.
        """
        self._check_grid(grid_shape)
        if len(seeds) != self.batch:
            raise ValueError(
                f"this noise follows the conditions of {self.batch} items, but there are {len(seeds)} seeds"
            )
        return super().sample(seeds, channels, grid_shape)

    def whiten_transposed(self, x: Tensor) -> Tensor:
        """Return `R⁻ᵀ x = E⁻¹ F⁻¹ w⁻¹ F x`, dimensionless, shaped like x `(batch, channels, *grid)`."""
        x, wide = self._checked_data(x)
        return (self._filtered(x.to(wide), "whiten") / self._envelope(wide)).to(x.dtype)

    def logdet(self, shape: Sequence[int] | None = None, channels: int = 1) -> Tensor:
        """Return the log-determinant of each item's Σ in nats, for all `channels` together, float64 `(batch,)`.

        Raises:
            ValueError: If there is an envelope, but no noise at some frequency.
        """
        self._check_grid(shape)
        total = torch.zeros(self.batch, dtype=torch.float64, device=self._like.device)
        if self.envelope is not None:
            if self.item_power is not None and not bool((self.item_power > 0).all()):
                raise ValueError("noise without power at some frequencies has no determinant under an envelope")
            logs = self.envelope.double().log().flatten(2).sum(2)
            total = total + 2 * _over_channels(logs, channels)
        if self.item_power is not None:
            total = total + _over_channels(log_determinant(self.item_power.double(), self.grid), channels)
        return total

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        x, wide = self._checked_data(x)
        envelope, moved = self._envelope(wide), x.to(wide)
        if gain == "apply":
            moved = moved * envelope
        elif gain != "color":
            moved = moved / envelope
        moved = self._filtered(moved, gain)
        if gain == "solve":
            moved = moved / envelope
        elif gain != "whiten":
            moved = moved * envelope
        return moved.to(x.dtype)

    def _filtered(self, x: Tensor, gain: Gain) -> Tensor:
        if self.item_power is None:
            return x
        return filter_grid(x, raised(self.item_power, gain).to(x.dtype), self.grid.dimensions)

    def _envelope(self, dtype: torch.dtype) -> Tensor:
        return self._like.new_ones((), dtype=dtype) if self.envelope is None else self.envelope.to(dtype)

    def _checked_data(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        if x.dim() != 2 + self.grid.dimensions or len(x) != self.batch or tuple(x.shape[2:]) != self.grid.shape:
            raise ValueError(
                f"this noise follows the conditions of {self.batch} items on a grid of {self.grid.shape}: expected "
                f"shape (batch, channels, *grid), got {tuple(x.shape)}"
            )
        x = as_data(x)
        return x, torch.promote_types(x.dtype, torch.float32)

    def _check_grid(self, shape: Sequence[int] | None) -> None:
        if shape is not None and tuple(shape) != self.grid.shape:
            raise ValueError(
                f"this noise follows conditions on a grid of {self.grid.shape}, and has no other, such as "
                f"{tuple(shape)}"
            )


class ConditionedCovariance(_ItemWise):
    """The covariance of noise that follows the dense condition of each item by a rule; `bound` gives that of a batch.

    The power of an item is that of `spectrum`, normalised as in `SpectralCovariance`, times the power that the rule
    gives. If the rule also gives an envelope, the product keeps the mean of the rule's power, as the level is then that
    of the envelope. Before it is bound to a condition, all operations raise ValueError. `sample`, `log_likelihood`,
    losses and guidance bind it to the condition with which they are called. If a network is also trained without its
    condition, bind the denoiser to the condition before it is dropped: `denoiser.bound(condition, x0.shape)`.

    Raises:
        ValueError: If the spectrum is invalid on the grid.
    """

    def __init__(self, rule: CovarianceRule, grid: Grid, spectrum: Spectrum | None = None) -> None:
        super().__init__(grid)
        self.rule = rule
        self.shared = SpectralCovariance(spectrum or Flat(), grid)

    def bound(self, condition: AnyCondition, shape: Sequence[int]) -> ItemCovariance:
        """Return the covariance of a batch of this shape, `(batch, channels, *grid)`, under its condition.

        It is computed, and on the CPU checked, where the condition is, and moved to the device of this covariance.

        Raises:
            ValueError: If the condition has no dense part, or not one for each item, if nothing is known of an item, or
                if the rule refuses the condition or returns a wrong shape.
        """
        dense = condition.dense if isinstance(condition, Condition) else None
        if dense is None:
            raise ValueError(
                "the noise follows the dense condition of each item, but there is none: pass a Condition with `dense`"
            )
        if len(dense) != shape[0]:
            raise ValueError(f"expected a dense condition for each of {shape[0]} items, got {len(dense)}")
        if dense.device.type == "cpu" and bool(dense.isnan().flatten(1).all(1).any()):
            raise ValueError(
                "nothing is known of the dense condition of some items, which their noise follows. If conditions are "
                "dropped for guidance, bind the denoiser before: denoiser.bound(condition, x0.shape)"
            )
        grid = self.grid.resize(tuple(shape[-self.grid.dimensions :]))
        wide = torch.promote_types(torch.promote_types(dense.dtype, torch.float32), self._like.dtype)
        with torch.autocast(dense.device.type, enabled=False):
            envelope, power = self.rule(dense.to(wide), grid)
            shared = self.shared.power(grid.shape)
            if not bool((shared == 1).all()) or (envelope is None and power is None):
                shared = shared.to(dense.device, wide).expand(len(dense), 1, *grid.half_shape)
                power = shared if power is None else _product(power, shared, grid, keep=envelope is not None)
        return ItemCovariance(grid, envelope, power).to(self._like.device)

    def power(self, shape: Sequence[int] | None = None) -> Tensor:
        """Raise an error: the power of each item depends on its condition.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_unbound("power"))

    def sample(
        self, seeds: Sequence[int], channels: int | Sequence[int] = 1, grid_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Raise an error: the noise `(len(seeds), channels, *grid)` of each item depends on its condition.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_unbound("sample"))

    def logdet(self, shape: Sequence[int] | None = None, channels: int = 1) -> Tensor:
        """Raise an error: the log-determinant of each item, in nats, depends on its condition.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_unbound("logdet"))

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        raise ValueError(_unbound(gain))

    def extra_repr(self) -> str:
        """Return the rule, for `print`."""
        return f"rule={self.rule}"


def _product(power: Tensor, shared: Tensor, grid: Grid, *, keep: bool) -> Tensor:
    """Return the product of powers `(batch, 1 or channels, *half_shape)`, with the mean of the first one to `keep`."""
    product = power * shared
    if not keep:
        return product
    means = (grid.mean(each).reshape(*each.shape[:2], *(1,) * grid.dimensions) for each in (power, product))
    return product * torch.div(*means)


def _unbound(operation: str) -> str:
    return (
        f"the noise follows the condition of each item, so it has no {operation} before the condition is known: call "
        "process.bound(condition, shape) or denoiser.bound(condition, shape) first"
    )


def _refusal(purpose: str) -> str:
    return (
        f"{purpose} needs noise with the same power at each frequency for all items, but this noise follows the "
        f"condition of each item: {REMEDY}"
    )


def _over_channels(values: Tensor, channels: int) -> Tensor:
    """Return the sum over channels of values `(batch, 1 or channels)`, of which one counts for all: `(batch,)`."""
    return values.expand(len(values), channels).sum(1)


def _checked(name: str, values: Tensor | None, sizes: tuple[int, ...], batch: int) -> Tensor | None:
    if values is None:
        return None
    if values.dim() != 2 + len(sizes) or len(values) != batch or tuple(values.shape[2:]) != sizes:
        raise ValueError(f"expected {name} of shape ({batch}, 1 or channels, {sizes}), got {tuple(values.shape)}")
    # Reading values from an accelerator would stall it.
    if values.device.type == "cpu":
        valid = values.isfinite() & ((values > 0) if name == "envelope" else (values >= 0))
        if not bool(valid.all()):
            raise ValueError(
                f"the {name} of the noise must be finite and {'above' if name == 'envelope' else 'at least'} 0 for "
                "every item: give the rule a floor, and conditions without unknown values (NaN)"
            )
    return values.to(torch.promote_types(values.dtype, torch.float32))
