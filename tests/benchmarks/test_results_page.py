"""The page of results says what follows from the measured rows, by rules that are tested on made-up numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from benchmarks.experiments.tables import differences
from benchmarks.experiments.verdicts import FRECHET, METRICS, SPECTRUM, Estimate, gain, relative, sorted_out, verdict

from benchmarks.experiments import claims, measures, others, page, sections
from benchmarks.experiments.design import REAL, experiments, run_folder
from benchmarks.experiments.reading import flat
from benchmarks.rows import append
from multisagd import Corruption, Grid, Outside
from multisagd.covariance import filter_grid
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings

Distances = dict[str, float | list[float]]
NAN = math.nan
LAW, KEY = "power_law_mnist", FRECHET.key
LUCK = {0: 0.02, 1: -0.01, 2: 0.04}
"""What the seed adds to the distance of every arm."""
BANDS = ["[.1,.2]", "[.2,.3]", "[.4,.5]"]
WHOLE, ZERO, SLOPE = [0.70, 0.71, 0.69], [0.72, 0.70, 0.71], [1.00, 1.02, 0.98]
"""Distances of a power law, of its zero frequency (nearly the same gain), and of its slope (no gain)."""


def arms(distances: Distances) -> dict[str, dict[int, dict[str, float]]]:
    """Return rows by arm and seed; a single distance is that of three seeds."""
    spread = {arm: value if isinstance(value, list) else [value] * 3 for arm, value in distances.items()}
    return {
        arm: {seed: {KEY: value + LUCK[seed]} for seed, value in enumerate(values)} for arm, values in spread.items()
    }


def omission(projected: list[float], restored: list[float]) -> Distances:
    """Return distances where clean training has 1, white noise 11 and the papers' omission 9, in three bands."""
    distances: Distances = {"clean": 1.0}
    for place, band in enumerate(BANDS):
        distances |= {f"{band}: white": 11.0, f"{band}: papers' omission": [9.0, 9.1, 8.9]}
        distances |= {f"{band}: projected": projected[place], f"{band}: restored": restored[place]}
    return distances


def write(path: Path, name: str, distances: Distances) -> None:
    """Append complete rows, as experiments leave them."""
    versions = {"torch": "2.11.0", "multisagd": "0.1.0"}
    conditions = {"samples_seen": 48000, "reference": 5000, "count": 2000, "steps": 20, "versions": versions}
    for arm, seeds in arms(distances).items():
        for seed, row in seeds.items():
            rings = [round(0.1 * ring * row[KEY] - 0.3, 4) for ring in range(9)]
            values = row | {"spectrum_error_db": 0.5, "recognised": 0.9, "rings_db": rings}
            append(name, {"arm": arm, "size": "cpu", "seed": seed}, values | conditions, path)


def test_gain_pairs_seeds_so_that_their_luck_cancels() -> None:
    rows = arms({"white": 1.0, "arm": [0.9, 0.91, 0.89]})
    better_by = gain(rows, "arm", "white")
    assert (better_by.mean, better_by.error) == (pytest.approx(0.1), pytest.approx(0.01 / 3**0.5))
    assert verdict(better_by) == "**clearly better**"


def test_gain_knows_which_way_each_metric_is_better() -> None:
    """The nearer to zero, the better: both amplifying and removing a band are worse than restoring it."""
    metrics = {metric.key: metric for metric in METRICS}
    for key, better, worse in (("recognised", 0.9, 0.7), ("watched_db", -0.5, 12.0), ("watched_db", -0.5, -40.0)):
        rows = {
            arm: {seed: {key: value + seed / 100} for seed in range(3)}
            for arm, value in (("better", better), ("worse", worse))
        }
        assert verdict(gain(rows, "better", "worse", metrics[key])) == "**clearly better**"
        assert "**clearly worse**: `worse` (" in sorted_out(rows, [("worse", "better")], metrics[key])[0]


def test_verdict_follows_the_rule() -> None:
    for estimate, expected in (
        (Estimate(0.10, 0.06, 3), "no difference detected"),
        (Estimate(0.10, 0.04, 3), "**better**"),  # 2.5 standard errors, of 4.3 that 95 % would need
        (Estimate(-0.10, 0.02, 3), "**clearly worse**"),
        (Estimate(0.10, 0.04, 20), "**clearly better**"),
        (Estimate(0.10, 0.001, 2), "2 seeds: no verdict"),
        (Estimate(0.10, math.nan, 1), "1 seed: no verdict"),
        (None, "0 seeds: no verdict"),
    ):
        assert verdict(estimate) == expected, estimate


