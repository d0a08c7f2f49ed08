"""The page of results: what it says follows from the rows, by rules that are held against numbers made for them."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.experiments import claims, measures, others, page, sections
from benchmarks.experiments.design import REAL, Experiment, experiments, run_folder
from benchmarks.experiments.reading import Results, flat
from benchmarks.experiments.tables import differences, show, with_error
from benchmarks.experiments.verdicts import (
    FRECHET,
    METRICS,
    Estimate,
    Measured,
    gain,
    relative,
    sorted_out,
    told_worse,
    verdict,
)
from benchmarks.rows import append
from multisagd import Corruption, Grid, Outside
from multisagd.covariance import filter_grid
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings

NOISE = {0: 0.02, 1: -0.01, 2: 0.04}
"""How much luck each seed has, all arms alike."""


def measured(**distances: list[float] | float) -> dict[str, dict[int, dict[str, float]]]:
    """Return rows of arms, written `papers__06` or as given in a mapping, of three seeds each."""
    return arms(distances)


def arms(distances: dict[str, float | list[float]]) -> dict[str, dict[int, dict[str, float]]]:
    spread = {arm: value if isinstance(value, list) else [value] * 3 for arm, value in distances.items()}
    return {
        arm: {seed: {FRECHET.key: value + NOISE[seed]} for seed, value in enumerate(values)}
        for arm, values in spread.items()
    }


def write(path: Path, name: str, distances: dict[str, float | list[float]]) -> None:
    for arm, seeds in arms(distances).items():
        for seed, row in seeds.items():
            rings = [round(0.1 * ring * row[FRECHET.key] - 0.3, 4) for ring in range(9)]
            values = row | {"spectrum_error_db": 0.5, "recognised": 0.9, "rings_db": rings, "count": 2000, "steps": 20}
            versions = {"torch": "2.11.0", "multisagd": "0.1.0"}
            conditions = {"samples_seen": 48000, "reference": 5000, "versions": versions}
            append(name, {"arm": arm, "size": "cpu", "seed": seed}, values | conditions, path)


def test_differences_are_paired_so_that_the_luck_of_seeds_cancels() -> None:
    rows = measured(white=1.0, arm=[0.9, 0.91, 0.89])
    found = gain(rows, "arm", "white")
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.error == pytest.approx(0.01 / 3**0.5)
    assert verdict(found) == "**clearly better**"
    assert verdict(gain(rows, "white", "arm")) == "**clearly worse**"


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(0.10, 0.06, 3), "no difference can be told"),
        (Estimate(0.10, 0.04, 3), "**better**"),  # 2.5 standard errors, of 4.3 that 95 % would need
        (Estimate(-0.10, 0.02, 3), "**clearly worse**"),
        (Estimate(0.10, 0.04, 20), "**clearly better**"),
        (Estimate(0.10, 0.001, 2), "2 seeds: no verdict"),
        (Estimate(0.10, math.nan, 1), "1 seed: no verdict"),
        (None, "0 seeds: no verdict"),
    ],
)
def test_verdicts_follow_the_rule(estimate: Estimate | None, said: str) -> None:
    assert verdict(estimate) == said


def test_fewer_than_three_seeds_make_no_verdict_anywhere() -> None:
    rows = {arm: {seed: seeds[seed] for seed in (0, 1)} for arm, seeds in arms({"white": 1.0, "arm": 2.0}).items()}
    assert sorted_out(rows, [("arm", "white")], FRECHET) == [
        "Fréchet distance, against `white`, 2 seeds: no verdict on `arm`."
    ]
    assert told_worse(rows, [("arm", "white")], FRECHET) == ["2 seeds: no verdict on `arm` in Fréchet distance."]
    assert told_worse(arms({"white": 1.0, "arm": 2.0}), [("arm", "white")], FRECHET) == [
        "`arm` is clearly worse than `white` in Fréchet distance."
    ]


def test_a_ratio_has_the_error_of_the_delta_method() -> None:
    parts, wholes = [1.0, 2.1, 2.9], [2.0, 4.0, 6.0]
    found = Estimate.ratio(parts, wholes)
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    # variances of the means and their covariance, propagated to first order
    a, b = torch.tensor(parts, dtype=torch.float64), torch.tensor(wholes, dtype=torch.float64)
    covariance = torch.cov(torch.stack([a, b])) / 3
    slope = torch.tensor([1 / float(b.mean()), -float(a.mean() / b.mean() ** 2)], dtype=torch.float64)
    assert found.error == pytest.approx(float(slope @ covariance @ slope) ** 0.5)
    assert Estimate.ratio([], []) is None
    assert Estimate.ratio([1.0, 2.0], [1.0, -1.0]) is None


def test_restoring_a_band_is_better_than_destroying_it() -> None:
    watched = next(m for m in METRICS if m.key == "watched_db")
    levels = {"white": 12.0, "omitted": -40.0, "restored": -0.5}
    rows: Measured = {arm: {seed: {"watched_db": level} for seed in range(3)} for arm, level in levels.items()}
    assert verdict(gain(rows, "restored", "white", watched)) == "**clearly better**"
    assert verdict(gain(rows, "omitted", "white", watched)) == "**clearly worse**"
    assert verdict(gain(rows, "restored", "omitted", watched)) == "**clearly better**"
    assert sorted_out(rows, [("restored", "white")], watched)[0].startswith(
        "Power where the data were corrupted, dB from 0, against `white`, **clearly better**: `restored` (-11.500"
    )


def test_decibels_have_no_relative_change() -> None:
    for metric in METRICS:
        assert metric.decibels == ("dB" in metric.title)
        if metric.decibels:
            with pytest.raises(ValueError, match="decibels"):
                relative({"a": {}, "b": {}}, "a", "b", metric)


def test_each_metric_knows_which_way_is_better() -> None:
    recognised, change = (next(m for m in METRICS if m.key == key) for key in ("recognised", "frame_change_db"))
    rows: Measured = {
        "a": {seed: {"recognised": 0.9 + seed / 100, "frame_change_db": -0.1 - seed / 100} for seed in range(3)},
        "b": {seed: {"recognised": 0.7, "frame_change_db": 0.9 - seed / 100} for seed in range(3)},
    }
    for metric in (recognised, change):
        better_by = gain(rows, "a", "b", metric)
        assert better_by is not None
        assert better_by.mean > 0


def test_relative_changes_are_of_each_seed() -> None:
    rows: Measured = {
        "white": {0: {FRECHET.key: 2.0}, 1: {FRECHET.key: 4.0}},
        "arm": {0: {FRECHET.key: 1.0}, 1: {FRECHET.key: 3.0}, 2: {FRECHET.key: 9.0}},
    }
    assert relative(rows, "arm", "white") == pytest.approx([-0.5, -0.25])


@pytest.mark.parametrize(
    ("whole", "zero", "slope", "said"),
    [
        ([0.70, 0.71, 0.69], [0.72, 0.70, 0.71], [1.00, 1.02, 0.98], "The gain is DC"),
        ([0.70, 0.71, 0.69], [1.00, 1.02, 0.98], [0.72, 0.70, 0.71], "The gain is not DC"),
        ([0.70, 0.71, 0.69], [0.85, 0.84, 0.86], [0.85, 0.86, 0.84], "The gain is partly DC"),
        ([0.70, 0.71, 0.69], [1.00, 1.02, 0.98], [1.00, 0.97, 1.02], "It cannot be told whether the gain is DC"),
        (
            [0.70, 0.71, 0.69],
            [0.88, 0.90, 0.92],
            [0.80, 1.10, 0.85],
            "It cannot be told whether the gain is DC**: one part gains, but no difference of the two",
        ),
        (
            [0.70, 0.71, 0.69],
            [0.80, 1.10, 0.85],
            [0.88, 0.90, 0.92],
            "It cannot be told whether the gain is DC**: one part gains, but no difference of the two",
        ),
        (
            [1.00, 1.02, 0.98],
            [0.72, 0.70, 0.71],
            [1.00, 1.02, 0.98],
            "**No gain can be told, so there is none to be DC**: no difference of `papers -.06` from `white`",
        ),
        (
            [1.30, 1.31, 1.32],
            [1.00, 1.02, 0.98],
            [1.00, 1.02, 0.98],
            "**There is no gain to be DC**: `papers -.06` is worse",
        ),
    ],
)
def test_the_gain_of_a_power_law_is_attributed(
    whole: list[float], zero: list[float], slope: list[float], said: str
) -> None:
    rows = arms({"white": 1.0, claims.WHOLE: whole, claims.ZERO: zero, claims.SLOPE: slope})
    assert said in claims.attribute(rows)[0]


def test_the_parts_of_a_gain_have_errors() -> None:
    whole, zero, slope = [0.70, 0.71, 0.69], [0.72, 0.70, 0.71], [1.00, 1.02, 0.98]
    said = claims.attribute(arms({"white": 1.0, claims.WHOLE: whole, claims.ZERO: zero, claims.SLOPE: slope}))[0]
    assert f"`{claims.ZERO}` gains 0.290 ± 0.006 (97 ± 3 %) and `{claims.SLOPE}` 0.000 ± 0.012 (0 ± 4 %)" in said


def test_two_seeds_attribute_nothing() -> None:
    distances: dict[str, float | list[float]] = {
        "white": [1.0, 1.0],
        claims.WHOLE: [0.70, 0.71],
        claims.ZERO: [0.72, 0.70],
        claims.SLOPE: [1.00, 1.02],
    }
    said = claims.attribute(arms(distances))
    assert said == ["Is the gain DC? 2 seeds: no verdict (-0.295 ± 0.005, `papers -.06` against `white`)."]
    distances |= {"white": 1.0, claims.WHOLE: [0.70, 0.71, 0.69]}
    assert "Not measured: one of the two parts has too few seeds" in claims.attribute(arms(distances))[0]


def test_without_the_parts_nothing_is_attributed() -> None:
    assert "Not measured" in claims.attribute({})[0]
    assert "Not measured" in claims.attribute(arms({"white": 1.0, claims.WHOLE: [0.70, 0.71, 0.69]}))[0]


BANDS = ["[.1,.2]", "[.2,.3]", "[.4,.5]"]


def omission(projected: list[float], restored: list[float]) -> dict[str, float | list[float]]:
    """Return distances where clean training has 1, white noise 11 and the papers' omission 9, in three bands."""
    found: dict[str, float | list[float]] = {"clean": 1.0}
    for place, band in enumerate(BANDS):
        found |= {f"{band}: white": 11.0, f"{band}: papers' omission": [9.0, 9.1, 8.9]}
        found |= {f"{band}: projected": projected[place], f"{band}: restored": restored[place]}
    return found


