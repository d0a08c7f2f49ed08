from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from modalities.base import Batch
from modalities.image import Image
from modalities.image_sets import Digits, Pixels
from modalities.reading import UnreadableFilesError
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import Loss, TrainSettings, Validation
from recipes.runtime.device import EngineSettings, Runtime
from recipes.training.validation import band_members, validate

RUNTIME = Runtime(torch.device("cpu"), EngineSettings())
LOSS = Loss("euclidean", "uniform", ms.UniformTimes())
ITEMS = 40
TRAINING = Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused"]), "")


def settings(items: int, levels: int, bands: int, batch: int) -> TrainSettings:
    training = replace(TRAINING.training, batch=batch)
    return replace(TRAINING, training=training, validation=Validation(0.1, items, levels, bands), loss=LOSS)


class Constant(nn.Module):
    """A network that always says the same."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.full_like(x, self.value)


def measure(network: nn.Module, batch: int = 16, prediction: str = "x0") -> tuple[dict[str, Any], ms.DataStatistics]:
    digits = Digits(Image(size=(8, 9), channels=1)).subset(range(ITEMS))
    statistics = ms.DataStatistics.measure([digits.batch(range(ITEMS)).x0], digits.modality.grid())
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), digits.modality.grid()))
    denoiser = ms.Denoiser(network, process, prediction=prediction, statistics=statistics)  # type: ignore[arg-type]
    values = validate(denoiser, digits, statistics, settings(ITEMS, 3, 4, batch), RUNTIME, False)
    return values, statistics


@pytest.mark.parametrize("dimensions", [(16,), (9,), (8, 9), (4, 6, 5)])
def test_bands_share_out_the_whole_spectrum(dimensions: tuple[int, ...]) -> None:
    grid = ms.Grid.of(**{f"axis{i}": (size, 0.1 * (i + 1), f"unit{i}") for i, size in enumerate(dimensions)})
    members, names = band_members(grid, 5)
    assert len(members) == len(names)
    assert torch.equal(members.sum(0), grid.multiplicity.double())
    assert float(members[0].sum()) == 1


def test_the_mean_of_the_data_scores_one_in_every_band() -> None:
    # Centred on the data, an output of zero is the data's own mean.
    values, statistics = measure(Constant())
    for bands in values["band"].values():
        for name, value in bands.items():
            assert value == pytest.approx((ITEMS - 1) / ITEMS, rel=1e-5), name
    for level in values["level"].values():
        assert level["error"] == pytest.approx(statistics.sigma_data**2 * (ITEMS - 1) / ITEMS, rel=1e-5)


def test_a_constant_error_is_in_the_band_of_zero_frequency() -> None:
    (still, _), (moved, _) = measure(Constant()), measure(Constant(0.5))
    for key, bands in moved["band"].items():
        for name, value in bands.items():
            if name == "0":
                assert value > still["band"][key][name] + 0.1
            else:
                assert value == pytest.approx(still["band"][key][name], rel=1e-4)


def test_it_does_not_depend_on_the_batch() -> None:
    one, other = (measure(Constant(0.1), batch, "v")[0] for batch in (7, 40))
    for kind in ("level", "band"):
        for key in one[kind]:
            assert one[kind][key] == pytest.approx(other[kind][key], rel=1e-5)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_unreadable_files_are_one_clear_error() -> None:
    class Unreadable(Digits):
        def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
            raise UnreadableFilesError("9 of 10 files could not be read")

    digits = Unreadable(Image(size=8, channels=1))
    statistics = ms.DataStatistics.measure([Pixels.batch(digits, range(9)).x0], digits.modality.grid())
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), digits.modality.grid()))
    with pytest.raises(RecipeError, match="9 of 10 files"):
        validate(ms.Denoiser(Constant(), process), digits, statistics, settings(9, 1, 1, 9), RUNTIME, False)


def test_masked_samples_do_not_count() -> None:
    class Masked(Digits):
        def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
            x0 = super().batch(indices, seeds).x0.clone()
            mask = torch.ones_like(x0, dtype=torch.bool)
            mask[..., 5:] = False
            x0[..., 5:] = 100.0
            return Batch(x0, None, mask)

    digits = Masked(Image(size=8, channels=1)).subset(range(ITEMS))
    plain = digits.batch(range(ITEMS))
    statistics = ms.DataStatistics.measure([(plain.x0, plain.mask)], digits.modality.grid())
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), digits.modality.grid()))
    denoiser = ms.Denoiser(Constant(), process, prediction="x0", statistics=statistics)
    values = validate(denoiser, digits, statistics, settings(ITEMS, 2, 3, 16), RUNTIME, False)
    left = plain.x0[..., :5].double()
    expected = float((left - left.mean(0)).square().mean())
    for level in values["level"].values():
        assert level["error"] == pytest.approx(expected, rel=1e-4)
        assert level["loss"] == pytest.approx(expected, rel=1e-4)


class Land(Digits):
    """Two channels of the same digits: the first cut at random lengths, the second with a hole; zero there."""

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        x0 = super().batch(indices, seeds).x0.repeat(1, 2, 1, 1)
        mask = torch.ones_like(x0, dtype=torch.bool)
        for row, index in enumerate(indices):
            mask[row, 0, :, 4 + index % 5 :] = False
        mask[:, 1, 3:5, 2:4] = False
        return Batch(x0.masked_fill(~mask, 0.0), None, mask)


def test_a_mask_may_differ_among_channels() -> None:
    """The mean of the data scores one in every band, and errors are means over valid values, by brute force."""
    items = 300
    digits = Land(Image(size=8, channels=1)).subset(range(items))
    grid, data = digits.modality.grid(), digits.batch(range(items))
    assert data.mask is not None
    statistics = ms.DataStatistics.measure([(data.x0, data.mask)], grid)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid))
    denoiser = ms.Denoiser(Constant(), process, prediction="x0", statistics=statistics)
    values = validate(denoiser, digits, statistics, settings(items, 1, 4, 64), RUNTIME, False)
    rest = (data.x0.double() - statistics.mean).square()
    expected = float(torch.stack([each[valid].mean() for each, valid in zip(rest, data.mask, strict=True)]).mean())
    (level,), (bands,) = values["level"].values(), values["band"].values()
    assert level["error"] == pytest.approx(expected, rel=1e-4)
    assert level["loss"] == pytest.approx(expected, rel=1e-4)
    for name, value in bands.items():
        assert value == pytest.approx(1, abs=0.15), name
