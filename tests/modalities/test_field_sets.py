"""Generated fields have the spectrum and distribution that they state, and depend on their settings alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modalities.base import Modality
from modalities.field import Field
from modalities.field_layout import FieldAxis
from modalities.field_sets import TwoPhase, Vorticity, random_symmetry
from modalities.generated_fields import TWO_PHASE, VORTICITY, VORTICITY_TRACER, GeneratedField
from modalities.image import Image
from modalities.navier_stokes import NavierStokes
from modalities.tracer_sets import VorticityTracer
from multisagd.metrics.increments import increments
from multisagd.metrics.one_point import moments, power_sums
from multisagd.metrics.spectral import radial_curve
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.data.dataset import build_dataset
from recipes.data.parts import hold_out
from recipes.runs.settings import TrainSettings
from tests.helpers.refusals import assert_refused

TINY = {"trajectories": 6, "snapshots": 3, "interval": 0.5, "spin_up": 0.5, "validation": 0.2, "test": 0.2}


def field_of(kind: GeneratedField, *sizes: int, **changed: Any) -> Field:
    axes = kind.axes([{"name": name, "size": size, **changed} for name, size in zip("yx", sizes, strict=True)])
    return Field(tuple(FieldAxis(**axis) for axis in axes), (kind.variable, *kind.others))


def tiny(cache: Path, **changed: Any) -> Vorticity:
    return Vorticity(field_of(VORTICITY, 16, 16), cache=cache, **{**TINY, **changed})


@pytest.mark.parametrize(("sizes", "decibels"), [((32, 32), 50), ((32, 32), 70), ((31, 48), 93)])
def test_two_phase_patterns_have_their_dynamic_range_and_two_values(sizes: tuple[int, int], decibels: int) -> None:
    modality = field_of(TWO_PHASE, *sizes)
    x0 = TwoPhase(modality, dynamic_range=decibels).batch(range(300)).x0.double()
    power = radial_curve([(x0, None)], modality.grid()).values.mean(0)
    assert float(10 * (power.max() / power.min()).log10()) == pytest.approx(decibels, abs=2)
    found = moments(power_sums([(x0, None)]))
    assert found.deviation == pytest.approx({50: 0.735, 70: 0.71, 93: 0.68}[decibels], abs=0.015)
    assert found.kurtosis == pytest.approx({50: 1.42, 70: 1.48, 93: 1.54}[decibels], abs=0.04)
    # The step across both ends is like any other.
    across = [increments(x0, None, modality.grid(), name, 1)[0].square().mean((0, 1)) for name in ("y", "x")]
    assert float(across[0][-1].mean() / across[0].mean()) == pytest.approx(1, abs=0.15)
    assert float(across[1][:, -1].mean() / across[1].mean()) == pytest.approx(1, abs=0.15)


def test_two_phase_patterns_depend_on_seed_number_and_size_alone() -> None:
    data = TwoPhase(field_of(TWO_PHASE, 32, 16), count=50)
    batch = data.batch([7, 3]).x0
    assert batch.shape == (2, 1, 32, 16)
    torch.testing.assert_close(data.example(3, seed=5).x0, batch[1], rtol=0, atol=1e-6)
    part = data.subset([3, 7]).subset([1])
    torch.testing.assert_close(part.example(0).x0, batch[0], rtol=0, atol=1e-6)
    other = TwoPhase(data.modality, count=50, seed=1)
    assert not torch.allclose(other.example(7).x0, batch[0])
    assert len({each.fingerprint for each in (data, part, other, TwoPhase(data.modality, 50, 60.0))}) == 4
    with pytest.raises(IndexError, match="index 50 is out of range for a dataset of 50"):
        data.batch([0, 50])


def test_vorticity_is_simulated_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = tiny(tmp_path).fields()
    assert fields.shape == (6, 3, 16, 16)
    assert float(fields.mean((2, 3)).abs().max()) < 1e-6
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(Vorticity, "simulated", lambda self: pytest.fail("it is simulated again"))
    torch.testing.assert_close(tiny(tmp_path).fields(), fields, rtol=0, atol=0)
    # What is damaged is not used, and anything else is not the same simulation.
    simulated: list[int] = []
    monkeypatch.setattr(Vorticity, "simulated", lambda self: simulated.append(1) or fields)
    path.write_bytes(path.read_bytes()[:-100])
    tiny(tmp_path).fields()
    tiny(tmp_path, viscosity=0.02).fields()
    tiny(tmp_path, seed=1).fields()
    assert len(simulated) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_vorticity_of_another_persons_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    node = {"_target_": "modalities.field_sets.Vorticity", **TINY, "cache": str(tmp_path / "given")}
    modality = field_of(VORTICITY, 16, 16)
    data = build_dataset(node, modality, Builder().of_a_run())
    assert isinstance(data, Vorticity)
    fields = data.fields()
    assert not list(tmp_path.iterdir())
    own = build_dataset({**node, "cache": None}, modality, Builder())
    assert isinstance(own, Vorticity)
    torch.testing.assert_close(own.fields(), fields, rtol=0, atol=0)
    assert [path.suffix for path in (tmp_path / "own" / "multisagd" / "fields").iterdir()] == [".safetensors"]


def test_vorticity_holds_out_whole_trajectories(tmp_path: Path) -> None:
    words = ["modality=field", "data=vorticity", "modality.axes={y:16,x:16}", f"data.cache={tmp_path}", "run_dir=r"]
    words += [f"data.{key}={value}" for key, value in TINY.items()]
    settings = Builder().settings(TrainSettings, resolved(configuration.load("train", words)), "")
    modality = Builder().build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    data = build_dataset(settings.data, modality, Builder())
    parts = hold_out(data, settings, Builder())
    assert isinstance(parts.held_out, Vorticity)
    assert isinstance(parts.test, Vorticity)
    assert isinstance(parts.training, Vorticity)
    numbers = [set(part.numbers) for part in (parts.training, parts.held_out, parts.test)]
    assert [{number // 3 for number in each} for each in numbers] == [{0, 1, 2, 3}, {4}, {5}]
    assert [len(each) for each in numbers] == [12, 3, 3]
    assert parts.test.splits == ["test"] * 3
    x0 = parts.test.batch([2]).x0[0, 0]
    torch.testing.assert_close(4.6 * x0, parts.test.fields()[5, 2])


def test_vorticity_is_augmented_by_symmetries_of_the_equations(tmp_path: Path) -> None:
    """What is shifted, turned or reflected, and then evolves, is what evolves first."""
    solver = NavierStokes(24, viscosity=0.01)
    states = solver.initial([0], 2.0)
    later = solver.evolve(states, 0.5)
    for seed in range(12):
        changed = solver.evolve(random_symmetry(states[0], seed)[None], 0.5)
        torch.testing.assert_close(changed[0], random_symmetry(later[0], seed), rtol=0, atol=1e-10)
    assert len({float(random_symmetry(states[0], seed)[0, 0]) for seed in range(12)}) == 12
    data = tiny(tmp_path)
    x0 = data.example(4, seed=3).x0
    torch.testing.assert_close(x0[0], random_symmetry(data.example(4).x0[0], 3))


def test_generated_fields_take_their_axes_from_the_data_and_refuse_others(tmp_path: Path) -> None:
    config = resolved(configuration.load("train", ["modality=field", "data=vorticity", "run_dir=r"]))
    axes = config["modality"]["axes"]
    assert [(axis["name"], axis["size"], axis["unit"], axis["periodic"]) for axis in axes] == [
        ("y", 32, "m", True), ("x", 32, "m", True)
    ]  # fmt: skip
    words = ["modality=field", "data=two_phase", "modality.axes={z:64,w:48}", "run_dir=r"]
    modality = Builder().build(resolved(configuration.load("train", words))["modality"], Modality, "modality")  # type: ignore[type-abstract]
    assert modality.grid().names == ("z", "w")
    assert modality.grid().periodic == (True, True)
    assert modality.tensor_shape == (1, 64, 48)
    edges = field_of(TWO_PHASE, 32, 32, periodic=False)
    assert_refused(
        ("set modality=field, instead of Image", lambda: TwoPhase(Image(size=32))),  # type: ignore[arg-type]
        ("modality.axes={y:{periodic:true,size:32}}", lambda: TwoPhase(edges)),
        ("at least 16 points", lambda: TwoPhase(field_of(TWO_PHASE, 8, 32))),
        ("dynamic_range must be from 50 to 150", lambda: TwoPhase(field_of(TWO_PHASE, 32, 32), dynamic_range=40)),
        ("on a square", lambda: Vorticity(field_of(VORTICITY, 16, 32))),
        ("leave no trajectory to train on", lambda: tiny(tmp_path, trajectories=2)),
        ("validation must be a fraction", lambda: tiny(tmp_path, validation=3)),
        ("with at most 1,048,576 fields of this size", lambda: tiny(tmp_path, trajectories=10**9)),
        ("interval and spin_up must be positive, .* got interval=0, ", lambda: tiny(tmp_path, interval=0.0)),
        ("viscosity must be at least 0", lambda: tiny(tmp_path, viscosity=-1.0)),
        ("count must be from 1 to 10,000,000", lambda: TwoPhase(field_of(TWO_PHASE, 32, 32), count=10**12)),
        ("set a longer step, a shorter time or fewer wave", lambda: tiny(tmp_path, interval=1e9)),
        ("set a longer step, a shorter time or fewer wave", lambda: tiny(tmp_path, spin_up=1e200, injection=0.0)),
        ("trajectories of this size can be solved", lambda: tiny(tmp_path, trajectories=10**6, snapshots=1)),
        ("no wavenumber is from low=2.3", lambda: tiny(tmp_path, wavenumbers=(2.3, 2.7))),
        ("needs at least 91 points", lambda: tiny(tmp_path, wavenumbers=(20, 30), injection=0.0)),
        ("nothing would ever move", lambda: tiny(tmp_path, initial=0.0, injection=0.0)),
    )
    with pytest.raises(RecipeError, match="two-phase patterns are fields: set modality=field"):
        Builder().build({"_target_": "modalities.field_sets.TwoPhase"}, TwoPhase, "data", modality=Image(size=32))


def test_vorticity_tracer_is_stored_with_both_variables(tmp_path: Path) -> None:
    modality = field_of(VORTICITY_TRACER, 16, 16)
    data = VorticityTracer(modality, cache=tmp_path, **TINY)
    fields = data.fields()
    assert fields.shape == (6, 3, 2, 16, 16)
    assert [each.name for each in tmp_path.iterdir()] == [data._path().name]
    again = VorticityTracer(modality, cache=tmp_path, **TINY)
    assert torch.equal(again.fields(), fields)
    assert again.fingerprint == data.fingerprint != VorticityTracer(modality, gradient=2.0, **TINY).fingerprint
    plain = Vorticity(field_of(VORTICITY, 16, 16), cache=tmp_path, **TINY)
    assert torch.equal(plain.fields(), fields[:, :, 0])
    x0 = data.example(4).x0
    torch.testing.assert_close(x0[1], fields[1, 1, 1] / VORTICITY_TRACER.others[0].scale)
    with pytest.raises(ValueError, match="fields of 2 variables on two axes, but the modality has 1"):
        VorticityTracer(field_of(VORTICITY, 16, 16))


def test_vorticity_tracer_is_augmented_by_symmetries_of_the_equations(tmp_path: Path) -> None:
    data = VorticityTracer(field_of(VORTICITY_TRACER, 16, 16), cache=tmp_path, injection=0.0, **TINY)
    solver = data.solver
    state = data.solver.initial([0, 1], 1.0)
    for seed in range(8):
        moved = data.moved(state, seed)
        after = solver.evolve(torch.stack([state, moved]), 0.3)
        torch.testing.assert_close(after[1], data.moved(after[0], seed), rtol=0, atol=1e-9)


def test_vorticity_tracer_takes_its_axes_and_variables_from_the_data(tmp_path: Path) -> None:
    words = ["modality=field", "data=vorticity_tracer", f"data.cache={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    words += ["modality.axes={y:{size:16},x:{size:16}}", *(f"data.{key}={value}" for key, value in TINY.items())]
    config = resolved(configuration.load("train", words))
    built = Builder().settings(TrainSettings, config, "")
    modality = Builder().build(built.modality, Modality, "modality")
    assert [each.name for each in modality.variables] == ["vorticity", "tracer"]
    assert build_dataset(built.data, modality, Builder()).example(0).x0.shape == (2, 16, 16)
