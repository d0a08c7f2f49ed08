"""Checkpoints are exact, complete or absent, verified when they are loaded, and kept by the rules of the settings."""

import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.cli.command import kept
from recipes.runs import checkpoint
from recipes.runs.checkpoint import CheckpointError, Checkpoints, SaveError, State, VersionError, load
from recipes.training.loop import Saver, staged


def state(samples: int, value: float = 0.0) -> State:
    weights = {"w": torch.full((3,), value), "step": torch.tensor(samples, dtype=torch.float32)}
    return State(samples, {"network": weights, "ema": {"w": torch.ones(2, 2, dtype=torch.bfloat16)}}, {"a": [1, "x"]})


def latest(checkpoints: Checkpoints, counted: bool = False) -> State:
    found = checkpoints.latest(counted=counted)
    assert found is not None
    return found


def counts(checkpoints: Checkpoints) -> list[int]:
    return [int(folder.name) for folder in checkpoints.folders()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def truncate(folder: Path) -> None:
    path = folder / "network.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def test_load_returns_exactly_what_save_wrote(tmp_path: Path) -> None:
    loaded = load(Checkpoints(tmp_path / "checkpoints").save(state(64, 0.1)))
    assert (loaded.samples, loaded.record) == (64, {"a": [1, "x"]})
    for part, tensors in state(64, 0.1).tensors.items():
        for name, tensor in tensors.items():
            assert loaded.tensors[part][name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[part][name], tensor)


def test_checkpoints_keep_the_newest_those_just_saved_and_the_first_after_each_multiple(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "few", keep=2)
    assert checkpoints.latest() is None
    for samples in (64, 128, 1024, 512):
        checkpoints.save(state(samples))
    assert counts(checkpoints) == [512, 1024]
    assert latest(checkpoints).samples == 1024
    assert Checkpoints(tmp_path / "few", keep=1).save(state(64)).exists()
    checkpoints = Checkpoints(tmp_path / "some", keep=2, keep_every=100)
    for samples in range(30, 480, 30):
        checkpoints.save(state(samples))
    assert counts(checkpoints) == [120, 210, 300, 420, 450]
    Checkpoints(tmp_path / "some", keep=1).save(state(480))  # without keep_every, they are removed
    assert counts(checkpoints) == [480]


def test_save_replaces_another_state_and_leaves_the_same_one_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(64, 1.0))
    folder = checkpoints.save(state(64, 2.0))
    assert float(latest(checkpoints).tensors["network"]["w"][0]) == 2.0
    before = folder.stat().st_ino
    assert checkpoints.save(state(64, 2.0)) == folder
    assert folder.stat().st_ino == before
    truncate(folder)
    checkpoints.save(state(64, 2.0))
    assert load(folder).samples == 64
    assert names(tmp_path) == [folder.name]