def test_the_share_of_the_gap_that_is_closed() -> None:
    rows = arms(omission([8.0, 8.0, 9.5], [2.0, 3.0, 5.0]))
    assert claims.bands(rows) == BANDS
    share = claims.closed(rows, "[.2,.3]", "restored")
    assert share is not None
    assert (share.mean, share.error, share.count) == (pytest.approx(0.8), pytest.approx(0), 3)
    assert claims.percent(claims.closed(rows, "[.1,.2]", "papers' omission")) == "20 ± 1 %"
    closing = claims.closing(rows, BANDS)
    assert "`restored` 90 ± 0 %" in closing[0]
    assert "`restored` 60 ± 0 %" in closing[2]


@pytest.mark.parametrize(
    ("projected", "restored", "met"),
    [
        ([8.0, 8.0, 9.5], [2.0, 2.5, 2.9], (True, True)),
        ([8.0, 9.0, 9.5], [2.0, 2.5, 5.0], (False, False)),
    ],
)
def test_the_aims_of_omission_are_judged(projected: list[float], restored: list[float], met: tuple[bool, bool]) -> None:
    said = claims.aims(arms(omission(projected, restored)), BANDS)
    assert tuple("**Met**" in line for line in said) == met
    assert tuple(claims.NOT_MET in line for line in said) == (not met[0], not met[1])


