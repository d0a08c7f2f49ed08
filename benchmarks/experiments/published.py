"""Results from the papers, for comparison with ours: FIDs of the papers' own metric, so only ratios are comparable."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2510.09660"


@dataclass(frozen=True)
class Published:
    """Inception distances (FID) of an arm and of white noise in the same setting."""

    white: float
    value: float

    @property
    def relative(self) -> float:
        """Return the relative change, which is negative if the arm is better."""
        return self.value / self.white - 1


POWER_LAWS: dict[str, Published] = {
    "MNIST, -.06": Published(0.42, 0.28),
    "CIFAR-10": Published(0.75, 0.75),
    "Quickdraw, -.04": Published(0.60, 0.49),
    "WikiArt": Published(1.06, 1.02),
    "FFHQ": Published(1.11, 1.04),
    "ImageNet-256 (latent), -.04": Published(8.68, 7.55),
}
"""The papers' best power law on each of their datasets, with its exponent if it is stated."""

OMISSION: dict[str, Published] = {
    "[.1,.2]": Published(3.23, 2.76),
    "[.2,.3]": Published(3.66, 3.04),
    "[.3,.4]": Published(3.48, 3.00),
    "[.4,.5]": Published(3.43, 2.92),
    "[.5,.6]": Published(3.36, 2.83),
    "[.6,.7]": Published(3.24, 2.70),
    "[.7,.8]": Published(3.04, 2.55),
    "[.8,.9]": Published(3.47, 2.51),
}
"""The papers' omission of one corrupted band on MNIST; they draw the corruption again each time."""