def test_estimate_ratio_has_the_error_of_the_delta_method() -> None:
    a, b = torch.tensor([[1.0, 2.1, 2.9], [2.0, 4.0, 6.0]], dtype=torch.float64)
    estimate = Estimate.ratio(a.tolist(), b.tolist())
    assert estimate.mean == pytest.approx(0.5)
    # Variances of the means and their covariance, propagated to first order.
    slope = torch.stack([1 / b.mean(), -a.mean() / b.mean() ** 2])
    covariance = torch.cov(torch.stack([a, b])) / 3
    assert estimate.error == pytest.approx(float(slope @ covariance @ slope) ** 0.5)
    assert Estimate.ratio([], []) is Estimate.ratio([1.0, 2.0], [1.0, -1.0]) is None


def test_differences_and_relative_changes_are_of_seeds_that_have_both_values() -> None:
    theirs = {0: {"m": 1.0}, 1: {}, 2: {"m": 1.0}, 3: {"m": NAN}}
    assert differences({0: {"m": 3.0}, 1: {"m": 2.0}, 2: {}, 3: {"m": 1.0}, 4: {"m": 1.0}}, theirs, "m") == [2.0]
    assert flat({"a": 1, "b": NAN, "c": {"x": 2.0, "y": "no"}, "d": [1.0], "e": True}) == {"a": 1.0, "c.x": 2.0}
    rows = {"white": {0: {KEY: 2.0}}, "arm": {0: {KEY: 1.0}, 2: {KEY: 9.0}}}
    assert relative(rows, "arm", "white") == [-0.5]
    with pytest.raises(ValueError, match="decibels"):
        relative(rows, "arm", "white", SPECTRUM)


def test_attribute_names_the_part_that_gains() -> None:
    for whole, zero, slope, expected in (
        (WHOLE, ZERO, SLOPE, "The gain is DC"),
        (WHOLE, SLOPE, ZERO, "The gain is not DC"),
        (WHOLE, [0.85, 0.84, 0.86], [0.85, 0.86, 0.84], "The gain is partly DC"),
        (WHOLE, SLOPE, [1.00, 0.97, 1.02], "It is undecided whether the gain is DC"),
        (WHOLE, [0.88, 0.90, 0.92], [0.80, 1.10, 0.85], "undecided whether the gain is DC**: one part gains, but no"),
        (SLOPE, ZERO, SLOPE, "**No gain is detected, so no gain can be DC**: no difference between `papers -.06` and"),
        ([1.30, 1.31, 1.32], SLOPE, SLOPE, "**There is no gain to be DC**: `papers -.06` is worse"),
        (WHOLE, ZERO, SLOPE, "gains 0.290 ± 0.006 (97 ± 3 %) and `slope of -.06 only` 0.000 ± 0.012 (0 ± 4 %)"),
        (WHOLE[:2], ZERO[:2], SLOPE[:2], "Is the gain DC? 2 seeds: no verdict (-0.295 ± 0.005, `papers -.06` against"),
        (WHOLE, ZERO[:2], [], "Not measured: one of the two parts has too few seeds"),
        ([], [], [], "Not measured"),
    ):
        rows = arms({"white": 1.0, claims.WHOLE: whole, claims.ZERO: zero, claims.SLOPE: slope})
        assert expected in claims.attribute(rows)[0]


def test_closing_reports_the_closed_share_of_each_gap() -> None:
    rows = arms(omission([8.0, 8.0, 9.5], [2.0, 3.0, 5.0]))
    assert claims.bands(rows) == BANDS
    assert claims.percent(claims.closed(rows, "[.1,.2]", "papers' omission")) == "20 ± 1 %"
    closing = claims.closing(rows, BANDS)
    assert "`restored` 90 ± 0 %" in closing[0]
    assert "`restored` 60 ± 0 %" in closing[2]
    rows = arms({"clean": [1.0, 1.2, 0.8], "[.1,.2]: white": 1.0, "[.1,.2]: restored": 0.9})
    assert "no gap to close" in claims.closing(rows, ["[.1,.2]"])[0]


def test_aims_are_met_in_enough_bands() -> None:
    """What the measured bands decide does not depend on the missing one; what they leave open does."""
    for projected, restored, missing, words in (
        ([8.0, 8.0, 9.5], [2.0, 2.5, 2.9], None, ("**Met**", "**Met**")),
        ([8.0, 9.0, 9.5], [2.0, 2.5, 5.0], None, (claims.NOT_MET, claims.NOT_MET)),
        ([8.0, 8.0, 8.0], [5.0, 5.0, 5.0], "[.4", ("**Met**", claims.NOT_MET)),
        ([8.0, 9.5, 8.0], [2.0, 2.0, 2.0], "[.4", ("**Not measured in all bands**: [.1,.2] met",) * 2),
    ):
        distances = omission(projected, restored)
        rows = arms({arm: row for arm, row in distances.items() if missing is None or missing not in arm})
        for sentence, expected in zip(claims.aims(rows, BANDS), words, strict=True):
            assert expected in sentence
            assert ("[.4,.5] not measured" in sentence) == (missing is not None)