@pytest.mark.parametrize(
    ("restored", "said"),
    [
        ([2.5, 2.6, 2.4], "**Met**: [.1,.2] met, 85 ± 1 %."),
        ([2.8, 1.8, 3.4], "**Cannot be told**: [.1,.2] cannot be told, 83 ± 5 %."),
        ([5.0, 5.1, 4.9], "**Not met**: [.1,.2] not met, 60 ± 1 %."),
        ([2.5, 2.5], "**Not measured in all bands**: [.1,.2] 2 seeds: no verdict."),
        ([2.5], "**Not measured in all bands**: [.1,.2] 1 seed: no verdict."),
    ],
)
def test_a_share_must_clear_the_target_by_its_error(restored: list[float], said: str) -> None:
    rows = arms({"clean": 1.0, "[.1,.2]: white": 11.0, "[.1,.2]: restored": restored})
    assert claims.aims(rows, ["[.1,.2]"])[1].endswith(said)


def test_an_aim_is_not_met_where_there_is_no_gap() -> None:
    # each seed closes nine tenths of its own gap, which is as often below zero as above
    white = [1.5, 0.5, 1.6]
    restored = [1 + 0.1 * (each - 1) for each in white]
    rows = arms({"clean": 1.0, "[.1,.2]: white": white, "[.1,.2]: restored": restored})
    said = claims.aims(rows, ["[.1,.2]"])[1]
    assert "**Cannot be told**: [.1,.2] cannot be told, there is no gap that can be told (0.200" in said


