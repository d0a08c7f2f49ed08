"""Loss scaling, with which gradients stay within the range of float16 (arXiv 1710.03740)."""

import torch
from torch import Tensor

INITIAL = 65536.0
MINIMUM = 1.0
INTERVAL = 2000
"""Number of successful steps in a row after which the scale is doubled."""


class LossScale:
    """The factor of the loss: halved after an overflow, down to 1, and doubled after many steps without an overflow.

    The rule is that of `torch.amp.GradScaler`, which cannot be used itself: it detects overflows in each rank's own
    gradients, but here the norm of the averaged gradient decides. Nothing is read back from the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restore(None)

    def restore(self, saved: tuple[float, int] | None) -> None:
        """Restore what `saved` returned, or the initial scale."""
        scale, steps = (INITIAL, 0) if saved is None else saved
        self.value = torch.tensor(scale, dtype=torch.float32, device=self.device)
        self._steps = torch.tensor(steps, device=self.device)

    def saved(self) -> tuple[float, int]:
        """Return the scale, and the number of steps since it last changed."""
        return float(self.value), int(self._steps)

    def update(self, overflow: Tensor) -> None:
        """Change the scale after a step; `overflow` is 1 if its gradient was not finite, or else 0."""
        failed, steps = overflow.to(self.device).bool(), self._steps + 1
        doubled = 2 * self.value
        grown = steps >= INTERVAL
        larger = torch.where(grown & doubled.isfinite(), doubled, self.value)
        self.value = torch.where(failed, (self.value / 2).clamp(min=MINIMUM), larger)
        self._steps = torch.where(failed | grown, torch.zeros_like(steps), steps)
