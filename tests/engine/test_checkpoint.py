import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.runs.checkpoint import CheckpointError, Checkpoints, State, VersionError, load

WRITER = """
import os, signal, sys, torch
from pathlib import Path
from recipes.runs import checkpoint
real, calls = checkpoint._flush, []
def flush(path):
    calls.append(path)
    if len(calls) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)
checkpoint._flush = flush
for kill_at, folder in enumerate(sys.argv[1:], 1):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        continue
    checkpoint.Checkpoints(Path(folder)).save(
        checkpoint.State(200, {"network": {"w": torch.ones(10)}, "ema": {"w": torch.ones(10)}}, {})
    )
    os._exit(1)
"""


def state(samples: int, value: float = 0.0) -> State:
    weights = {"w": torch.full((3,), value), "step": torch.tensor(samples, dtype=torch.float32)}
    return State(samples, {"network": weights, "ema": {"w": torch.ones(2, 2, dtype=torch.bfloat16)}}, {"a": [1, "x"]})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path / "checkpoints").save(state(64, 0.1))
    loaded = load(folder)
    assert loaded.samples == 64
    assert loaded.record == {"a": [1, "x"]}
    for part, tensors in state(64, 0.1).tensors.items():
        for name, tensor in tensors.items():
            assert loaded.tensors[part][name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[part][name], tensor)


def test_keeps_the_last_and_finds_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for samples in (64, 128, 1024, 512):
        checkpoints.save(state(samples))
    assert [folder.name for folder in checkpoints.folders()] == ["000000000512", "000000001024"]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.samples == 1024


def test_saving_the_same_count_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(64, 1.0))
    checkpoints.save(state(64, 2.0))
    latest = checkpoints.latest()
    assert latest is not None
    assert float(latest.tensors["network"]["w"][0]) == 2.0


def test_the_same_state_again_is_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.save(state(64))
    before = folder.stat().st_ino
    assert checkpoints.save(state(64)) == folder
    assert folder.stat().st_ino == before
    damage(folder, "truncated")
    checkpoints.save(state(64))
    assert load(folder).samples == 64
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_killed_while_replacing_there_is_still_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(64, 1.0))
    rename, calls = Path.rename, []

    def killed_at_the_second(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(state(64, 2.0))
    latest = checkpoints.latest()
    assert latest is not None
    assert float(latest.tensors["network"]["w"][0]) == 1.0
    checkpoints.save(state(128))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000064", "000000000128"]


def test_killed_while_writing(tmp_path: Path) -> None:
    """Before each of four files is on the disk."""
    runs = [Checkpoints(tmp_path / str(kill_at)) for kill_at in (1, 2, 3, 4)]
    for checkpoints in runs:
        checkpoints.save(state(100))
    subprocess.run([sys.executable, "-c", WRITER, *(str(checkpoints.folder) for checkpoints in runs)], check=True)
    for checkpoints in runs:
        assert [folder.name for folder in checkpoints.folders()] == ["000000000100"]
        latest = checkpoints.latest()
        assert latest is not None
        assert latest.samples == 100
        assert any(path.name.startswith(".") for path in checkpoints.folder.iterdir()), "it was not at work"
        checkpoints.save(state(200))
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["000000000100", "000000000200"]


def damage(folder: Path, how: str) -> None:
    network, index = folder / "network.safetensors", folder / "checkpoint.json"
    data = network.read_bytes()
    if how == "truncated":
        network.write_bytes(data[: len(data) // 2])
    elif how == "altered":
        network.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "empty":
        network.write_bytes(b"")
    elif how == "missing":
        network.unlink()
    elif how == "no index":
        index.unlink()
    elif how == "half an index":
        index.write_text(index.read_text()[:40])
    elif how == "binary index":
        index.write_bytes(b"\x80\x04\x95")
    elif how == "list":
        index.write_text("[]")
    elif how == "files of a wrong kind":
        index.write_text(json.dumps({"format_version": 1, "samples": 1, "files": 3, "record": {}}))
    elif how == "escape":
        facts = json.loads(index.read_text())
        facts["files"] = {"../../etc/x": facts["files"]["network"]}
        index.write_text(json.dumps(facts))


DAMAGES = [
    "truncated", "altered", "empty", "missing", "no index", "half an index", "binary index", "list",
    "files of a wrong kind", "escape",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_checkpoints_are_refused(tmp_path: Path, how: str) -> None:
    folder = Checkpoints(tmp_path).save(state(64))
    damage(folder, how)
    with pytest.raises(CheckpointError, match=r"cannot read .*000000000064.*remove"):
        load(folder)


def test_falls_back_to_the_one_before_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(64))
    damage(checkpoints.save(state(128)), "truncated")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.samples == 64
    assert "network.safetensors" in caplog.text
    assert "falling back" in caplog.text


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for samples in (64, 128):
        damage(checkpoints.save(state(samples)), "truncated")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoints.latest()


def test_an_unknown_version_is_no_reason_to_fall_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(64))
    index = checkpoints.save(state(128)) / "checkpoint.json"
    index.write_text(index.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(VersionError, match="format version 99, this program reads version 1"):
        checkpoints.latest()


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    import pickle

    folder = Checkpoints(tmp_path / "checkpoints").save(state(64))
    (folder / "network.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        load(folder)
    assert not (tmp_path / "owned").exists()