def test_what_is_decided_is_decided_whatever_is_missing() -> None:
    rows = {arm: row for arm, row in arms(omission([8.0] * 3, [5.0] * 3)).items() if not arm.startswith("[.4,.5]")}
    most, every = claims.aims(rows, BANDS)
    assert "**Met**: " in most
    assert "**Not met**: " in every
    assert "[.4,.5] not measured" in most


def test_an_aim_is_open_while_a_band_is_missing() -> None:
    rows = {arm: row for arm, row in arms(omission([8.0, 9.5, 8.0], [2.0] * 3)).items() if "[.4,.5]" not in arm}
    for said in claims.aims(rows, BANDS):
        assert "**Not measured in all bands**: [.1,.2] met" in said
        assert said.endswith("; [.4,.5] not measured.")


def test_no_gap_is_closed_where_there_is_none() -> None:
    rows = arms({"clean": [1.0, 1.2, 0.8], "[.1,.2]: white": 1.0, "[.1,.2]: restored": 0.9})
    assert "no gap to close" in claims.closing(rows, ["[.1,.2]"])[0]


def composed(experiment: Experiment, arm: str, size: str) -> str:
    """Return the whole configuration of an arm, checked."""
    config = configuration.load("train", [*experiment.arguments(arm, 0, size), "run_dir=r"])
    Builder(("benchmarks",)).settings(TrainSettings, config, "")
    return json.dumps({key: str(value) for key, value in config.items()})


@pytest.mark.parametrize("name", experiments())
def test_every_arm_of_every_experiment_composes(name: str) -> None:
    experiment = experiments()[name]
    found = {composed(experiment, arm, "cpu") for arm in experiment.arms}
    assert len(found) == len(experiment.arms), "two arms are the same training"
    first, *_, last = experiment.arms
    large = {composed(experiment, arm, "gpu") for arm in (first, last)}
    assert len(large) == 2
    assert large.isdisjoint(found)


def test_the_page_is_what_the_results_say() -> None:
    assert page.stale() == [], "run `python -m benchmarks.experiments.page` and commit what it writes"


def test_without_rows_the_page_says_what_is_missing(tmp_path: Path) -> None:
    text, pictures = page.page(tmp_path / "none.jsonl")
    assert pictures == []
    for experiment, command in page.compared():
        assert f"**Not measured.** `{command or sections.runner(experiment)}` makes it." in text


def test_a_page_is_current_until_a_row_is_added(tmp_path: Path) -> None:
    path, docs = tmp_path / "results.jsonl", tmp_path / "docs"
    write(path, "power_law_mnist", {"white": 1.0, claims.WHOLE: [0.70, 0.71, 0.69], REAL: 0.1})
    assert page.stale(path, docs) == ["results.md", "results_power_law_mnist.png"]
    page.write(path, docs)
    assert page.stale(path, docs) == []
    picture = docs / "images" / "results_power_law_mnist.png"
    before = picture.read_bytes()
    picture.unlink()
    page.write(path, docs)
    assert picture.read_bytes() == before
    text = (docs / "results.md").read_text(encoding="utf-8")
    assert "| papers -.06 | white | -0.300 ± 0.006 |" in text
    assert "| -33 % |" in text
    assert text.index(f"| *{REAL}, the noise floor* |") > text.index("| papers -.06 | 0.")
    write(path, "power_law_mnist", {claims.ZERO: 0.9})
    assert page.stale(path, docs) == ["results.md", "results_power_law_mnist.png"]


