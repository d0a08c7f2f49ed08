"""Checkpoints written while training goes on, and which of them stay."""

import threading
from pathlib import Path

import pytest
import torch

from recipes.engine.checkpoint import Checkpoints, SaveError, State
from recipes.engine.saving import Saver, staged


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
        with pytest.raises(SaveError, match=r"cannot write the checkpoint .*MiB are free.*There is none before it"):
            saver.finish()
        saver.finish()  # once


def test_staging_copies() -> None:
    original = state(1)
    original.tensors["network"]["w"].requires_grad_(True)
    copy = staged(original)
    assert torch.equal(copy.tensors["network"]["w"], original.tensors["network"]["w"])
    assert copy.tensors["network"]["w"].data_ptr() != original.tensors["network"]["w"].data_ptr()
    assert not copy.tensors["network"]["w"].requires_grad


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=100)
    for samples in range(30, 480, 30):
        checkpoints.save(state(samples))
    # The first at or after each multiple of 100, and the last two.
    assert [int(path.name) for path in checkpoints.folders()] == [120, 210, 300, 420, 450]
    # A change of mind frees the space.
    Checkpoints(tmp_path, keep=1).save(state(480))
    assert [int(path.name) for path in checkpoints.folders()] == [480]