def test_aims_clear_the_target_by_the_error_of_the_share() -> None:
    for white, restored, expected in (
        ([11.0] * 3, [2.5, 2.6, 2.4], "**Met**: [.1,.2] met, 85 ± 1 %."),
        ([11.0] * 3, [2.8, 1.8, 3.4], "**Undecided**: [.1,.2] undecided, 83 ± 5 %."),
        ([11.0] * 3, [5.0, 5.1, 4.9], "**Not met**: [.1,.2] not met, 60 ± 1 %."),
        ([11.0] * 3, [2.5, 2.5], "**Not measured in all bands**: [.1,.2] 2 seeds: no verdict."),
        # Each seed closes nine tenths of its own gap, which is as often below zero as above.
        ([1.5, 0.5, 1.6], [1.05, 0.95, 1.06], "**Undecided**: [.1,.2] undecided, no gap is detected (0.200"),
    ):
        rows = arms({"clean": 1.0, "[.1,.2]: white": white, "[.1,.2]: restored": restored})
        assert expected in claims.aims(rows, ["[.1,.2]"])[1]


@pytest.mark.parametrize("name", experiments())
def test_experiment_arms_compose_and_differ(name: str) -> None:
    experiment, configurations = experiments()[name], set()
    for arm in experiment.arms:
        config = configuration.load("train", [*experiment.arguments(arm, 0, "cpu"), "run_dir=r"])
        Builder(("benchmarks",)).settings(TrainSettings, config, "")
        configurations.add(json.dumps(config, default=str, sort_keys=True))
    assert len(configurations) == len(experiment.arms), "two arms are the same training"


def test_page_is_what_the_results_say() -> None:
    assert page.stale() == [], "run `python -m benchmarks.experiments.page` and commit what it writes"


def test_page_is_current_until_a_row_is_added(tmp_path: Path) -> None:
    path, docs = tmp_path / "results.jsonl", tmp_path / "docs"
    text, pictures = page.page(path)
    assert pictures == []
    for experiment, command in page.compared():
        assert f"**Not measured.** Run `{command or sections.runner(experiment)}` to measure it." in text
    write(path, LAW, {"white": 1.0, claims.WHOLE: WHOLE, REAL: 0.1})
    assert page.stale(path, docs) == ["results.md", "results_power_law_mnist.png"]
    page.write(path, docs)
    assert page.stale(path, docs) == []
    text = (docs / "results.md").read_text(encoding="utf-8")
    assert "| papers -.06 | white | -0.300 ± 0.006 |" in text
    assert "| -33 % |" in text
    assert text.index(f"| *{REAL}, the noise floor* |") > text.index("| papers -.06 | 0.")
    write(path, LAW, {claims.ZERO: 0.9})
    assert page.stale(path, docs) == ["results.md", "results_power_law_mnist.png"]


def test_inverse_problems_use_the_white_training_of_the_sweep() -> None:
    assert Path(others.WHITE).name == run_folder(experiments()[LAW].arguments("white", 0, "cpu"))
    assert f"WHITE := {others.WHITE}\n" in (Path(page.DOCS).parent / "Makefile").read_text()


def test_compare_measures_motion_and_power_where_the_data_were_corrupted() -> None:
    frames = Grid.of(frame=(6, 0.125, "s"), height=4, width=4)
    clean = torch.randn(20, 1, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    twice = 20 * math.log10(2)
    assert measures.compare(2 * clean, clean, frames, None) == {"frame_change_db": pytest.approx(twice)}
    assert measures.compare(clean[:, :, 0], clean[:, :, 0], Grid.of(height=4, width=4), None) == {}
    experiment = experiments()["hum_audio"]
    grid = Grid.of(time=(1024, 1 / 4000, "s"))
    hum = measures.watched(experiment, experiment.arguments("white", 0, "cpu"))
    # The clean arm is measured where the others are corrupted, unless each has a band of its own.
    assert measures.watched(experiment, experiment.arguments("clean", 0, "cpu")) == hum
    bands = experiments()["omission_mnist"]
    assert measures.watched(bands, bands.arguments("clean", 0, "cpu")) is None
    clean = torch.randn(50, 1, 1024, generator=torch.Generator().manual_seed(0))
    noisy = Corruption(hum, grid, level=1.0).corrupt(clean, range(50))
    assert measures.compare(clean, clean, grid, hum) == pytest.approx({"watched_db": 0, "elsewhere_db": 0})
    values = measures.compare(noisy, clean, grid, hum)
    assert (values["watched_db"] > 10, values["elsewhere_db"]) == (True, pytest.approx(0, abs=1e-5))
    omitted = filter_grid(2 * clean, Outside(hum).power(grid), 1)
    expected = {"watched_db": measures.LEAST, "elsewhere_db": twice}
    assert measures.compare(omitted, clean, grid, hum) == pytest.approx(expected, abs=1e-5)