@pytest.mark.parametrize(
    ("step", "call"),
    [
        *(pytest.param((checkpoint, "_flush"), call, id=f"before flush {call}") for call in (1, 2, 3, 4)),
        pytest.param((Path, "rename"), 2, id="while it replaces another"),
    ],
)
def test_save_that_is_killed_leaves_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str], call: int
) -> None:
    """Nothing in it runs after an interrupt, so that the files are those of a process that was killed."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(64, 1.0))
    real, calls = getattr(*step), itertools.count(1)

    def killed(*words: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(*step, killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(state(64, 2.0))
    assert any(name.startswith(".") for name in names(tmp_path)), "it was not writing"
    assert float(latest(checkpoints).tensors["network"]["w"][0]) == 1.0
    checkpoints.save(state(128))
    assert names(tmp_path) == ["000000000064", "000000000128"]


WEIGHTS, INDEX = "network.safetensors", "checkpoint.json"
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "truncated": (WEIGHTS, lambda data: data[: len(data) // 2]),
    "altered": (WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "empty": (WEIGHTS, lambda data: b""),
    "missing": (WEIGHTS, None),
    "no index": (INDEX, None),
    "half an index": (INDEX, lambda data: data[:40]),
    "binary index": (INDEX, lambda data: b"\x80\x04\x95"),
    "list": (INDEX, lambda data: b"[]"),
    "files of a wrong kind": (INDEX, lambda data: b'{"format_version": 1, "samples": 1, "files": 3, "record": {}}'),
    "escape": (INDEX, lambda data: data.replace(b'"network":', b'"../../etc/x":')),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_load_refuses_damaged_checkpoints(tmp_path: Path, kind: str) -> None:
    folder = Checkpoints(tmp_path).save(state(64))
    name, damage = DAMAGES[kind]
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage is not None:
        (folder / name).write_bytes(damage(content))
    with pytest.raises(CheckpointError, match=r"cannot read .*000000000064.*remove"):
        load(folder)


def test_latest_falls_back_from_damage_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    first, second = (checkpoints.save(state(samples)) for samples in (64, 128))
    index = (second / "checkpoint.json").read_text()
    (second / "checkpoint.json").write_text(index.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(VersionError, match="format version 99, but this program reads version 1"):
        checkpoints.latest()
    (second / "checkpoint.json").write_text(index)
    truncate(second)
    assert latest(checkpoints).samples == 64
    assert "network.safetensors" in caplog.text
    assert "falling back" in caplog.text
    truncate(first)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoints.latest()


def test_set_aside_removes_no_readable_checkpoint_until_training_has_passed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for samples in (64, 128, 192):
        checkpoints.save(state(samples))
    Checkpoints(tmp_path, keep=3).save(state(256))
    for samples in (192, 256):
        truncate(checkpoints.place(samples))
    assert latest(checkpoints).samples == 128
    assert checkpoints.set_aside(128) == [checkpoints.place(192), checkpoints.place(256)]
    for samples in (144, 160):
        checkpoints.save(state(samples))
        assert checkpoints.newest() == checkpoints.place(samples)
    # They can be looked at until training has passed them.
    assert names(tmp_path) == [".aside-000000000192", ".aside-000000000256", "000000000144", "000000000160"]
    checkpoints.save(state(224))
    assert names(tmp_path) == [".aside-000000000256", "000000000160", "000000000224"]
    checkpoints.save(state(256))
    assert names(tmp_path) == ["000000000224", "000000000256"]


def test_newest_and_kept_name_the_last_complete_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.newest() is None
    assert kept("train", {"run_dir": str(tmp_path)}).startswith("nothing was saved yet")
    for samples in (64, 128):
        checkpoints.save(state(samples))
    truncate(checkpoints.place(128))
    checkpoints.place(192).mkdir()
    assert checkpoints.newest() == checkpoints.place(64)
    expected = f"the last checkpoint is {tmp_path}/checkpoints/000000000064,"
    assert expected in kept("train", {"run_dir": str(tmp_path)})


def test_checkpoints_by_the_clock_change_nothing_of_those_by_samples(tmp_path: Path) -> None:
    """What training goes back to, and what is kept for good, does not depend on how fast it went."""
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=100)
    for samples in (30, 100, 110, 130, 150, 160, 170):
        checkpoints.save(replace(state(samples), by_clock=samples not in (30, 130)))
    assert counts(checkpoints) == [130, 160, 170]
    for counted, samples in ((False, 170), (True, 130)):
        found = latest(checkpoints, counted)
        assert (found.samples, found.by_clock) == (samples, not counted)
    truncate(checkpoints.place(130))
    assert latest(checkpoints, counted=True).samples == 170


def test_saver_writes_a_copy_made_at_the_moment_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes weights in place while they are written."""
    released, save = threading.Event(), Checkpoints.save

    def late(checkpoints: Checkpoints, state: State) -> Path:
        released.wait(10)
        return save(checkpoints, state)

    monkeypatch.setattr(Checkpoints, "save", late)
    weights, checkpoints = torch.zeros(3, requires_grad=True), Checkpoints(tmp_path)
    changing = State(64, {"network": {"w": weights}}, {})
    assert not staged(changing).tensors["network"]["w"].requires_grad
    with Saver(checkpoints, in_background=True) as saver:
        saver.save(changing)
        weights.detach().add_(1)
        assert not checkpoints.folders()
        released.set()
        saver.finish()
        assert torch.equal(latest(checkpoints).tensors["network"]["w"], torch.zeros(3))


def test_saver_waits_for_the_last_checkpoint_when_it_is_left(tmp_path: Path) -> None:
    for in_background in (True, False):
        checkpoints = Checkpoints(tmp_path / str(in_background))
        with Saver(checkpoints, in_background) as saver:
            for samples in (16, 32, 48):
                saver.save(state(samples))
        assert counts(checkpoints) == [32, 48], in_background


def test_save_fails_in_a_vanished_run_folder_and_saver_raises_errors_once_in_finish(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="cannot write the checkpoint"):
        Checkpoints(tmp_path / "run" / "checkpoints").save(state(64))
    assert not list(tmp_path.iterdir())
    (tmp_path / "checkpoints").write_text("in the way")
    with Saver(Checkpoints(tmp_path / "checkpoints"), in_background=True) as saver:
        saver.save(state(16))
        with pytest.raises(SaveError, match=r"cannot write the checkpoint .*MiB are free.*There is no earlier one"):
            saver.finish()
        saver.finish()
