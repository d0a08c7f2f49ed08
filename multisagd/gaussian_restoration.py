"""Estimate clean data from corrupted data and their full covariance, as if both were Gaussian.

If a band of the data is corrupted by Gaussian noise of known power, `x' = x0 + n` with `n ~ N(0, Σ_n)`, the covariance
S of x' can be measured. By Tweedie's formula for Gaussian data, it determines the linear estimate of x0:

    E[x0 | x'] = x' - Σ_n S⁻¹ (x' - μ),    Cov[x0 | x'] = Σ_n - Σ_n S⁻¹ Σ_n

S is the full covariance of all pairs of samples, not diagonal in frequency: for data that are not stationary, such as
objects in front of a fixed background, a band can be predicted from all other frequencies, which the Wiener filter
cannot do. A network is then trained on the restored data. This is the first step of learning a prior from corrupted
data by expectation-maximisation (arXiv 2405.13712) with a Gaussian prior.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multisagd.corruption import Corruption
from multisagd.covariance import SpectralCovariance, filter_grid
from multisagd.files import check_file, parse_json
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.spectrum import Flat
from multisagd.statistics import describe_axes, read_axes

FORMAT_VERSION = 1

MAX_NUMBERS = 8192
"""Maximum number of values in an example, over all channels: larger covariances do not fit into memory."""

QUIET = 1e-9
"""Minimum power assumed at every frequency, as a fraction of the largest."""

IMPOSSIBLE = -0.1
"""A risk below this cannot be due to chance: the noise differs from its description."""

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates for the ridge on the diagonal of S, as fractions of the variance of the data without the corruption."""

SHRINKAGES = (1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0)
"""Candidates for the shrinkage of S towards a covariance that is diagonal in frequency: 1 is the Wiener filter."""


