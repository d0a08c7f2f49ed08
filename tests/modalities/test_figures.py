"""The default figures of a modality show every channel in its unit, on one scale, and no masked value."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from modalities import figures
from modalities.figures import plot_tensors
from modalities.variables import Variable
from multisagd import Grid

VARIABLES = (Variable("air temperature", "K", scale=20.0, offset=280.0), Variable("waves"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written."""
    seen: list[Any] = []
    write = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (seen.append(figure), write(figure, path)))
    return seen


def test_fields_are_drawn_by_channel_with_shared_scales_in_units(drawn: list[Any], tmp_path: Path) -> None:
    grid = Grid.of(time=3, latitude=(4, 1.0, "degree"), longitude=(6, 1.0, "degree"))
    x = torch.arange(3 * 2 * 72.0).reshape(3, 2, 3, 4, 6) / 100
    mask = torch.ones(2, 3, 4, 6, dtype=torch.bool)
    mask[1, :, :2] = False
    x[:, 1, :, :2] = 1e6  # land, which sets no scale
    x[2, 0, 1, 0, 0] = float("nan")
    path = tmp_path / "new" / "fields.png"
    plot_tensors(list(x), grid, path, names=["a", "b", "c"], masks=[mask, mask, mask], variables=VARIABLES)
    air, waves = drawn[0].subfigs
    for block, label, low, high in (
        (air, "air temperature (K)", 280.0, 280 + 20 * float(x[2, 0].nan_to_num().max())),
        (waves, "waves", float(x[0, 1, 0, 2, 0]), float(x[2, 1].masked_fill(~mask[1], 0).max())),
    ):
        *plots, bar = block.axes
        assert [plot.get_title() for plot in plots] == ["a", "b", "c"]
        assert bar.get_ylabel() == label
        for plot in plots:
            assert plot.images[0].get_clim() == pytest.approx((low, high))
            assert plot.images[0].get_cmap().get_bad()[:3] == pytest.approx((0.6,) * 3)
    shown = waves.axes[1].images[0].get_array()  # the middle slice
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~mask[1, 1].numpy())
    np.testing.assert_allclose(shown[2:], x[1, 1, 1, 2:].numpy(), rtol=1e-6)
    assert int(np.ma.getmaskarray(air.axes[2].images[0].get_array()).sum()) == 1
    assert path.read_bytes().startswith(b"\x89PNG")


def test_signals_are_drawn_by_channel_with_gaps(drawn: list[Any], tmp_path: Path) -> None:
    mask = torch.tensor([[True, True, False, True]])
    plot_tensors([torch.arange(8.0).reshape(2, 4)], Grid.of(time=(4, 0.5, "s")), tmp_path / "a.png", masks=[mask])
    for block, start in zip(drawn[0].subfigs, (0, 4), strict=True):
        (line,) = block.axes[0].lines
        np.testing.assert_array_equal(line.get_ydata(), [start, start + 1, np.nan, start + 3])
        np.testing.assert_array_equal(line.get_xdata(), [0.0, 0.5, 1.0, 1.5])
        assert block.get_supylabel() == f"channel {start // 4 + 1}"


def test_figures_of_many_channels_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_PIXELS", 1e5)
    plot_tensors([torch.rand(3, 4, 5)], Grid.of(y=4, x=5), tmp_path / "a.png")
    with Picture.open(tmp_path / "a.png") as picture:
        assert 0.9e5 < picture.width * picture.height < 1.1e5
    with pytest.raises(ValueError, match="variables must describe each of 3 channels, got 2"):
        plot_tensors([torch.rand(3, 4, 5)], Grid.of(y=4, x=5), tmp_path / "b.png", variables=VARIABLES)


def test_many_fields_are_drawn_as_tiles(drawn: list[Any], tmp_path: Path) -> None:
    x = torch.arange(50.0)[:, None, None, None].expand(50, 1, 2, 3)
    names = [f"${number}" for number in range(50)]
    plot_tensors(list(x), Grid.of(y=2, x=3), tmp_path / "a.png", columns=10, names=names)
    plot, _ = drawn[0].axes
    assert [float(image.get_array().mean()) for image in plot.images] == list(range(50))
    assert [text.get_text() for text in plot.texts] == names
    lefts, tops = (torch.tensor([image.get_extent()[side] for image in plot.images]) for side in (0, 3))
    assert bool((lefts.view(5, 10).diff() > 3).all() and (tops.view(5, 10).diff(dim=0) < -2).all())
    assert plot.images[7].get_clim() == (0, 49)
