"""Errors of validation per noise level and band are exact for networks whose errors are known, with masks too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from modalities.base import Batch
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.reading import UnreadableFilesError
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import Loss, TrainSettings, Validation
from recipes.runtime.device import EngineSettings, Runtime
from recipes.training.validation import band_members, validate

ITEMS = 40
TRAINING = Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused"]), "")


class Constant(nn.Module):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.full_like(x, self.value)


def statistics_of(dataset: Digits) -> ms.DataStatistics:
    batch = dataset.batch(range(len(dataset)))
    data = batch.x0 if batch.mask is None else (batch.x0, batch.mask)
    return ms.DataStatistics.measure([data], dataset.modality.grid())


def measure(
    dataset: Digits, value: float = 0.0, *, levels: int = 3, bands: int = 4, batch: int = 16, **options: Any
) -> dict[str, Any]:
    """Validate a network whose output is constant: centred on the data, 0 is the mean of the data."""
    settings = replace(
        TRAINING,
        training=replace(TRAINING.training, batch=batch),
        loss=Loss("euclidean", "uniform", ms.UniformTimes()),
        validation=Validation(0.1, len(dataset), levels, bands),
    )
    statistics = options.pop("statistics", None) or statistics_of(dataset)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), dataset.modality.grid()))
    denoiser = ms.Denoiser(Constant(value), process, **{"prediction": "x0", "statistics": statistics, **options})
    runtime = Runtime(torch.device("cpu"), EngineSettings())
    return validate(denoiser, dataset, statistics, settings, runtime, False)


def digits(items: int = ITEMS, kind: type[Digits] = Digits, **options: Any) -> Digits:
    return kind(Image(**{"size": 8, "channels": 1, **options})).subset(range(items))  # type: ignore[return-value]


@pytest.mark.parametrize("dimensions", [(16,), (9,), (8, 9), (4, 6, 5)])
def test_band_members_share_out_the_whole_spectrum(dimensions: tuple[int, ...]) -> None:
    grid = ms.Grid.of(**{f"axis{i}": (size, 0.1 * (i + 1), f"unit{i}") for i, size in enumerate(dimensions)})
    members, names = band_members(grid, 5)
    assert len(members) == len(names)
    assert torch.equal(members.sum(0), grid.multiplicity.double())
    assert float(members[0].sum()) == 1


def test_validate_scores_the_mean_of_the_data_one_in_every_band_and_offsets_at_zero_frequency() -> None:
    data = digits(size=(8, 9))
    values, moved = measure(data), measure(data, 0.5)
    for key, bands in values["band"].items():
        for name, value in bands.items():
            assert value == pytest.approx((ITEMS - 1) / ITEMS, rel=1e-5), name
            if name == "0":
                assert moved["band"][key][name] > value + 0.1
            else:
                assert moved["band"][key][name] == pytest.approx(value, rel=1e-4)
    for level in values["level"].values():
        assert level["error"] == pytest.approx(statistics_of(data).sigma_data ** 2 * (ITEMS - 1) / ITEMS, rel=1e-5)


def test_validate_does_not_depend_on_the_batch() -> None:
    one, other = (measure(digits(size=(8, 9)), 0.1, batch=batch, prediction="v") for batch in (7, 40))
    for kind in ("level", "band"):
        for key in one[kind]:
            assert one[kind][key] == pytest.approx(other[kind][key], rel=1e-5)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


class Unreadable(Digits):
    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        raise UnreadableFilesError("9 of 10 files could not be read")


def test_validate_reports_unreadable_files_in_one_message() -> None:
    with pytest.raises(RecipeError, match="9 of 10 files"):
        measure(digits(kind=Unreadable), statistics=statistics_of(digits()))


class Cut(Digits):
    """Digits whose right part is masked, with large values there."""

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        x0 = super().batch(indices, seeds).x0.clone()
        mask = torch.ones_like(x0, dtype=torch.bool)
        mask[..., 5:] = False
        return Batch(x0.masked_fill(~mask, 100.0), None, mask)


class Land(Digits):
    """Two channels of the same digits: the first cut at random lengths, the second with a hole; zero there."""

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        x0 = super().batch(indices, seeds).x0.repeat(1, 2, 1, 1)
        mask = torch.ones_like(x0, dtype=torch.bool)
        for row, index in enumerate(indices):
            mask[row, 0, :, 4 + index % 5 :] = False
        mask[:, 1, 3:5, 2:4] = False
        return Batch(x0.masked_fill(~mask, 0.0), None, mask)


@pytest.mark.parametrize(("kind", "items"), [(Cut, ITEMS), (Land, 300)])
def test_validate_takes_means_over_valid_values(kind: type[Digits], items: int) -> None:
    """By brute force; a mask may differ among channels, and the mean of the data then scores one in every band."""
    dataset = digits(items, kind)
    values, data = measure(dataset, levels=2), dataset.batch(range(items))
    assert data.mask is not None
    rest = (data.x0.double() - statistics_of(dataset).mean).square()
    expected = float(torch.stack([each[valid].mean() for each, valid in zip(rest, data.mask, strict=True)]).mean())
    for level in values["level"].values():
        assert level["error"] == pytest.approx(expected, rel=1e-4)
        assert level["loss"] == pytest.approx(expected, rel=1e-4)
    for bands in values["band"].values() if kind is Land else ():
        for name, value in bands.items():
            assert value == pytest.approx(1, abs=0.15), name
