"""What samples start from, if not from noise alone: media, and which of their values are known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from multisagd import DataStatistics
from multisagd.condition import AnyCondition
from multisagd.inpainting import InpaintingDenoiser
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser
from multisagd.u_turn import vary


@dataclass(frozen=True, eq=False)
class Start:
    """The data x0 (count, channels, *grid) that samples start from, in which fraction of the steps (`strength`).

    `known` is bool (count, 1 or channels, *grid), True for values with which the samples agree, or None. `statistics`
    are those of the training data.
    """

    x0: Tensor
    strength: float
    statistics: DataStatistics
    known: Tensor | None = None

    def taken(self, indices: Sequence[int], put: Callable[[Tensor], Tensor]) -> Self:
        """Return the start of some samples, moved to the device by `put`."""
        known = None if self.known is None else put(self.known[indices])
        return replace(self, x0=put(self.x0[indices]), known=known)

    def draw(
        self, denoiser: AnyDenoiser, sampler: Sampler, times: Tensor, seeds: Sequence[int], condition: AnyCondition
    ) -> Tensor:
        """Return one sample for each seed, (count, channels, *grid), in the last steps of those between `times`.

        Raises:
            ValueError: If the strength takes no step, or known values cannot guide the process.
        """
        if self.known is not None:
            denoiser = InpaintingDenoiser(denoiser, self.x0, self.known, self.statistics)
        return vary(denoiser, sampler, self.x0, self.strength, times, seeds, condition)