def test_a_picture_of_omission_has_a_panel_for_each_band(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, "omission_mnist", omission([8.0, 8.0, 9.5], [2.0, 2.5, 2.9]))
    text, (picture,) = sections.section(experiments()["omission_mnist"], path)
    assert list(picture.panels) == BANDS
    assert set(picture.panels["[.1,.2]"][0]) == {
        "clean",
        *(arm for arm in omission([8.0] * 3, [2.0] * 3) if "[.1" in arm),
    }
    assert text.count("**Met**") == 2
    assert "| [.1,.2]: papers' omission | [.1,.2]: white |" in text
    assert "| -15 % |" in text


def test_all_ways_to_restore_a_band_are_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    distances: dict[str, float | list[float]] = {"clean": 1.0, "[.1,.2]: white": 11.0}
    write(path, "omission_mnist", distances | {f"[.1,.2]: {kind}": 2.0 for kind in claims.KINDS})
    text, _ = sections.section(experiments()["omission_mnist"], path)
    assert all(f"| [.1,.2]: {kind} | 2.017 ± " in text for kind in claims.KINDS)
    assert all(f"`{kind}` 90 ± 0 %" in text for kind in claims.KINDS)
    assert "the best that leaving a band out can give" in text


def rows_of(path: Path, name: str, values: dict[tuple[str, int], dict[str, float]]) -> None:
    for (arm, seed), row in values.items():
        append(name, {"arm": arm, "size": "cpu", "seed": seed}, row, path)


NAN = math.nan


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        (
            "power_law_mnist",
            {("white", 0): {FRECHET.key: 1.0}, ("papers -.06", 1): {FRECHET.key: 1.0}},
            "| papers -.06 | white |  |  | -33 % | 0 seeds: no verdict |",
        ),
        (
            "power_law_mnist",
            {("white", 0): {FRECHET.key: 1.0}, ("papers -.06", 0): {FRECHET.key: NAN, "spectrum_error_db": NAN}},
            "`papers -.06`, seed 0: nothing finite came out.",
        ),
        (
            "power_law_mnist",
            {
                ("white", 0): {FRECHET.key: 1.0, "spectrum_error_db": 1.0},
                ("papers -.06", 0): {"spectrum_error_db": 2.0},
                ("papers -.04", 0): {FRECHET.key: 2.0},
            },
            "| papers -.06 | white |  | +1.000 |",
        ),
        (
            "power_law_mnist",
            {("white", 0): {FRECHET.key: NAN}, ("papers -.06", 0): {FRECHET.key: NAN}},
            "`white`, seed 0: nothing finite came out.",
        ),
        (
            "omission_mnist",
            {("clean", 0): {FRECHET.key: 1.0}, ("[.1,.2]: white", 0): {FRECHET.key: NAN}},
            "`[.1,.2]: white`, seed 0: nothing finite came out.",
        ),
        (
            "omission_mnist",
            {
                ("clean", 0): {FRECHET.key: 1.0},
                ("[.1,.2]: white", 0): {FRECHET.key: 11.0},
                ("[.1,.2]: restored", 0): {FRECHET.key: 2.0},
            },
            "[.1,.2]: of the gap of 10.000 between white noise and clean training (1 seed: no verdict) are closed by "
            "`restored` 90 % (1 seed).",
        ),
        (
            "hum_audio",
            {("white", 0): {"watched_db": 12.0}, ("restored", 0): {"watched_db": -1.0}},
            "| restored | white | -11.000 | 1 seed: no verdict |",
        ),
        (
            "flicker_video",
            {("white", 0): {"frame_change_db": 1.0}, ("projected", 1): {"watched_db": NAN, "elsewhere_db": 1.0}},
            "0 seeds: no verdict on `projected` in spectrum elsewhere, dB.",
        ),
    ],
)
def test_partial_and_diverged_rows_make_a_page(
    tmp_path: Path,
    name: str,
    rows: dict[tuple[str, int], dict[str, float]],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, docs = tmp_path / "results.jsonl", tmp_path / "docs"
    rows_of(path, name, rows)
    page.write(path, docs)
    text = (docs / "results.md").read_text(encoding="utf-8")
    assert said in text
    assert "nan" not in text
    show(experiments()[name], "cpu", path)
    assert "nan" not in capsys.readouterr().out


def test_tables_leave_out_what_is_not_there() -> None:
    assert with_error([]) == ""
    theirs = {0: {"m": 1.0}, 1: {}, 2: {"m": 1.0}, 3: {"m": NAN}}
    assert differences({0: {"m": 3.0}, 1: {"m": 2.0}, 2: {}, 3: {"m": 1.0}, 4: {"m": 1.0}}, theirs, "m") == [2.0]


def test_what_failed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, "omission_mnist", omission([8.0, 9.5, 9.5], [2.0, 2.5, 5.0]))
    append("omission_mnist", {"arm": "clean", "size": "cpu", "seed": 3}, {FRECHET.key: float("nan")}, path)
    said = sections.failures(Results.read(experiments()["omission_mnist"], "cpu", path))
    assert sum(claims.NOT_MET in line for line in said) == 2
    assert any(
        line.startswith("`[.2,.3]: projected` is clearly worse than `[.2,.3]: papers' omission`") for line in said
    )
    assert "`clean`, seed 3: nothing finite came out." in said
    assert not any("than `clean`" in line for line in said)


