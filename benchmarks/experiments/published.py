"""Results from the papers, for comparison with ours: FIDs of the papers' own metric, so only ratios are comparable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Inception distances (FID) of an arm and of white noise in the same setting."""

    white: float
    value: float
    source: str = "arXiv 2510.09660"

    @property
    def relative(self) -> float:
        """Return the relative change, which is negative if the arm is better."""
        return self.value / self.white - 1


PUBLISHED: dict[str, dict[str, Published]] = {
    "power_law_mnist": {"papers -.06": Published(0.42, 0.28)},
    "omission_mnist": {
        # the papers draw the corruption again each time
        "[.2,.3] redrawn: papers' omission": Published(3.66, 3.04),
        "[.1,.2]: papers' omission": Published(3.23, 2.76),
        "[.2,.3]: papers' omission": Published(3.66, 3.04),
        "[.3,.4]: papers' omission": Published(3.48, 3.00),
        "[.4,.5]: papers' omission": Published(3.43, 2.92),
        "[.5,.6]: papers' omission": Published(3.36, 2.83),
        "[.6,.7]: papers' omission": Published(3.24, 2.70),
        "[.7,.8]: papers' omission": Published(3.04, 2.55),
        "[.8,.9]: papers' omission": Published(3.47, 2.51),
    },
}
"""Published results by experiment and arm. Only arms with the papers' own method have an entry."""

BEST_EXPONENTS: dict[str, tuple[Published, str]] = {
    "MNIST": (Published(0.42, 0.28), "-.06"),
    "CIFAR-10": (Published(0.75, 0.75), ""),
    "Quickdraw": (Published(0.60, 0.49), "-.04"),
    "WikiArt": (Published(1.06, 1.02), ""),
    "FFHQ": (Published(1.11, 1.04), ""),
    "ImageNet-256 (latent)": (Published(8.68, 7.55), "-.04"),
}
"""The papers' best power law on each of their datasets, and its exponent if it is stated."""
