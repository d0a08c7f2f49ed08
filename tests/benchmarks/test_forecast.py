"""The benchmark of forecasts judges ensembles as it says, and fills the tutorial."""

from pathlib import Path

import pytest
import torch

from benchmarks import forecast
from benchmarks.rows import rows


def test_table_of_forecasts_in_the_tutorial_is_up_to_date() -> None:
    text = forecast.PAGE.read_text(encoding="utf-8")
    assert forecast.page(text) == text


def test_judged_forecasts_have_the_scores_of_their_definitions() -> None:
    truth, members = torch.zeros(2, 3, 4, 4), torch.ones(2, 2, 3, 4, 4)
    members[0] = -1
    found = forecast.judged(members, truth)
    assert found["error"] == [0, 0, 0]
    assert found["crps"] == [0, 0, 0]  # one away on either side, and two from each other
    single = forecast.judged(members[1:], truth)
    assert (single["crps"], single["error"], single["ratio"]) == ([1, 1, 1], [1, 1, 1], [None] * 3)


@pytest.mark.slow
def test_benchmark_of_forecasts_trains_once_and_draws_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    words = f"x --shrink 9999 --seeds 0 --results {path} --work {tmp_path / 'work'} --keep"
    monkeypatch.setattr("sys.argv", words.split())
    for _ in range(2):
        forecast.main()
        assert [row["arm"]["forecast"] for row in rows(forecast.EXPERIMENT, path)] == [*forecast.REFERENCES, "model"]
    table = forecast.table(path)
    assert table in capsys.readouterr().out
    assert table in forecast.page(forecast.PAGE.read_text(encoding="utf-8"), path)
    monkeypatch.setattr("sys.argv", [*words.split(), "--picture"])
    forecast.main()
    assert (tmp_path / "work" / forecast.PICTURE.name).stat().st_size > 10_000
