"""`multisagd evaluate metrics=[ensemble]` judges several samples for each of some dense conditions."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

import multisagd as ms
from modalities.base import Modality
from modalities.derived_conditions import Coarse, FirstFrames, Masked
from modalities.field import Field
from modalities.image import Image
from modalities.variables import Variable
from multisagd import Grid
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.evaluate import evaluate
from recipes.evaluation import ensemble as judge
from recipes.evaluation.members import Ensemble, plain_estimate
from recipes.evaluation.task import Result, Task
from recipes.sample import sample
from tests.helpers.tiny import tiny_run

GRID = Grid.of(y=8, x=8)
ITEMS, MEMBERS = 150, 7
FEW = ["steps=1", "conditions=3", "members=2", "bootstrap=2", "splits=1", "engine.threads=1"]


def task(modality: Any, tmp_path: Path) -> Task:
    settings = SimpleNamespace(bootstrap=20, conditions=ITEMS)
    return cast(Task, SimpleNamespace(settings=settings, modality=modality, figure_path=lambda name: tmp_path / name))


def gaussian(deviation: float = 1.0) -> Ensemble:
    """Fields with a known part and an unknown part of deviation .5, which samples draw anew times `deviation`."""
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID)
    known = covariance.sample(range(ITEMS), 1)
    unknown = 0.5 * covariance.sample(range(ITEMS, (2 + MEMBERS) * ITEMS), 1).reshape(MEMBERS + 1, ITEMS, 1, 8, 8)
    everywhere = torch.ones_like(known, dtype=torch.bool)
    members, truth = known + deviation * unknown[1:], known + unknown[0]
    return Ensemble(members, truth, known, "a guess", everywhere, None, known, hides=False)


def values(result: Result) -> dict[str, tuple[float, float | None]]:
    return {row.name: (row.value, row.error) for row in result.rows}


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    for name in ("draw_examples", "draw_scores"):
        monkeypatch.setattr(f"recipes.evaluation.ensemble.{name}", lambda *_: None)


@pytest.mark.usefixtures("no_figures")
def test_ensemble_finds_samples_of_the_exact_posterior_right(tmp_path: Path) -> None:
    modality = SimpleNamespace(variables=(Variable("t", unit="K", scale=10.0, offset=280.0),), channels=1,
                               grid=lambda: GRID)  # fmt: skip
    result = judge.judged(task(modality, tmp_path), gaussian(), "evaluate_ensemble")
    found = values(result)
    deviation = 5.0  # in K
    for name, expected in (
        ("error of the mean of samples", deviation * math.sqrt(1 + 1 / MEMBERS)),
        ("error of single samples", deviation * math.sqrt(2)),
        ("error of a guess", deviation),
        ("spread of samples", deviation),
        ("spread/skill", 1.0),
        ("CRPS", deviation / math.sqrt(math.pi)),
        ("truth outside of all samples", 200 / (MEMBERS + 1)),
    ):
        value, error = found[name]
        assert error is not None, name
        assert value == pytest.approx(expected, abs=4 * error), name
        assert error < 0.1 * expected, name
    assert found["rings of single samples, worst"][0] < 0.6
    assert found["rings of a guess, worst"][0] == pytest.approx(10 * math.log10(1.25), abs=0.4)
    ranks = torch.tensor(cast(Any, result.details)["t"]["ranks"])
    torch.testing.assert_close(ranks, torch.full((MEMBERS + 1,), 1 / (MEMBERS + 1)), atol=0.02, rtol=0)
    assert [row.unit for row in result.rows[:6]] == ["K", "K", "K", "K", "", "K"]


@pytest.mark.usefixtures("no_figures")
def test_ensemble_finds_samples_that_are_too_alike(tmp_path: Path) -> None:
    modality = SimpleNamespace(variables=None, channels=1, grid=lambda: GRID)
    found = values(judge.judged(task(modality, tmp_path), gaussian(deviation=0.2), "evaluate_ensemble"))
    assert found["spread/skill"][0] == pytest.approx(0.2, abs=0.05)
    assert found["truth outside of all samples"][0] > 60
    assert found["rings of single samples, worst"][0] == pytest.approx(10 * math.log10(1.25 / 1.01), abs=0.4)


@pytest.mark.usefixtures("no_figures")
def test_ensemble_agrees_with_a_hand_computation_where_values_are_hidden_and_not_missing(tmp_path: Path) -> None:
    members = torch.tensor([[[[0.0, 2.0, 9.0, 1e6]]], [[[0.0, 4.0, 9.0, -1e6]]]])  # (2, 1, 1, 4)
    truth, plain = torch.tensor([[[0.0, 5.0, 1.0, 1e9]]]), torch.tensor([[[0.0, 1.0, 1.0, 1e9]]])
    valid = torch.tensor([[[True, True, True, False]]])
    compared = torch.tensor([[[False, True, True, False]]])
    made = Ensemble(members, truth, plain, "a guess", compared, valid, truth, hides=True)
    modality = SimpleNamespace(variables=None, channels=1, grid=lambda: Grid.of(x=4))
    result = judge.judged(task(modality, tmp_path), made, "evaluate_ensemble")
    found = {name: value for name, (value, _) in values(result).items()}
    assert found["error of the mean of samples"] == pytest.approx(math.sqrt((2**2 + 8**2) / 2))
    assert found["error of single samples"] == pytest.approx(math.sqrt((5 + 64) / 2))
    assert found["error of a guess"] == pytest.approx(math.sqrt((4**2 + 0) / 2))
    assert found["spread of samples"] == pytest.approx(math.sqrt((2 + 0) / 2))
    assert found["spread/skill"] == pytest.approx(math.sqrt(1.5) * 1 / math.sqrt(34))
    assert found["CRPS"] == pytest.approx((2 - 1 + 8 - 0) / 2)
    # The truth is above both, and below both, which are equal.
    assert found["truth outside of all samples"] == pytest.approx(100)
    assert "not 150" in result.notes[1]
    made = Ensemble(members, truth, plain, "a guess", compared & False, valid, truth, hides=True)
    with pytest.raises(ValueError, match="nothing to compare"):
        judge.judged(task(modality, tmp_path), made, "evaluate_ensemble")


@pytest.mark.usefixtures("no_figures")
def test_ensemble_scores_each_variable_in_its_unit_and_pixels_from_0_to_1(tmp_path: Path) -> None:
    one = gaussian()
    made = Ensemble(
        one.members.repeat(1, 1, 2, 1, 1), one.truth.repeat(1, 2, 1, 1), one.plain.repeat(1, 2, 1, 1), "a guess",
        one.compared.repeat(1, 2, 1, 1), None, one.condition.repeat(1, 2, 1, 1), hides=False,
    )  # fmt: skip
    modality = SimpleNamespace(variables=(Variable("t", "K", scale=10.0), Variable("u", "m/s", scale=2.0)), channels=2,
                               grid=lambda: GRID)  # fmt: skip
    rows = judge.judged(task(modality, tmp_path), made, "evaluate_ensemble").rows
    found = {row.name: row for row in rows}
    temperature, wind = (found[f"{name}: CRPS"] for name in "tu")
    assert (temperature.unit, wind.unit) == ("K", "m/s")
    assert temperature.value == pytest.approx(5 * wind.value)
    images = judge.judged(task(Image(size=8, channels=1), tmp_path), one, "evaluate_ensemble").rows
    assert {row.name: row.value for row in images}["CRPS"] == pytest.approx(wind.value / 4)


def test_plain_estimate_follows_the_condition() -> None:
    x0 = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = torch.full((1, 8, 8), 0.5)

    plane, narrow = (
        cast(Modality, SimpleNamespace(grid=lambda sides=sides: Grid.of(y=8, x=sides))) for sides in (8, 4)
    )

    def named(derived: Any) -> tuple[torch.Tensor, str]:
        dense = x0 if derived is None else torch.stack([derived.derive(each, plane, 0) for each in x0])
        return plain_estimate(derived, dense, x0.shape, plane, mean)

    coarse, name = named(Coarse(factor={"x": 4}))
    assert (name, coarse.shape) == ("cubic interpolation", x0.shape)
    assert named(Coarse(factor=2))[1] == "bicubic interpolation"
    frames, name = named(FirstFrames(2))
    assert name == "persistence"
    assert torch.equal(frames[:, :, 7], x0[:, :, 1])
    filled, name = named(Masked(hidden=("boxes",)))
    assert name == "linear interpolation"
    assert bool(filled.isfinite().all())
    of_data, name = named(None)
    assert name == "the mean of the data"
    assert of_data.shape == x0.shape
    assert bool((of_data == 0.5).all())
    other = plain_estimate(None, x0[..., :4], torch.Size([2, 1, 8, 4]), narrow, mean)[0]
    assert other.shape == (2, 1, 8, 4)


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "refined"
    tiny_run(run_dir, "condition=coarse", "condition.factor=2", "every.validation=0", "every.samples=0")
    return run_dir


def evaluated(run_dir: Path, *words: str) -> dict[str, Any]:
    return evaluate(configuration.load("evaluate", [f"run_dir={run_dir}", *FEW, *words]))


def test_evaluate_draws_and_judges_ensembles_of_held_out_conditions(refined: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.evaluate.gather", lambda *_: pytest.fail("real examples are read for nothing"))
        report = evaluated(refined, "metrics=[ensemble]")
    assert report["counts"] == {"asked": 6, "compared": 6, "reference": 0, "real": 0}
    folder = Path(report["samples"]).parent
    settings = json.loads((folder / "sample.json").read_text())["settings"]
    assert (settings["count"], settings["members"], settings["condition"]) == (6, 2, "held_out")
    result = report["results"]["ensemble"]
    assert (result["plain"], result["conditions"], result["members"]) == ("bicubic interpolation", 3, 2)
    assert report["figures"] == ["evaluate_ensemble.png", "evaluate_ensemble_scores.png"]
    for name in report["figures"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert report["settings"]["members"] == 2
    # Samples of one condition follow each other at a distance of the number of conditions.
    labels = load_file(folder / "samples.safetensors")["labels"]
    assert torch.equal(labels[:3], labels[3:])
    rows = {row["name"]: row["value"] for row in result["rows"]}
    assert 0 < rows["error of bicubic interpolation"] < 1


def test_evaluate_judges_sets_and_ensembles_together(refined: Path, tmp_path: Path) -> None:
    words = "metrics=[sliced,ensemble]", "samples=8", "conditions=100", "members=2", f"out={tmp_path / 'both'}"
    words += ("reference_split=test",)
    report = evaluated(refined, *words)
    assert Path(report["samples"]).parent == tmp_path / "both"
    assert (tmp_path / "both_ensembles" / "samples.safetensors").is_file()
    assert list(report["results"]) == ["sliced", "ensemble"]
    assert report["counts"]["asked"] == 8
    result = report["results"]["ensemble"]
    assert result["conditions"] == 40  # all that are held out
    assert "only 40 held-out examples" in result["notes"][1]
    assert "reference_split=test has no effect" in result["notes"][2]


def test_evaluate_compares_ensembles_where_the_chosen_part_is_unknown(tmp_path: Path) -> None:
    """The part of `unknown` replaces the one that condition=masked hides at random."""
    run_dir = tmp_path / "masked"
    tiny_run(run_dir, "condition=masked", "every.validation=0", "every.samples=0", "training.samples=16")
    made: list[Ensemble] = []

    def kept(_: Task, ensemble: Ensemble, figure: str) -> Result:
        made.append(ensemble)
        return Result(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "judged", kept)
        evaluated(run_dir, "metrics=[ensemble]", "condition=held_out", "unknown={width:[4,null]}")
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:, 4:] = True
    assert torch.equal(made[0].compared, expected.expand_as(made[0].truth))
    assert torch.equal(made[0].members[..., :4], made[0].truth[None, ..., :4].expand_as(made[0].members[..., :4]))


def test_evaluate_refuses_ensembles_that_cannot_be_drawn(refined: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "plain", "every.validation=0", "every.samples=0", "training.samples=16")
    for message, run_dir, words in (
        ("the run has no dense condition: train with condition=coarse", tmp_path / "plain", []),
        ("remove samples_from", refined, [f"samples_from={tmp_path}"]),
        ("remove initial", refined, ["initial=held_out"]),
        ("overlap=0.5: evaluate compares", refined, ["overlap=0.5"]),
        ("at least 2 conditions of 2 members", refined, ["members=1"]),
    ):
        with pytest.raises(RecipeError, match=message):
            evaluated(run_dir, "metrics=[ensemble]", *words)


def test_sample_draws_members_for_each_condition(refined: Path, tmp_path: Path) -> None:
    def drawn(*words: str) -> Path:
        return sample(configuration.load("sample", [f"run_dir={refined}", "steps=1", *words]))

    folder = drawn("condition=held_out", "count=6", "members=3", "labels=null") / "samples"
    names = sorted(path.name for path in (drawn(f"condition={folder}", "members=2") / "samples").glob("*.png"))
    assert names == [f"{number}_{turn}.png" for number in range(6) for turn in range(2)]
    some = drawn(f"condition={folder}", "members=2", "count=4") / "samples"
    assert sorted(path.name for path in some.glob("*.png")) == ["0_0.png", "0_1.png", "1_0.png", "1_1.png"]
    for message, words in (
        ("count=5 is not a whole multiple of members=2", ["condition=held_out", "count=5", "members=2"]),
        ("nothing in common", ["condition=none", "members=2"]),
    ):
        with pytest.raises(RecipeError, match=message):
            drawn(*words)


def test_field_superresolve_composes_on_periodic_axes() -> None:
    config = configuration.load("train", ["experiment=field_superresolve", "run_dir=r"])
    assert config["modality"]["_target_"] == f"{Field.__module__}.Field"
    assert config["condition"]["factor"] == 4
