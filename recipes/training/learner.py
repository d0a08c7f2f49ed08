"""The optimiser steps of training, and the state that they change.

The random numbers of a step depend only on (seed, samples seen): training times are stratified over the batch, every
sample has its own noise seed, and torch's global generator, which dropout uses, is seeded in each step.

A step with a non-finite gradient changes neither weights nor optimiser, and is counted. This is decided on the device,
with the same result on all ranks, because they have the same norm of the averaged gradient. In float16 the loss is
scaled (`recipes.training.loss_scale`): a step that overflows lowers the scale, and counts towards divergence only if
the scale is already at its minimum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from modalities.base import Batch
from multisagd.condition import AnyCondition, Condition, mapped
from multisagd.denoiser import Denoiser
from multisagd.ema import PowerEMA
from multisagd.loss import stratified_uniform
from multisagd.seeds import derive, derive_many
from multisagd.weighting import UncertaintyWeighting
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.runs.checkpoint import State
from recipes.runs.learning_rate import LearningRate, Span
from recipes.runs.settings import TrainSettings
from recipes.runs.state import Progress, load_module, load_optimizer, optimizer_tensors
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import full_tensor, gathered, synchronise
from recipes.training.loss_scale import MINIMUM, LossScale
from recipes.training.optimizer import build_optimizer


class DivergedError(RecipeError):
    """Too many consecutive steps had a non-finite gradient."""


def dropped_parts(uniform: Tensor, fraction: float, both: bool) -> tuple[Tensor, Tensor]:
    """Return which examples lose their class or caption, and which their dense condition, bool (batch,) each.

    A `fraction` of examples, chosen by numbers `uniform` (batch,) from [0, 1), loses all: guidance compares with such
    estimates. Of examples that have `both`, half as many lose only the class or caption, and half as many only the
    dense condition, so that either can also be used alone.
    """
    whole = uniform < fraction
    if not both:
        return whole, whole
    first, second = uniform < 1.5 * fraction, uniform < 2 * fraction
    return first, whole | (second & ~first)


class Learner:
    """Trains a network: holds the network, its average and its optimiser.

    `null_label` is the label for "no class", or None if there are no classes.

    Batches with text embeddings use the embeddings and ignore labels. `parallel` is the network parallelised over ranks
    (`Runtime.parallelize`), and `denoiser` may contain a compiled form of it; all share their weights. `stored` are
    averages of other widths (`training.averages`), by the names of their parts in a checkpoint.
    """

    def __init__(
        self, denoiser: Denoiser, network: nn.Module, parallel: nn.Module, average: PowerEMA, settings: TrainSettings,
        runtime: Runtime, null_label: int | None, stored: Mapping[str, PowerEMA] | None = None,
    ) -> None:  # fmt: skip
        self.denoiser, self.network, self.parallel, self.ema = denoiser.train(), network, parallel, average
        self.settings, self.runtime, self.null_label = settings, runtime, null_label
        training = settings.training
        self.optimizer = build_optimizer(network, training)
        self.learning_rate = LearningRate(
            training.learning_rate, training.learning_rate_schedule, training.warmup, training.stable
        )
        self.span = Span(0, training.samples)  # of the decay of the learning rate
        self.stored = stored or {}
        self.optimizers = [self.optimizer]
        self.uncertainty = None
        if settings.loss.uncertainty:
            self.uncertainty = UncertaintyWeighting().to(runtime.device, runtime.dtype)
            self.uncertainty_optimizer = build_optimizer(self.uncertainty, replace(training, weight_decay=0.0))
            self.optimizers.append(self.uncertainty_optimizer)
        self.loss_scale = LossScale(runtime.device) if runtime.products == torch.float16 else None
        self.samples = self.rollbacks = 0
        self.skipped = self._in_a_row = 0  # skipped steps: in total, and in a row at the minimum scale
        self._last_skipped = False
        self._window = (0.0, 0.0, 0.0)  # sum of losses, sum of gradient norms, number of steps
        self._pending: list[Tensor] = []  # (loss, gradient norm, scale) of the last steps, still on the device
        # Reading them back synchronises an accelerator, so that is deferred to the next log entry or checkpoint.
        self._patience = 1 if runtime.device.type == "cpu" else 1000

    @property
    def seed(self) -> int:
        """The current seed, which changes after each return to a checkpoint."""
        return derive(self.settings.seed, "rollback", self.rollbacks) if self.rollbacks else self.settings.seed

    def healthy(self) -> bool:
        """Whether the last step was successful. Every rank must call this. Raises DivergedError, as `step` does."""
        self._settle()
        return not self._last_skipped

    def step(self, parts: Sequence[Batch]) -> None:
        """Take one optimiser step on a batch, given as equal parts whose gradients are accumulated.

        Raises:
            DivergedError: If the gradient was not finite in `training.max_skips` consecutive steps. It is raised at
                once on a CPU; on an accelerator within 1,000 steps, or when `averages`, `healthy` or `state` is called.
        """
        seed, training = self.seed, self.settings.training
        number, slots = self.samples // training.batch, self.runtime.share(training.batch)
        uniform = stratified_uniform(seed, number, training.batch, slots.start, len(slots))
        times = self.settings.loss.times(uniform, self.denoiser.process.schedule)
        rate = self.learning_rate(self.samples, training.batch, self.span)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss = torch.zeros((), device=self.runtime.device, dtype=self.runtime.dtype)
        scale = torch.ones_like(loss) if self.loss_scale is None else self.loss_scale.value
        first = slots.start
        for part in parts:
            synchronise(self.parallel, part is parts[-1])
            mine = range(first, first + len(part.x0))
            torch.manual_seed(derive(seed, "network", number, first))
            t = self.runtime.put(times[mine.start - slots.start : mine.stop - slots.start])
            part_loss = self._loss(part, t, number, mine) / len(slots)
            (part_loss if self.loss_scale is None else part_loss * scale).backward()
            loss += part_loss.detach()
            first = mine.stop
        norm = self._clip(scale)
        for parameter in () if self.uncertainty is None else self.uncertainty.parameters():
            if parameter.grad is not None:  # this module is not parallelised: average over ranks
                parameter.grad = torch.stack(gathered(parameter.grad)).mean(0).to(parameter)
        overflow = (~norm.isfinite()).float()
        for optimizer in self.optimizers:
            optimizer.found_inf = overflow  # type: ignore[attr-defined]
            if self.loss_scale is not None:
                optimizer.grad_scale = scale  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.loss_scale is not None:
            self.loss_scale.update(overflow)
        self.samples += training.batch
        for average in (self.ema, *self.stored.values()):
            average.update(self.network)
        # The norm of offloaded weights is on the CPU.
        self._pending.append(torch.stack((loss, norm.to(loss), scale.to(loss))))
        if len(self._pending) >= self._patience:
            self._settle()

    def _clip(self, scale: Tensor) -> Tensor:
        """Clip the scaled gradient so that its norm, once divided by the scale, is at most `training.clip`.

        Return that norm before clipping, which is the same on all ranks. The optimiser divides the gradient.
        """
        parameters = list(self.network.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm(gradients))
        if self.loss_scale is not None:
            norm = norm / scale.to(norm.device)
        nn.utils.clip_grads_with_norm_(parameters, self.settings.training.clip, norm)
        return norm

    def _loss(self, part: Batch, t: Tensor, number: int, slots: range) -> Tensor:
        put, loss = self.runtime.put, self.settings.loss
        mask = None if part.mask is None else put(part.mask)
        noise_seeds = derive_many(self.seed, "noise", number, slots)
        condition = self._condition(part, number, slots)
        denoiser = self._bound(part)
        with self.runtime.autocast():
            losses = denoiser.loss(
                put(part.x0), t, noise_seeds, condition=condition, mask=mask,
                metric=loss.metric, weighting=loss.weighting, penalty=loss.penalty,
            )  # fmt: skip
        if self.uncertainty is not None:
            # Not in half precision: its scaled gradient can overflow where that of the network, which decides whether a
            # step is taken, does not.
            losses = self.uncertainty(losses, self.denoiser.process.schedule.log_snr(t.double()).to(losses))
        return losses.sum()

    def _bound(self, part: Batch) -> Denoiser:
        """Return the denoiser with noise that follows the conditions of these examples, none of which is dropped yet.

        Raises RecipeError if the noise cannot be computed from them.
        """
        if not self.denoiser.process.covariance.item_wise:
            return self.denoiser
        with as_recipe_error(ValueError, "covariance: "):
            return self.denoiser.bound(Condition(dense=part.dense), part.x0.shape)

    def _condition(self, part: Batch, number: int, slots: range) -> AnyCondition:
        """Return text embeddings or labels, and dense conditions, some of them dropped for guidance, and scalars."""
        numbers = derive_many(self.seed, "condition", number, slots)
        uniform = torch.tensor(numbers, dtype=torch.float64) / 2**32
        learned = part.embeddings is not None or (part.labels is not None and self.null_label is not None)
        dropped, dropped_dense = dropped_parts(
            uniform, self.settings.training.condition_dropout, learned and part.dense is not None
        )
        if part.embeddings is not None:
            part = part._replace(embeddings=part.embeddings.masked_fill(dropped[:, None, None], 0.0))
        elif part.labels is not None and self.null_label is not None:
            part = part._replace(labels=part.labels.masked_fill(dropped, self.null_label))
        if part.dense is not None:
            rows = dropped_dense.reshape(-1, *(1,) * (part.dense.dim() - 1))
            part = part._replace(dense=part.dense.masked_fill(rows, math.nan))
        return mapped(part.condition(part.embeddings is not None or self.null_label is not None), self.runtime.put)

    def _continued(self, saved: tuple[int, int] | None) -> Span:
        """Return the span of the decay on continuing: the saved one, unless it restarts for new `training.samples`."""
        training = self.settings.training
        # A constant rate has no end: a run that is continued equals an uninterrupted one, also in its record.
        constant = training.learning_rate_schedule == "constant"
        span = Span(0, training.samples) if saved is None or constant else Span(*saved)
        restarts = training.decay == "restart" and span.end != training.samples
        return Span(self.samples, training.samples) if restarts else span

    def stored_averages(self) -> dict[str, dict[str, Tensor]]:
        """Return the averages of `training.averages`, by the names of their parts in a checkpoint."""
        return {part: dict(average.state_dict()) for part, average in self.stored.items()}

    @property
    def snapshot_interval(self) -> int:
        """Number of samples between two snapshots of the averages, or 0."""
        count, batch = self.settings.training.averages.snapshots, self.settings.training.batch
        return max(batch, (self.span.end - self.span.start) // count) if count else 0

    def decay_note(self) -> str | None:
        """Return a note if the learning rate stays at the end of its decay, or None."""
        training = self.settings.training
        if training.learning_rate_schedule == "constant" or training.samples <= self.span.end:
            return None
        rate = self.learning_rate(self.span.end, training.batch, self.span)
        return (
            f"from {self.span.end:,} samples on, where training was to end, the learning rate is {rate:.3g}: "
            "training.decay=restart begins a new decay"
        )

    def averages(self) -> dict[str, float]:
        """Return the mean loss and gradient norm of the successful steps since the last call, and the learning rate.

        The result also contains `skipped_steps`, the total number of skipped steps, if it is not 0; loss and norm are
        missing if no step was successful. In float16 it contains the current `loss_scale`.
        """
        self._settle()
        loss, norm, count = self._window
        self._window = (0.0, 0.0, 0.0)
        means = {"loss": loss / count, "gradient_norm": norm / count} if count else {}
        skipped = {"skipped_steps": self.skipped} if self.skipped else {}
        scale = {} if self.loss_scale is None else {"loss_scale": float(self.loss_scale.value)}
        return means | {"learning_rate": self.optimizer.param_groups[0]["lr"]} | skipped | scale

    def _settle(self) -> None:
        """Read pending losses and gradient norms back from the device, and add them to the sums of `_window`."""
        if not self._pending:
            return
        rows = torch.stack(gathered(torch.stack(self._pending))).mean(0).tolist()  # over all ranks
        self._pending = []
        for loss, norm, scale in rows:
            self._last_skipped = not math.isfinite(norm)
            if not self._last_skipped:
                if math.isfinite(loss):
                    losses, norms, count = self._window
                    self._window = (losses + loss, norms + norm, count + 1)
                self._in_a_row = 0
                continue
            self.skipped += 1
            if scale > MINIMUM:
                continue
            self._in_a_row += 1
            if self._in_a_row >= self.settings.training.max_skips:
                raise DivergedError(
                    f"training diverged: {self._in_a_row} consecutive steps had a non-finite gradient (loss "
                    f"{loss}, gradient norm {norm}), within the first {self.samples:,} samples"
                )

    def state(self, position: int) -> State:
        """Return the state for a checkpoint; `position` is the tracker's position in the metrics file."""
        self._settle()
        tensors = {
            "network": dict(self.network.state_dict()),
            "ema": dict(self.ema.state_dict()),
            **self.stored_averages(),
            "optimizer": optimizer_tensors(self.network, self.optimizer),
        }
        if self.uncertainty is not None:
            tensors["uncertainty"] = dict(self.uncertainty.state_dict())
            tensors["uncertainty_optimizer"] = optimizer_tensors(self.uncertainty, self.uncertainty_optimizer)
        record = {
            "window": [value.hex() for value in self._window],
            "metrics_position": position,
            "skipped": self.skipped,
            "skipped_in_a_row": self._in_a_row,
            "last_skipped": self._last_skipped,
            "loss_scale": None if self.loss_scale is None else list(self.loss_scale.saved()),
            "rollbacks": self.rollbacks,
            "decay": [self.span.start, self.span.end],
        }
        return State(self.samples, tensors, record)

    def restore(self, state: State) -> int:
        """Restore a checkpoint's state, and return the tracker's position in the metrics file.

        Raises RecipeError if the state does not fit the network.
        """
        progress = Progress.of(state.record)
        load_module(self.network, state.tensors.get("network", {}), "network")
        load_module(self.ema, state.tensors.get("ema", {}), "average")
        for part, average in self.stored.items():
            load_module(average, state.tensors.get(part, {}), part)
        load_optimizer(self.network, self.optimizer, state.tensors.get("optimizer", {}))
        if self.uncertainty is not None:
            load_module(self.uncertainty, state.tensors.get("uncertainty", {}), "learned uncertainty")
            saved = state.tensors.get("uncertainty_optimizer", {})
            load_optimizer(self.uncertainty, self.uncertainty_optimizer, saved)
        self.samples, self._window, self._pending = state.samples, progress.window, []
        self.skipped, self._in_a_row = progress.skipped, progress.skipped_in_a_row
        self.rollbacks, self._last_skipped = progress.rollbacks, progress.last_skipped
        if self.loss_scale is not None:
            self.loss_scale.restore(progress.loss_scale)
        self.span = self._continued(progress.decay)
        return progress.metrics_position
