"""The page of results says what follows from the measured rows, by rules that are tested on made-up numbers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.experiments import measures, omission, others, page, sections
from benchmarks.experiments.design import CPU, REAL, experiments
from benchmarks.experiments.fields import field_errors
from benchmarks.experiments.metrics import METRICS, flat, metric, other_sampler
from benchmarks.experiments.reading import FOUND, SILENT, Comparison, Results, blocked
from benchmarks.experiments.statistics import ENOUGH, LEVEL, Paired
from benchmarks.rows import append
from multisagd import Corruption, Grid, Outside, PowerLaw, SpectralCovariance
from multisagd.covariance import filter_grid

LAW, CONTROLS, OMISSION = (experiments()[n] for n in ("power_law_fashion_mnist", "controls_mnist", "omission_mnist"))
SDE = "sde.frechet_distance"
LUCK = (0.02, -0.03, 0.04, 0.0, -0.02, 0.01)
"""Logarithm of what each seed multiplies the distance of every arm by."""
OWN = (0.004, -0.003, 0.001, 0.005, -0.006, -0.001)
"""The same for a single arm, so that differences have a spread."""
WHOLE, ZERO, SLOPE = "papers -.06", "zero frequency of -.06 only", "slope of -.06 only"
PASSING = {"white": 1.0, **{arm: 1.5 if role == "found" else 1.001 for arm, role in CONTROLS.expected.items()}}


def write(path: Path, name: str, distances: dict[str, float], seeds: int = ENOUGH) -> None:
    """Append complete rows, as experiments leave them."""
    conditions = {"samples_seen": 24000, "reference": 5000, "count": 1000, "steps": 20,
                  "versions": {"torch": "2.11.0", "multisagd": "0.1.0"}}  # fmt: skip
    for place, (arm, distance) in enumerate(distances.items()):
        for seed in range(seeds):
            value = distance * math.exp(LUCK[seed] + (place % 3 - 1) * OWN[(seed + place) % 6])
            judged = {"frechet_distance": value, "spectrum_error_db": 0.5 * value, "recognised": 0.9,
                      "rings_db": [0.1 * ring * value - 0.3 for ring in range(9)]}  # fmt: skip
            points = {str(samples): {"sde": {"frechet_distance": value * 24000 / samples}} for samples in (6016, 12000)}
            values = {"ode": judged, "sde": judged, "points": points, "bits_per_dimension": 2 * value}
            append(name, {"arm": arm, "size": CPU, "seed": seed}, values | conditions, path)


def read(path: Path, name: str = LAW.name) -> Results:
    return Results.read(experiments()[name], CPU, path)


def test_metrics_know_which_way_is_better() -> None:
    for key, better, worse in ((SDE, 1.0, 2.0), ("ode.recognised", 0.9, 0.7), ("sde.watched_db", -0.5, 12.0),
                               ("sde.watched_db", -0.5, -40.0), ("bits_per_dimension", -2.0, -1.0)):  # fmt: skip
        each = metric(key)
        paired = each.paired({0: {key: better}, 2: {key: better}}, {0: {key: worse}, 1: {key: worse}})
        assert (each.improves(paired.mean), paired.count) == (True, 1), key
    assert metric(SDE).paired({0: {SDE: 1.0}}, {0: {SDE: 2.0}}).values == (pytest.approx(-math.log(2)),)
    assert [other_sampler(key) for key in (SDE, "bits_per_dimension")] == ["ode.frechet_distance", "bits_per_dimension"]
    assert not any(each.ratio for each in METRICS if each.key.endswith("_db"))
    nested = {"a": 1, "b": math.nan, "c": {"x": 2.0, "d": {"y": 3, "z": "no"}}, "e": [1.0], "f": True, "g": None}
    assert flat(nested) == {"a": 1.0, "c.x": 2.0, "c.d.y": 3.0}


def test_verdict_needs_six_seeds_and_a_corrected_p_value(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0, WHOLE: 0.9, ZERO: 1.2, SLOPE: 1.001})
    tested = {(each.arm, each.other): each for each in read(path).tested}
    assert len(tested) == len(LAW.comparisons) == 5
    assert tested[WHOLE, "white"].verdict == "better"
    assert tested[ZERO, "white"].verdict == tested[ZERO, SLOPE].verdict == "worse"
    assert tested[SLOPE, "white"].verdict == "no difference detected"
    assert tested["slope -.5", "white"].verdict == "no verdict"
    # All five planned comparisons count, also the one without rows.
    smallest = min(tested.values(), key=lambda each: each.paired.p if each.paired.count else 1)
    assert smallest.corrected == pytest.approx(5 * smallest.paired.p)
    # Arms of few seeds are not planned to have a verdict, so they do not count.
    fewer = Results.read(replace(LAW, few=("slope -.5",), headline=()), CPU, path).tested
    assert min(each.corrected for each in fewer if each.corrected) == pytest.approx(4 * smallest.paired.p)
    few = tmp_path / "few.jsonl"
    write(few, LAW.name, {"white": 1.0, WHOLE: 0.5}, seeds=ENOUGH - 1)
    results = read(few)
    assert results.tested[0].verdict == "no verdict"
    assert sections.decided(results, results.tested[0], verdicts=True) == "none: 5 of 6 seeds"


def test_controls_must_find_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    null = "white, another implementation"
    for change, expected in (
        ({}, {}),
        (
            {"half of the samples": 1.001},
            {"half of the samples": "no difference detected, but it is known to be worse"},
        ),
        ({"half of the samples": 0.7}, {"half of the samples": "better, but it is known to be worse"}),
        ({null: 1.1}, {null: "differs, but it is the same training"}),
        ({null: None}, {null: "not measured (0 of 6 seeds)"}),
    ):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        write(path, CONTROLS.name, {arm: each for arm, each in (PASSING | change).items() if each is not None})
        reasons = blocked(experiments().values(), path)
        assert len(reasons) == len(expected)
        for arm, words in expected.items():
            assert reasons[0].startswith(f"`{arm}`")
            assert words in reasons[0]
    results = read(tmp_path / "0.jsonl", CONTROLS.name)
    tested = {each.arm: each for each in results.tested}
    outcomes = {arm: sections.decided(results, each, verdicts=False) for arm, each in tested.items()}
    assert (outcomes["half of the samples"], outcomes[null]) == (FOUND, SILENT)
    assert not any(sections.decided(results, each, verdicts=True) for each in results.beside(tested[null]))
    # The null has a test of its own: it is not corrected, so that it cannot hide behind the others.
    assert tested[null].corrected == tested[null].paired.p


def test_no_verdict_is_printed_while_a_control_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0, WHOLE: 0.9, ZERO: 1.2, SLOPE: 1.001, REAL: 0.1})
    verdicts = ("**better**", "**worse**", "| no difference detected |", ": no difference detected;")
    text, _ = page.page(path)
    body = text[text.index("## In short") :]
    assert not any(verdict in body for verdict in verdicts)
    assert sections.NO_VERDICT in body
    assert "× 0.90" in body
    write(path, CONTROLS.name, PASSING)
    body = page.page(path)[0].partition("## In short")[2]
    assert all(verdict in body for verdict in verdicts[:3])
    assert sections.NO_VERDICT not in body
    line = next(line for line in body.splitlines() if line.startswith("- [Power laws on Fashion-MNIST]"))
    assert "**better**; Fréchet distance, SDE × 0.9" in line or "**worse**; Fréchet distance, SDE × 1.2" in line
    assert "would be detected with a probability of 80 %" in line
    assert body.index("## Controls") < body.index("## EqualSNR") < body.index("## What the papers report")


def test_summary_has_at_most_ten_lines_with_the_comparisons_that_were_named_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0, WHOLE: 0.99, ZERO: 0.2, SLOPE: 1.001})
    known = {name: each for name, each in experiments().items() if each.page == "results"}
    lines = page.summary([Results.read(each, "cpu", path) for each in known.values()], [])
    asked = [each for each in known.values() if each.headline]
    assert 1 + sum(len(each.headline) for each in asked) <= 10, "as soon as all are measured"
    assert len(lines) == 1 + len(asked), "what is not measured has one line for each experiment"
    assert [each.name for each in known.values() if bool(each.headline) == bool(each.expected)] == []
    answer = next(line for line in lines if f"`{WHOLE}` against `white`" in line)
    assert answer.startswith("[Power laws on Fashion-MNIST]")
    assert sum("not measured yet." in line for line in lines) == len(lines) - 2
    with pytest.raises(ValueError, match="not in against"):
        replace(LAW, headline=((WHOLE, ZERO),))


def test_sentence_states_when_the_other_sampler_says_the_opposite(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0, WHOLE: 1.2})
    tested = read(path).tested[0]
    assert "depends on the sampler" not in sections.sentence(read(path), tested, True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row in lines:
        row["ode"] = {**row["ode"], "frechet_distance": 1 / row["ode"]["frechet_distance"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    said = sections.sentence(read(path), read(path).tested[0], True)
    assert "It depends on the sampler: Fréchet distance, ODE × 0.8" in said
    for row in lines:  # no difference is no contradiction
        row["ode"]["frechet_distance"] = 1.0 + 0.1 * OWN[row["arm"]["seed"]] * (row["arm"]["arm"] == WHOLE)
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert "depends on the sampler" not in sections.sentence(read(path), read(path).tested[0], True)


def test_likelihoods_that_are_no_densities_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0, WHOLE: 1000.0})
    numbers = read(path).numbers
    assert numbers["white"][0]["bits_per_dimension"] == pytest.approx(2, rel=0.1)
    assert "bits_per_dimension" not in numbers[WHOLE][0]


def test_samples_needed_compare_with_the_final_distance_of_the_other(tmp_path: Path) -> None:
    """Distances are in proportion to 1/samples, so an arm with half the distance needs half the samples."""
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0, WHOLE: 0.5, ZERO: 0.1, SLOPE: 1.5})
    results = read(path)
    needed = [results.needed(arm, "white") for arm in (WHOLE, ZERO, SLOPE, "slope -.5")]
    assert needed == ["0.50", "<0.25", ">1.00", ""]


def test_effects_and_power_are_formatted_as_ratios_or_differences() -> None:
    paired = Paired(tuple(math.log(0.8) + each for each in OWN))
    ratio, difference = metric(SDE), metric("bits_per_dimension")
    assert sections.effect(ratio, paired).startswith("× 0.800 [0.79")
    tested = [Comparison("arm", "white", each, paired, level=LEVEL / 4) for each in (ratio, difference)]
    least = paired.detectable(LEVEL / 4)
    assert [sections.least(each) for each in tested] == [f"× {math.exp(least):.3f}", f"± {least:.3f}"]
    assert least > paired.detectable()
    assert sections.effect(difference, paired).startswith("-0.223 [-0.2")
    assert [sections.probability(p) for p in (0.0004, 0.0312, 1.0, math.nan, None)] == [
        "< .001",
        ".031",
        "1.000",
        "",
        "",
    ]
    assert sections.effect(ratio, Paired((0.0,))) == "× 1.000"


def test_omission_table_has_the_closed_fraction_of_each_band(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    distances = {"clean": 1.0, "[.1,.2]: white": 11.0, "[.1,.2]: projected": 6.0, "[.4,.5]: white": 5.0}
    write(path, OMISSION.name, distances)
    results = read(path, OMISSION.name)
    assert omission.bands(OMISSION.arms) == ["[.1,.2]", "[.4,.5]"]
    ((band, arm, sde, ode),) = omission.fractions(results)
    assert (band, arm, sde) == ("[.1,.2]", "projected", ode)
    assert sde == "50 % [50, 50]"
    assert "| [.1,.2] | projected | 50 % [50, 50] |" in sections.recovered(results)


def test_page_is_what_the_results_say() -> None:
    assert page.stale() == [], "run `python -m benchmarks.experiments.page` and commit what it writes"


def test_page_is_current_until_a_row_is_added(tmp_path: Path) -> None:
    path, docs = tmp_path / "results.jsonl", tmp_path / "docs"
    assert page.pages(path)[1] == []
    for experiment in experiments().values():
        text = page.page(path, experiment.page)[0]
        assert f"**Not measured.** Run `{sections.runner(experiment)}` to measure it." in text
        assert (experiment.title in page.page(path)[0]) == (experiment.page == "results")
    write(path, LAW.name, {"white": 1.0, WHOLE: 0.7, REAL: 0.1})
    picture = f"results_{LAW.name}.png"
    assert page.stale(path, docs) == ["results.md", "results-fields.md", picture]
    page.write(path, docs)
    assert page.stale(path, docs) == []
    text = (docs / "results.md").read_text(encoding="utf-8")
    assert text.index(f"| *{REAL}, the noise floor* |") > text.index("| papers -.06 | 0.")
    write(path, LAW.name, {ZERO: 0.9})
    assert page.stale(path, docs) == ["results.md", picture]


def test_inverse_problems_use_the_white_training_of_the_controls() -> None:
    assert f"WHITE := {others.white()}\n" in (page.DOCS.parent / "Makefile").read_text()


def test_compare_measures_motion_and_power_where_the_data_were_corrupted() -> None:
    frames = Grid.of(frame=(6, 0.125, "s"), height=4, width=4)
    clean = torch.randn(20, 1, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    twice = 20 * math.log10(2)
    assert measures.compare(2 * clean, clean, frames, None) == {"frame_change_db": pytest.approx(twice)}
    grid = Grid.of(height=16, width=16)
    assert measures.watched(OMISSION, OMISSION.arguments("clean", 0, CPU)) is None, "each arm has a band of its own"
    band = measures.watched(OMISSION, OMISSION.arguments("[.4,.5]: white", 0, CPU))
    clean = torch.randn(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert measures.compare(clean, clean, grid, None) == {}
    noisy = Corruption(band, grid, level=1.0).corrupt(clean, range(50))
    assert measures.compare(clean, clean, grid, band) == pytest.approx({"watched_db": 0, "elsewhere_db": 0})
    values = measures.compare(noisy, clean, grid, band)
    assert (values["watched_db"] > 7, values["elsewhere_db"]) == (True, pytest.approx(0, abs=1e-5))
    omitted = filter_grid(2 * clean, Outside(band).power(grid), 2)
    expected = {"watched_db": measures.LEAST, "elsewhere_db": twice}
    assert measures.compare(omitted, clean, grid, band) == pytest.approx(expected, abs=1e-5)


def test_field_errors_tell_a_gaussian_field_with_the_right_spectrum_from_the_data() -> None:
    grid = Grid.of(y=(16, 1, "m", None, True), x=(16, 1, "m", None, True))
    covariance = SpectralCovariance(PowerLaw(-1.0), grid)
    clean, made = covariance.sample(range(800)), 1.1 * covariance.sample(range(800, 1600))
    assert all(abs(error) < 1e-6 for error in field_errors(clean, clean, grid).values())
    gaussian = field_errors(made, clean, grid)
    gain = 20 * math.log10(1.1)
    assert gaussian["rings_rms_db"] == pytest.approx(gain, abs=0.15)
    assert gaussian["rings_quietest_db"] <= gaussian["rings_worst_db"] < gain + 0.4
    assert gaussian["deviation_error"] == pytest.approx(10, abs=4), "most of it is the mean of each field"
    # The kurtosis of data with two values is 1, and of the Gaussian fields from which they come, 3.
    two = field_errors(clean, clean.sign(), grid)
    assert two["kurtosis_error"] == pytest.approx(200, abs=15)
    assert {"gradient_kurtosis_error", "mixed_kurtosis_error"} <= two.keys()
    line = Grid.of(time=(32, 1, "s"))
    assert "mixed_kurtosis_error" not in field_errors(clean.reshape(-1, 1, 32), clean.reshape(-1, 1, 32), line)


def test_table_by_steps_has_every_number_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, LAW.name, {"white": 1.0}, seeds=2)
    more = json.loads(path.read_text().splitlines()[0])
    judged = {"sde": {"frechet_distance": 4.25}}
    path.write_text(json.dumps(more | {"at_steps": {"5": judged}, "even_in_time": judged}) + "\n")
    results = Results.read(replace(LAW, more_steps=(5,)), CPU, path)
    table = sections.by_steps(results)
    value = f"{more['sde']['frechet_distance']:.3f}"
    assert f"| Fréchet distance, SDE | white | 4.250 | {value} |" in table
    assert "| metric | arm | 5 steps | 20 steps |" in table
    assert sections.by_steps(Results.read(LAW, CPU, path)) == ""
    table = sections.by_steps(Results.read(replace(LAW, even_in_time=True), CPU, path))
    assert f"| Fréchet distance, SDE | white | {value} | 4.250 |" in table
    assert "| metric | arm | 20 steps | 20, even in time |" in table
    assert sections.calibrated_table(results) == ""
    path.write_text(json.dumps(more | {"calibrated": judged}) + "\n")
    assert "| white | 4.250 |" in sections.calibrated_table(Results.read(LAW, CPU, path))