@dataclass(frozen=True, eq=False)
class GaussianRestoration:
    """The Gaussian estimate of clean data `(channels, *grid)` from corrupted data, as matrices over all values.

    `gain` `(n, n)` is `Σ_n S⁻¹`, and `root` `(n, k)` is a factor R of the conditional covariance `R Rᵀ`; both are
    float64. `risk` is an estimate of the mean squared error in the band, divided by the power of the corruption there.
    If the error is small, the estimate may be negative by chance.
    """

    mean: Tensor
    gain: Tensor
    root: Tensor
    grid: Grid
    risk: float

    @classmethod
    def fit(cls, batches: Iterable[Tensor], corruption: Corruption) -> GaussianRestoration:
        """Fit the estimate to batches `(batch, channels, *grid)` of corrupted data in any units, which are read twice.

        S gets a ridge on its diagonal and is shrunk towards the covariance of stationary data of the same spectrum.
        Both amounts minimise Stein's unbiased estimate of the squared error: S is computed from one half of the
        examples, and the error from the other half. This needs no clean data; with few data the result is close to the
        Wiener filter.

        Raises:
            ValueError: If there are fewer than four examples, or the data do not match the corruption's grid, are not
                finite, have more than `MAX_NUMBERS` values each, or have a covariance that contradicts the corruption.
        """
        if isinstance(batches, Iterator):
            raise ValueError("batches are read twice: pass a list or a loader, not a generator")
        shape, mean, halves, counts = _moments(batches, corruption.grid)
        noise = _dense(corruption, shape[0])

        whole = (halves[0] + halves[1]) / (sum(counts) - 1)
        # The data may be weaker than the corruption: the ridge is relative to the data only.
        variance = float((whole - noise).diagonal().mean().clamp(min=1e-3 * float(whole.diagonal().mean())))
        identity = torch.eye(len(noise), dtype=torch.float64, device="cpu")

        def gain_of(covariance: Tensor, ridge: float, shrinkage: float) -> Tensor:
            shrunk = (1 - shrinkage) * covariance + shrinkage * _stationary(covariance, shape[0], corruption.grid)
            # S and Σ_n are symmetric: Σ_n S⁻¹ is the transpose of S⁻¹ Σ_n.
            return torch.linalg.solve(shrunk + ridge * variance * identity, noise).T

        def risk(ridge: float, shrinkage: float) -> float:
            total = 0.0
            for one, other in ((0, 1), (1, 0)):
                gain = gain_of(halves[one] / counts[one], ridge, shrinkage)
                moved = gain @ (halves[other] / counts[other])
                total += float((moved * gain).sum() - 2 * (gain * noise).sum() + noise.diagonal().sum())
            return total / 2 / float(noise.diagonal().sum())

        ridges = {ridge: risk(ridge, SHRINKAGES[0]) for ridge in RIDGES}
        ridge = min(ridges, key=ridges.__getitem__)
        risks = {shrinkage: risk(ridge, shrinkage) for shrinkage in SHRINKAGES}
        shrinkage = min(risks, key=risks.__getitem__)
        if risks[shrinkage] < IMPOSSIBLE and sum(counts) > len(noise):
            raise ValueError(
                "the data have less power in the band than this corruption, or different correlations: check the "
                "level of the corruption, and whether the channels share it"
            )
        gain = gain_of(whole, ridge, shrinkage)
        left = noise - gain @ noise
        values, vectors = torch.linalg.eigh((left + left.T) / 2)
        kept = values > 1e-9 * float(noise.diagonal().max())
        # Chance makes some eigenvalues negative and others too large; their sum is unbiased and is kept.
        scale = (values.sum() / values[kept].sum()).clamp(min=0) if bool(kept.any()) else torch.ones((), device="cpu")
        root = vectors[:, kept] * (scale * values[kept]).sqrt()
        return cls(mean.reshape(shape), gain, root, corruption.grid, risks[shrinkage])

    def save(self, path: str | Path) -> None:
        """Write the estimate as safetensors, with the grid in the metadata."""
        described = {"format_version": FORMAT_VERSION, "risk": self.risk, "axes": describe_axes(self.grid)}
        tensors = {"mean": self.mean, "gain": self.gain, "root": self.root}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, str(path), metadata={"restoration": json.dumps(described)})

    @classmethod
    def load(cls, path: str | Path) -> GaussianRestoration:
        """Read a file written by `save`.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If the file is not a restoration file, or has a different format version.
        """
        try:
            return cls._read(path)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a restoration file: {error}") from error

    @classmethod
    def _read(cls, path: str | Path) -> GaussianRestoration:
        check_file(path)
        with safe_open(str(path), framework="pt") as file:
            described: Any = parse_json((file.metadata() or {}).get("restoration", "{}"))
            if not isinstance(described, dict) or described.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"{path} is not a restoration file of format {FORMAT_VERSION}")
            grid, risk = read_axes(described["axes"]), described["risk"]
            if not isinstance(risk, float):
                raise ValueError(f"the risk in {path} must be a number, got {risk!r:.80}")
            # Before reading: a header may declare any shape.
            mean, gain, root = (tuple(file.get_slice(name).get_shape()) for name in ("mean", "gain", "root"))
            numbers = math.prod(mean)
            if mean[1:] != grid.shape or gain != (numbers, numbers) or root[:-1] != (numbers,) or root[-1] > numbers:
                raise ValueError(f"tensors of shapes {mean}, {gain} and {root} do not match a grid of {grid.shape}")
            if numbers > MAX_NUMBERS:
                raise ValueError(f"{path} is for data of {numbers:,} values, more than the limit of {MAX_NUMBERS:,}")
            # Copies, because the file is mapped into memory: overwriting it would invalidate the tensors.
            kept = {name: file.get_tensor(name).to(torch.float64, copy=True) for name in ("mean", "gain", "root")}
            if not all(bool(tensor.isfinite().all()) for tensor in kept.values()):
                raise ValueError(f"{path} contains values that are not finite")
            return cls(kept["mean"], kept["gain"], kept["root"], grid, risk)

    def restore(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return the conditional mean of clean data given x `(batch, channels, *grid)`, or a sample if seeds are given.

        In the band, the mean lacks the power that other frequencies do not determine; a sample, with one seed per item,
        has the power of the data. Outside the band x is unchanged. The result is shaped like x.

        Raises:
            ValueError: If the data have a different shape.
        """
        if tuple(x.shape[1:]) != tuple(self.mean.shape):
            raise ValueError(f"this restoration is for shape {tuple(self.mean.shape)}, got {tuple(x.shape[1:])}")
        x = as_data(x)
        away = (x.to("cpu", torch.float64) - self.mean).flatten(1)
        restored = away - away @ self.gain.T
        if seeds is not None:
            white = SpectralCovariance(Flat(), self.grid).sample(seeds, x.shape[1]).double().flatten(1)
            # The root has fewer columns than an example has values, and any orthogonal mixture of them is equivalent.
            restored = restored + white[:, : self.root.shape[1]] @ self.root.T
        return (restored.reshape(x.shape) + self.mean).to(x)


def _moments(batches: Iterable[Tensor], grid: Grid) -> tuple[torch.Size, Tensor, list[Tensor], list[int]]:
    """Return an example's shape, the mean, and the scatter matrix and number of examples of each half."""
    total, count = torch.zeros((), device="cpu"), 0
    shape = torch.Size()
    for x in batches:
        if tuple(x.shape[2:]) != grid.shape or not bool(x.isfinite().all()):
            raise ValueError(f"expected finite data (batch, channels, *{grid.shape}), got {tuple(x.shape)}")
        shape = x.shape[1:]
        if shape.numel() > MAX_NUMBERS:
            raise ValueError(
                f"an example has {shape.numel():,} values, but the covariance of more than {MAX_NUMBERS:,} would not "
                "fit into memory: restore on a smaller grid, or train a network to restore the data "
                "(RestoringDenoiser)"
            )
        total, count = total + x.to("cpu", torch.float64).flatten(1).sum(0), count + len(x)
    if count < 4:
        raise ValueError(f"estimating a covariance requires at least 4 examples, got {count}")
    mean = total / count
    halves = [torch.zeros(len(mean), len(mean), dtype=torch.float64, device="cpu") for _ in range(2)]
    counts, first = [0, 0], 0
    for x in batches:
        away = x.to("cpu", torch.float64).flatten(1) - mean
        for half in range(2):
            part = away[(half - first) % 2 :: 2]
            halves[half] += part.T @ part
            counts[half] += len(part)
        first += len(x)
    return shape, mean, halves, counts


def _dense(corruption: Corruption, channels: int) -> Tensor:
    """Return the covariance matrix `(n, n)` of a corruption over all n values of an example."""
    one = _circulant(corruption.power(), corruption.grid)
    between = torch.ones(channels, channels, device="cpu") if corruption.shared else torch.eye(channels, device="cpu")
    return torch.kron(between.double(), one)


def _stationary(covariance: Tensor, channels: int, grid: Grid) -> Tensor:
    """Return the covariance `(n, n)` of stationary data of the same spectrum, channel by channel."""
    dims, size = tuple(range(1, 1 + grid.dimensions)), grid.numel
    unit = torch.eye(size, dtype=torch.float64, device="cpu").reshape(size, *grid.shape)
    transform = torch.fft.fftn(unit, dim=dims, norm="ortho").reshape(size, size)
    blocks = []
    for channel in range(channels):
        own = slice(channel * size, (channel + 1) * size)
        power = ((covariance[own, own].to(transform.dtype) @ transform.conj()) * transform).sum(0).real
        # Frequencies without data power must not make the covariance singular.
        power = power.reshape(grid.shape).clamp(min=QUIET * float(power.max()))
        blocks.append(_circulant(power[..., : grid.half_shape[-1]], grid))
    return torch.block_diag(*blocks)


def _circulant(power: Tensor, grid: Grid) -> Tensor:
    """Return the matrix `(n, n)` that is diagonal in frequency with this power on the half spectrum."""
    unit = torch.eye(grid.numel, dtype=torch.float64, device="cpu").reshape(grid.numel, *grid.shape)
    matrix = filter_grid(unit, grid.even(power), grid.dimensions).reshape(grid.numel, grid.numel)
    return (matrix + matrix.T) / 2
