"""Forecasts: known states are exactly the lead before an example, in the same place, and never of another split."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modalities.array_files import open_arrays
from modalities.arrays import Arrays
from modalities.base import Modality
from modalities.field import Field, Series
from modalities.field_layout import FieldAxis
from modalities.field_saving import WRITERS
from modalities.field_sets import Vorticity, random_symmetry
from modalities.forecasts import States, divided
from modalities.image import Image
from modalities.navier_stokes import resampled
from modalities.reading import UnreadableFilesError
from modalities.variables import Variable
from multisagd.seeds import derive
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.data.dataset import configured_data
from recipes.data.parts import hold_out
from recipes.runs.settings import TrainSettings
from tests.helpers.array_sets import weather
from tests.helpers.refusals import assert_refused
from tests.modalities.test_field_sets import tiny

GRID = (FieldAxis("y", 4), FieldAxis("x", 4))
DENSITY = Field(GRID, (Variable("density"),))
TIMES = 40


def numbered(*shape: int) -> np.ndarray:
    """Values (…, 6, 6): the number of the field, and below one the place in it."""
    fields = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(*shape, 1, 1)
    return fields + np.arange(36).reshape(6, 6) / 64


def of_file(root: Path, values: np.ndarray, **settings) -> Arrays:
    np.savez(root / "a.npz", **{"density": values, **settings.pop("arrays", {})})
    return Arrays(DENSITY, root / "a.npz", **settings)


def states_by_split(dataset: Arrays) -> dict[str, set[int]]:
    """The numbers of all fields, known ones and forecasts, that the examples of each split consist of."""
    found: dict[str, set[int]] = {}
    assert dataset.splits is not None
    for example, split in zip(dataset, dataset.splits, strict=True):
        assert example.condition is not None
        values = torch.cat([example.condition, example.x0])
        found.setdefault(split, set()).update(values[:, 0, 0].floor().int().tolist())
    return found


def test_forecasts_from_files_are_a_lead_apart_in_the_same_window(tmp_path):
    dataset = of_file(tmp_path, numbered(TIMES), lead=3, history=2, validation=0.2, test=0.2)
    assert len(dataset) == 24 - 6 + 2 * (8 - 6)
    batch = dataset.batch(range(len(dataset)), range(len(dataset)))
    assert batch.dense is not None
    assert batch.dense.shape == (len(dataset), 2, 4, 4)
    differences = batch.x0 - batch.dense
    torch.testing.assert_close(differences, torch.tensor([6.0, 3.0]).view(1, 2, 1, 1).expand_as(differences))
    assert len({round(float(x0[0, 0, 0] % 1), 4) for x0 in batch.x0}) > 3  # the windows differ among examples


def test_forecasts_from_files_hold_out_blocks_of_time(tmp_path):
    dataset = of_file(tmp_path, numbered(TIMES), lead=2, validation=0.2, test=0.2)
    assert states_by_split(dataset) == {
        "train": {*range(24)}, "validation": {*range(24, 32)}, "test": {*range(32, 40)}
    }  # fmt: skip
    assert [dataset.splits.count(split) for split in ("train", "validation", "test")] == [22, 6, 6]
    part = dataset.subset([5, 25])
    assert torch.equal(part.batch([1]).dense, dataset.batch([25]).dense)
    assert part.splits == ["train", "validation"]
    nothing = of_file(tmp_path, numbered(TIMES), lead=2, validation=0, test=0)
    assert set(nothing.splits) == {"train"}
    assert len({dataset.fingerprint, nothing.fingerprint, part.fingerprint}) == 3


@pytest.mark.parametrize("stated", ["two dimensions", "groups", "files", "one field a file"])
def test_forecasts_stay_within_sequences_of_which_whole_ones_are_held_out(tmp_path, stated):
    count, length = 10, 5
    values = numbered(count, length)
    if stated == "two dimensions":
        dataset = of_file(tmp_path, values, lead=1)
    elif stated == "groups":
        groups = np.repeat(np.arange(count), length)
        dataset = of_file(tmp_path, values.reshape(-1, 6, 6), arrays={"group": groups}, lead=1)
        assert dataset.listed_groups == [str(group) for group in range(count) for _ in range(length - 1)]
    else:
        for number, each in enumerate(values):
            if stated == "files":
                np.savez(tmp_path / f"{number}.npz", density=each)
            else:
                (tmp_path / str(number)).mkdir()
                for step, field in enumerate(each):
                    np.savez(tmp_path / str(number) / f"{step}.npz", density=field)
        dataset = Arrays(DENSITY, tmp_path, lead=1)
    assert len(dataset) == count * (length - 1)
    numbers = {split: {state // length for state in states} for split, states in states_by_split(dataset).items()}
    assert numbers == {"train": {*range(8)}, "validation": {8}, "test": {9}}


def test_divided_leaves_sequences_to_train_on():
    """Two of three halves are two, so that whole sequences would all be held out: their last blocks are instead."""
    parts = divided([range(0, 20), range(20, 40), range(40, 60)], 1, 0.5, 0.3)
    assert [(part.start, part.stop) for part, split in parts if split == "train"] == [(0, 4), (20, 24), (40, 44)]
    assert {split for _, split in divided([range(0, 20), range(20, 40)], 1, 0.45, 0)} == {"train", "validation"}


def test_forecasts_within_splits_that_the_file_states(tmp_path, caplog):
    splits = np.array(["train"] * 9 + ["test"] + ["validation"] * 5 + ["train"] * 5)
    dataset = of_file(tmp_path, numbered(20), arrays={"split": splits}, lead=1)
    assert states_by_split(dataset) == {"train": {*range(9), *range(15, 20)}, "validation": {*range(10, 15)}}
    assert "1 of 4 sequences of states are too short" in caplog.text


def test_forecasts_of_parts_of_large_fields_are_of_the_same_part(tmp_path):
    for step in range(12):
        large = np.arange(64.0).reshape(1, 64) / 64 + np.arange(8).reshape(8, 1) / 1024 + step
        np.savez(tmp_path / f"{step:02d}.npz", density=large)
    dataset = Arrays(DENSITY, tmp_path, lead=1, validation=0.25, test=0)
    assert len(dataset) == 8 * (8 + 2)
    batch = dataset.batch(range(len(dataset)), range(len(dataset)))
    torch.testing.assert_close(batch.x0 - batch.dense, torch.ones_like(batch.x0))


def test_known_states_have_unknown_values_where_they_are_missing(tmp_path):
    weather(tmp_path / "a.nc")
    modality = Field.of_file(tmp_path / "a.nc", axes=["lat", "lon"])
    plain = Arrays(modality, tmp_path / "a.nc")
    dataset = Arrays(modality, tmp_path / "a.nc", lead=2, validation=0, test=0)
    example, before = dataset.example(0), plain.example(0)
    assert torch.equal(example.condition.isnan(), ~before.mask)
    assert torch.equal(example.condition.nan_to_num(0), before.x0)
    states = dataset.condition_modality
    assert (states.lead, states.unit, states.channels) == (2.0, "day", 2)


def test_states_of_a_file_are_its_last_ones_and_are_written_with_their_times(tmp_path):
    known = States.known(DENSITY, 2, 3.0, "hour")
    values = numbered(20)[:, :4, :4]
    axes = (FieldAxis("time", 20, 1.0, "hour", start=100.0), *GRID)
    WRITERS["nc"](values[None], axes, DENSITY.variables, tmp_path / "now.nc")
    media = known.load(tmp_path / "now.nc")
    np.testing.assert_allclose(media[:, 0], values[[16, 19]], rtol=1e-6)
    x0 = known.encode(media)
    assert torch.equal(known.decode(x0), media.float().double())
    assert [each.name for each in known.variables] == ["density at -3 hour", "density at +0 hour"]
    later = known.forecast(2)
    later.save(media, tmp_path / "later.nc")
    with open_arrays(tmp_path / "later.nc") as file:
        times = file.coordinate("time")
        assert (times.start, times.spacing, times.unit) == (3.0, 3.0, "hour")
        np.testing.assert_allclose(file.array("density").read(), media[:, 0], rtol=1e-6)
    node = known.described({"_target_": "modalities.field.Field", "axes": [{"name": "y", "size": 4}],
                            "variables": [{"name": "density"}]})  # fmt: skip
    built = Builder().of_a_run().build(node, Modality, "modality")
    assert isinstance(built, States)
    assert (built.count, built.lead, built.unit, built.first) == (2, 3.0, "hour", -1)


def test_forecasts_refuse_what_is_not_evenly_spaced_in_time(tmp_path):
    def written(name: str, start: float, spacing: float, count: int = 6, unit: str = "hour") -> Path:
        axes = (FieldAxis("time", count, spacing, unit, start=start), *GRID)
        WRITERS["nc"](np.ones((1, count, 4, 4)), axes, DENSITY.variables, tmp_path / name)
        return tmp_path / name

    def forecasts(root: Path, **settings) -> Arrays:
        return Arrays(DENSITY, root, **{"lead": 1, "validation": 0, "test": 0, **settings})

    forward = written("forward.nc", 0, 6)
    for folder, starts in (("gap", (0, 1, 3)), ("names", (1, 0, 2)), ("dates", (0, 0, 0)), ("units", (0, 1)),
                           ("some", (0, 2))):  # fmt: skip
        (tmp_path / folder).mkdir()
        for number, start in enumerate(starts):
            written(f"{folder}/{number}.nc", start, 1, count=1)
    written("units/2.nc", 2, 1, count=1, unit="day")
    np.savez(tmp_path / "some" / "2.npz", density=np.ones((4, 4)))
    (tmp_path / "steps").mkdir()
    written("steps/1.nc", 0, 1)
    written("steps/2.nc", 0, 3)
    import xarray

    uneven = xarray.open_dataset(forward, engine="h5netcdf", decode_times=False).load()
    uneven.isel(time=[0, 1, 4, 5]).to_netcdf(tmp_path / "uneven.nc", engine="h5netcdf")
    uneven.isel(time=slice(None, None, -1)).to_netcdf(tmp_path / "back.nc", engine="h5netcdf")
    unknown = uneven.rename(time="step").expand_dims(run=3)
    unknown.to_netcdf(tmp_path / "unknown.nc", engine="h5netcdf")
    series = Series((Variable("x"),), length=4)
    known = States.known(DENSITY, 2, 6.0, "hour")
    assert_refused(
        ("coordinate time descend", lambda: forecasts(tmp_path / "back.nc")),
        ("coordinate time are not evenly spaced", lambda: forecasts(tmp_path / "uneven.nc")),
        ("not known which is time: rename it", lambda: forecasts(tmp_path / "unknown.nc")),
        ("not evenly spaced in time in the order of their names", lambda: forecasts(tmp_path / "gap")),
        ("not evenly spaced in time in the order of their names", lambda: forecasts(tmp_path / "names")),
        ("all files in .*dates have the time 0, perhaps since another date", lambda: forecasts(tmp_path / "dates")),
        ("or in different units: add the coordinate time", lambda: forecasts(tmp_path / "units")),
        ("only some of the files in .*some state their time", lambda: forecasts(tmp_path / "some")),
        ("are 1 hour and 3 hour apart", lambda: forecasts(tmp_path / "steps")),
        ("need 7 states in a row, but the data have at most 6", lambda: forecasts(forward, lead=3, history=2)),
        ("are for test, but one forecast needs 2", lambda: forecasts(forward, test=0.2)),
        ("leave nothing to train on", lambda: forecasts(forward, validation=0.5, test=0.5)),
        ("lead must be at least 1", lambda: forecasts(forward, lead=0)),
        ("history from 1 to 64", lambda: forecasts(forward, history=65)),
        ("history, validation and test are for forecasts", lambda: Arrays(DENSITY, forward, test=0.1)),
        ("forecasts are of fields", lambda: Arrays(Image(size=4), forward, lead=1)),
        ("forecasts are of fields", lambda: Arrays(series, forward, lead=1)),
        ("without an axis or variable named time", lambda: States(Field((FieldAxis("time", 4),), (Variable("x"),)))),
        ("1 state, but 2 known ones", lambda: known.load(tmp_path / "gap" / "0.nc")),
        ("not a whole multiple: resample", lambda: known.load(written("four.nc", 0, 4))),
        ("times are in month, but .* are 6 hour apart", lambda: known.load(written("late.nc", 0, 6, unit="month"))),
        ("expected 1 to 64 known states", lambda: States(DENSITY, first=-64)),
        ("expected 1 to 64 known states", lambda: States(DENSITY, count=10**9)),
        ("has 3 sequences of states", lambda: known.load(written_runs(tmp_path / "runs.npz"))),
        ("states are written as nc, npz, npy", lambda: known.save(torch.ones(2, 1, 4, 4), tmp_path / "a.csv")),
    )


def written_runs(path: Path) -> Path:
    np.savez(path, density=np.ones((3, 5, 4, 4)))
    return path


def test_known_state_with_infinite_values_is_not_used(tmp_path):
    values = numbered(TIMES)
    values[3, 2, 2] = np.inf
    dataset = of_file(tmp_path, values, lead=1, max_unreadable=0)
    with pytest.raises(UnreadableFilesError, match="a state before it contains infinity"):
        dataset.example(3)


def test_vorticity_forecast_is_what_the_solver_makes_of_the_known_state(tmp_path: Path) -> None:
    data = tiny(tmp_path, snapshots=5, lead=2, history=2)
    assert len(data) == 6
    solver, seeds = data.solver, [derive(data.seed, "trajectory", number) for number in range(6)]
    states = solver.initial([derive(seed, "initial") for seed in seeds], data.initial, *data.wavenumbers)
    states = solver.evolve(states, data.spin_up, [derive(seed, "spin-up") for seed in seeds])
    fields = []
    for number in range(5):
        states = solver.evolve(states, data.interval, [derive(seed, "snapshot", number) for seed in seeds])
        fields.append(resampled(states, 16, solver.largest).float() / 4.6)
    batch = data.batch(range(6))
    torch.testing.assert_close(batch.x0[:, 0], fields[4])
    torch.testing.assert_close(batch.dense, torch.stack([fields[0], fields[2]], 1))
    known = data.condition_modality
    assert isinstance(known, States)
    assert (known.count, known.lead, known.unit, known.first) == (2, 1.0, "s", -1)
    # The known states are changed by the same symmetry.
    plain, changed = data.example(3), data.example(3, seed=11)
    for before, after in zip([*plain.condition, plain.x0[0]], [*changed.condition, changed.x0[0]], strict=True):
        torch.testing.assert_close(after, random_symmetry(before, 11))
    assert not torch.equal(plain.x0, changed.x0)
    assert len({data.fingerprint, tiny(tmp_path, snapshots=5).fingerprint}) == 2
    assert_refused(
        ("need at least 6 snapshots, got snapshots=5", lambda: tiny(tmp_path, snapshots=5, lead=5)),
        ("history=2 is for forecasts: set lead", lambda: tiny(tmp_path, history=2)),
    )


def test_vorticity_forecasts_hold_out_whole_trajectories(tmp_path: Path) -> None:
    data = tiny(tmp_path, snapshots=4, lead=1)
    assert isinstance(data, Vorticity)
    held = {split: {n // 4 for n, own in zip(data.numbers, data.splits or (), strict=True) if own == split}
            for split in ("train", "validation", "test")}  # fmt: skip
    assert held == {"train": {0, 1, 2, 3}, "validation": {4}, "test": {5}}
    # Without held-out trajectories, pairs are not divided at random either.
    assert set(tiny(tmp_path, lead=1, validation=0, test=0).splits or ()) == {"train"}


def test_configured_forecasts_take_their_axes_from_files_and_their_parts_in_time(tmp_path: Path) -> None:
    axes = (FieldAxis("time", TIMES, 0.5, "s"), FieldAxis("x", 16, 0.1, "m"))
    WRITERS["nc"](np.random.default_rng(0).normal(size=(1, TIMES, 16)), axes, DENSITY.variables, tmp_path / "a.nc")
    words = ["modality=field", "data=arrays", f"data.root={tmp_path / 'a.nc'}", "data.lead=2", "run_dir=r"]
    config = resolved(configuration.load("train", words))
    assert [axis["name"] for axis in config["modality"]["axes"]] == ["x"]
    settings = Builder().settings(TrainSettings, config, "")
    parts = hold_out(configured_data(settings, Builder()), settings, Builder())
    assert [len(each or ()) for each in (parts.training, parts.held_out, parts.test)] == [30, 2, 2]