def test_other_benchmarks_have_their_sections(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    found = {"median": 1.25, "low": 1.2, "high": 1.3}
    values = {"repeats": 100, "machine": "2 cores"} | dict.fromkeys(others.SPEED, found)
    append("peers_speed", {"size": "cpu", "threads": 1}, values, path)
    assert "| lower to upper quartile |" in others.speed(path)
    assert "| 1 threads, 100 paired repeats | 1.250 | 1.200 to 1.300 |" in others.speed(path)
    arm = {"run": "mnist", "count": 50, "steps": 25, "eta": 1.0, "problem": "deblurring", "method": "DPS"}
    for seed in range(2):
        append("inverse problems", arm | {"seed": seed}, {"psnr": 20.0, "recognised": 0.9, "consistency": 1.0}, path)
    assert "| DPS | 20.0 ± 0.0 / 90 ± 0 / 1.00 |" in others.inverse_problems(path)


def test_inverse_problems_are_solved_by_the_white_training_of_the_sweep() -> None:
    folder = run_folder(experiments()["power_law_mnist"].arguments("white", 0, "cpu"))
    assert Path(others.WHITE).name == folder
    assert f"WHITE := {others.WHITE}\n" in (Path(page.DOCS).parent / "Makefile").read_text()


def test_numbers_of_a_row_are_the_finite_ones() -> None:
    row = {"a": 1, "b": float("nan"), "c": {"x": 2.0, "y": "no"}, "d": [1.0], "e": True}
    assert flat(row) == {"a": 1.0, "c.x": 2.0}


def test_motion_is_measured_against_the_clean_examples() -> None:
    grid = Grid.of(frame=(6, 0.125, "s"), height=4, width=4)
    clean = torch.randn(20, 1, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    found = measures.compare(2 * clean, clean, grid, None)
    assert found == {"frame_change_db": pytest.approx(20 * math.log10(2))}
    assert measures.compare(clean[:, :, 0], clean[:, :, 0], Grid.of(height=4, width=4), None) == {}


def test_power_is_watched_where_the_data_were_corrupted() -> None:
    experiment = experiments()["hum_audio"]
    grid = Grid.of(time=(1024, 1 / 4000, "s"))
    hum = measures.watched(experiment, experiment.arguments("white", 0, "cpu"))
    assert hum is not None
    # the clean arm is watched where the others are corrupted, but not if each has a band of its own
    assert measures.watched(experiment, experiment.arguments("clean", 0, "cpu")) == hum
    bands = experiments()["omission_mnist"]
    assert measures.watched(bands, bands.arguments("clean", 0, "cpu")) is None
    clean = torch.randn(50, 1, 1024, generator=torch.Generator().manual_seed(0))
    noisy = Corruption(hum, grid, level=1.0).corrupt(clean, range(50))
    assert measures.compare(clean, clean, grid, hum) == pytest.approx({"watched_db": 0, "elsewhere_db": 0})
    found = measures.compare(noisy, clean, grid, hum)
    assert found["watched_db"] > 10
    assert found["elsewhere_db"] == pytest.approx(0, abs=1e-5)
    omitted = filter_grid(2 * clean, Outside(hum).power(grid), 1)
    found = measures.compare(omitted, clean, grid, hum)
    assert found == pytest.approx({"watched_db": measures.LEAST, "elsewhere_db": 20 * math.log10(2)}, abs=1e-5)
