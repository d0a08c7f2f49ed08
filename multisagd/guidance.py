"""Guide sampling: each class wraps a denoiser and is itself a denoiser."""

from __future__ import annotations

from torch import Tensor, nn

from multisagd.condition import AnyCondition, only_scalars, says_what_is_shown
from multisagd.inputs import as_times
from multisagd.process import Process
from multisagd.sampling import AnyDenoiser

Interval = tuple[float, float]


class _Guided(nn.Module):
    """Estimate x0 by `weak + scale · (strong - weak)` in an interval of log-SNR, and by `strong` outside it."""

    def __init__(self, denoiser: AnyDenoiser, scale: float, interval: Interval | None) -> None:
        super().__init__()
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"a guidance interval must be two increasing log-SNRs, got {interval}")
        self.denoiser = denoiser
        self.scale = scale
        self.interval = interval

    @property
    def process(self) -> Process:
        """The process of the guided denoiser."""
        return self.denoiser.process

    def weak_estimate(self, x_t: Tensor, t: Tensor, condition: AnyCondition) -> Tensor:
        """Return the estimate of x0 to move away from, in the shape and units of x_t."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor | float, condition: AnyCondition = None) -> Tensor:
        """Return the guided estimate of x0, shaped like x_t `(batch, channels, *grid)`."""
        t = as_times(t)
        strong = self.denoiser(x_t, t, condition)
        log_snr = self.process.schedule.log_snr(t.to(x_t.device))
        low, high = self.interval or (float("-inf"), float("inf"))
        inside = (log_snr >= low) & (log_snr <= high)
        if self.scale == 1 or not bool(inside.any()):
            return strong
        scale = (1 + (self.scale - 1) * inside.to(strong.dtype)).reshape(-1, *(1,) * (x_t.dim() - 1))
        weak = self.weak_estimate(x_t, t, condition)
        return weak + scale * (strong - weak)


class ClassifierFree(_Guided):
    """Guide a denoiser with its own unconditional estimate: classifier-free guidance (arXiv 2207.12598).

    The unconditional estimate has no class, no text and no dense condition, but the same scalars.
    `scale` 1 means no guidance. If an `interval` of log-SNR is given, guidance is limited to it (arXiv 2404.07724).

    Raises:
        ValueError: If the interval is not increasing; from `forward`, if there is no condition.
    """

    def __init__(self, denoiser: AnyDenoiser, scale: float, interval: Interval | None = None) -> None:
        super().__init__(denoiser, scale, interval)

    def weak_estimate(self, x_t: Tensor, t: Tensor, condition: AnyCondition) -> Tensor:
        """Return the estimate of x0 without class, text and dense condition, in the shape and units of x_t."""
        if not says_what_is_shown(condition):
            raise ValueError(
                "classifier-free guidance needs a class, a text or a dense condition to guide towards; pass one, or "
                "use scale=1"
            )
        return self.denoiser(x_t, t, only_scalars(condition))


class Autoguidance(_Guided):
    """Guide a denoiser with a weaker (smaller or less trained) version of the same model (arXiv 2406.02507).

    Raises:
        ValueError: If the interval is not increasing.
    """

    def __init__(
        self, denoiser: AnyDenoiser, weak: AnyDenoiser, scale: float, interval: Interval | None = None
    ) -> None:
        super().__init__(denoiser, scale, interval)
        self.weak = weak

    def weak_estimate(self, x_t: Tensor, t: Tensor, condition: AnyCondition) -> Tensor:
        """Return the weaker model's estimate of x0 under the same condition, in the shape and units of x_t."""
        return self.weak(x_t, t, condition)
