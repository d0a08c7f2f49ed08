"""Guidance: wrappers of a denoiser that are denoisers again."""

from __future__ import annotations

from torch import Tensor, nn

from multisagd.inputs import as_times
from multisagd.process import Process
from multisagd.sampling import AnyDenoiser

Interval = tuple[float, float]


class _Guided(nn.Module):
    """`weak + scale · (strong - weak)` inside an interval of log-SNR, the strong estimate alone outside it."""

    def __init__(self, denoiser: AnyDenoiser, scale: float, interval: Interval | None) -> None:
        super().__init__()
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"a guidance interval must increase in log-SNR, got {interval}")
        self.denoiser = denoiser
        self.scale = scale
        self.interval = interval

    @property
    def process(self) -> Process:
        """The process of the guided denoiser."""
        return self.denoiser.process

    def weak_estimate(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the estimate to move away from, shaped like x_t."""
        raise NotImplementedError

    def forward(self, x_t: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
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
    """Classifier-free guidance (arXiv 2207.12598), in an interval of log-SNR if given (arXiv 2404.07724).

    `scale` 1 means no guidance. The weak estimate is the denoiser's estimate without condition.

    Raises:
        ValueError: for an interval that is not increasing; in use, without a condition.
    """

    def __init__(self, denoiser: AnyDenoiser, scale: float, interval: Interval | None = None) -> None:
        super().__init__(denoiser, scale, interval)

    def weak_estimate(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the estimate of x0 without the condition, in the units of x_t and of its shape."""
        if condition is None:
            raise ValueError("classifier-free guidance needs a condition to guide towards")
        return self.denoiser(x_t, t, None)


class Autoguidance(_Guided):
    """Guidance by a weaker version of the same model, smaller or less trained (arXiv 2406.02507).

    Raises:
        ValueError: for an interval that is not increasing.
    """

    def __init__(
        self, denoiser: AnyDenoiser, weak: AnyDenoiser, scale: float, interval: Interval | None = None
    ) -> None:
        super().__init__(denoiser, scale, interval)
        self.weak = weak

    def weak_estimate(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the weaker model's estimate of x0 under the same condition, in the units of x_t and of its shape."""
        return self.weak(x_t, t, condition)
