"""The comparison of noise of channels judges samples as it says, compares arms of equal seeds, and fills its page."""

import math
from pathlib import Path

import pytest
import torch

import multisagd as ms
from benchmarks import channel_noise
from benchmarks.rows import append, rows
from tests.helpers import dense


def test_table_of_channel_noise_in_the_tutorial_is_up_to_date() -> None:
    text = channel_noise.PAGE.read_text(encoding="utf-8")
    assert channel_noise.BEGIN in text
    assert channel_noise.page(text) == text


def test_channel_noise_compares_samples_with_the_power_and_cross_power_of_data() -> None:
    grid = ms.Grid.of(y=6, x=5)
    x = dense.random(60, 2, 6, 5) + dense.random(60, 1, 6, 5, seed=1)
    statistics = ms.DataStatistics.measure([x], grid)
    real = channel_noise.Reference.of(x, statistics)
    same = real.compare(real)
    assert same["rings_db"] == same["cross_error"] == 0
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-9)
    louder = real.compare(channel_noise.Reference.of(2 * x, statistics))
    assert louder["rings_db"] == pytest.approx(20 * math.log10(2))
    assert louder["cross_error"] == pytest.approx(3)
    turned = real.compare(channel_noise.Reference.of(x * torch.tensor([1.0, -1.0]).reshape(2, 1, 1), statistics))
    assert turned["cross_error"] == pytest.approx(2)
    assert turned["rings_db"] == pytest.approx(0, abs=1e-9)


def test_channel_noise_compares_arms_of_equal_seeds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    shared = dict.fromkeys(channel_noise.COLUMNS, 1.0) | {"threads": 1}
    for seed in range(3):
        for noise, factor in (("shared", 1.0), ("full", 0.5 + 0.01 * seed), ("each", 1.0 + 0.1 * (seed - 1))):
            values = {**shared, "frechet_distance": (seed + 1) * factor, "bits_per_dimension": 2 + factor}
            arm = {"data": channel_noise.FIELDS, "noise": noise, "seed": seed, "samples": 10}
            append(channel_noise.EXPERIMENT, arm, values, path)
    text = channel_noise.table(path)
    assert "`full` is better than `shared`: 0.51 times as large" in text
    assert "`each` cannot be told from `shared`" in text
    assert "differ by -0.490" in text
    assert text in channel_noise.page(channel_noise.PAGE.read_text(encoding="utf-8"), path)


@pytest.mark.slow
def test_channel_noise_trains_each_arm_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    words = f"x --shrink 9999 --seeds 0 --noises basis full --results {path} --work {tmp_path / 'work'} --data"
    monkeypatch.setattr("sys.argv", [*words.split(), channel_noise.FIELDS])
    for _ in range(2):
        channel_noise.main()
        assert [row["arm"]["noise"] for row in rows(channel_noise.EXPERIMENT, path)] == ["basis", "full"]
    assert channel_noise.table(path) in capsys.readouterr().out
