"""Checkpoints written while training goes on, and which of them stay."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.cli.command import kept
from recipes.runs.checkpoint import Checkpoints, SaveError, State
from recipes.training.loop import Saver, staged


def state(samples: int, weights: torch.Tensor | None = None) -> State:
    return State(samples, {"network": {"w": torch.ones(3) if weights is None else weights}}, {"a": 1})


def test_what_is_saved_is_what_was_there_at_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes weights in place while they are written."""
    held, save = threading.Event(), Checkpoints.save

    def late(checkpoints: Checkpoints, state: State) -> Path:
        held.wait(10)
        return save(checkpoints, state)

    monkeypatch.setattr(Checkpoints, "save", late)
    weights, checkpoints = torch.zeros(3), Checkpoints(tmp_path)
    with Saver(checkpoints, in_background=True) as saver:
        saver.save(state(64, weights))
        weights.add_(1)
        assert not checkpoints.folders()
        held.set()
        saver.finish()
        latest = checkpoints.latest()
    assert latest is not None
    assert torch.equal(latest.tensors["network"]["w"], torch.zeros(3))


@pytest.mark.parametrize("in_background", [True, False])
def test_leaving_waits_for_the_last(tmp_path: Path, in_background: bool) -> None:
    with Saver(Checkpoints(tmp_path), in_background) as saver:
        for samples in (16, 32, 48):
            saver.save(state(samples))
    assert [path.name for path in Checkpoints(tmp_path).folders()] == ["000000000032", "000000000048"]


def test_an_error_of_the_background_is_raised_where_it_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with Saver(Checkpoints(tmp_path / "checkpoints"), in_background=True) as saver:
        saver.save(state(16))
        with pytest.raises(SaveError, match=r"cannot write the checkpoint .*MiB are free.*There is no earlier one"):
            saver.finish()
        saver.finish()  # once


def test_staging_copies() -> None:
    original = state(1)
    original.tensors["network"]["w"].requires_grad_(True)
    copy = staged(original)
    assert torch.equal(copy.tensors["network"]["w"], original.tensors["network"]["w"])
    assert copy.tensors["network"]["w"].data_ptr() != original.tensors["network"]["w"].data_ptr()
    assert not copy.tensors["network"]["w"].requires_grad


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoil(folder: Path) -> None:
    (folder / "network.safetensors").write_bytes(b"short")


def test_unreadable_newer_ones_cost_no_newer_good_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for samples in (64, 128, 192):
        checkpoints.save(state(samples))
    Checkpoints(tmp_path, keep=3).save(state(256))
    for samples in (192, 256):
        spoil(checkpoints.place(samples))
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.samples == 128
    assert checkpoints.set_aside(128) == [checkpoints.place(192), checkpoints.place(256)]
    for samples in (144, 160):
        checkpoints.save(state(samples))
        assert checkpoints.newest() == checkpoints.place(samples)
    assert [int(path.name) for path in checkpoints.folders()] == [144, 160]
    # They can be looked at until training has passed them.
    assert [name for name in names(tmp_path) if name.startswith(".")] == [".aside-000000000192", ".aside-000000000256"]
    checkpoints.save(state(224))
    assert names(tmp_path) == [".aside-000000000256", "000000000160", "000000000224"]
    checkpoints.save(state(256))
    assert names(tmp_path) == ["000000000224", "000000000256"]


def test_what_is_saved_is_never_what_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(256))
    assert checkpoints.save(state(64)).exists()


def test_messages_name_what_is_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest() is None
    for samples in (64, 128):
        checkpoints.save(state(samples))
    spoil(checkpoints.place(128))
    (tmp_path / "000000000192").mkdir()
    assert checkpoints.newest() == checkpoints.place(64)
    assert kept("train", {"run_dir": str(tmp_path.parent)}).startswith("nothing was saved yet")
    tmp_path.rename(tmp_path.parent / "checkpoints")
    assert f"the last checkpoint is {tmp_path.parent}/checkpoints/000000000064," in kept(
        "train", {"run_dir": str(tmp_path.parent)}
    )


def test_a_checkpoint_does_not_make_up_a_folder_that_has_vanished(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="cannot write the checkpoint"):
        Checkpoints(tmp_path / "run" / "checkpoints").save(state(64))
    assert not list(tmp_path.iterdir())


def test_those_by_the_clock_are_for_continuing_and_no_more(tmp_path: Path) -> None:
    """What training goes back to, and what is kept for good, does not depend on how fast it went."""
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=100)
    for samples in (30, 100, 110, 130, 150, 160, 170):
        by_clock = samples not in (30, 130)
        checkpoints.save(replace(state(samples), by_clock=by_clock))
    assert [int(path.name) for path in checkpoints.folders()] == [130, 160, 170]
    latest, counted = checkpoints.latest(), checkpoints.latest(counted=True)
    assert latest is not None
    assert counted is not None
    assert (latest.samples, latest.by_clock) == (170, True)
    assert (counted.samples, counted.by_clock) == (130, False)
    spoil(checkpoints.place(130))
    counted = checkpoints.latest(counted=True)
    assert counted is not None
    assert counted.samples == 170


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=100)
    for samples in range(30, 480, 30):
        checkpoints.save(state(samples))
    # The first at or after each multiple of 100, and the last two.
    assert [int(path.name) for path in checkpoints.folders()] == [120, 210, 300, 420, 450]
    # A change of mind frees the space.
    Checkpoints(tmp_path, keep=1).save(state(480))
    assert [int(path.name) for path in checkpoints.folders()] == [480]
