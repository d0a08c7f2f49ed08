"""Runs, latents, steps and archives made to harm: refused in one message, without running or writing anything.

Each case poisons a copy of a real run and gives it to the command that would use it. Whoever can write a file of a run
can also write its SHA-256, so the sums are made to fit.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration, read_tensors
from recipes.config import compose as configuration
from recipes.design import design
from recipes.encode import encode
from recipes.evaluate import evaluate
from recipes.launch import planned
from recipes.sample import sample
from recipes.train import train
from tests.helpers.tiny import TINY, tiny_run

QUICK = ["steps=2", "count=2", "engine.threads=1", "engine.device=cpu"]
CHECKPOINT = Path("checkpoints/000000000096")
Poison = Callable[[Path, Path], object]
"""Harms a run folder; its second argument is the file that must not come to be."""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder)
    return folder


@pytest.fixture
def run_dir(healthy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(healthy, tmp_path / "inside" / "run")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@functools.cache
def composed(command: str, *words: str) -> dict[str, Any]:
    """Compose a configuration once for all cases, which takes longer than to refuse it."""
    return configuration.load(command, [*words, "run_dir=anywhere"])


def draw(run_dir: Path, *words: str) -> object:
    return sample({**composed("sample", *QUICK, *words), "run_dir": str(run_dir)})


def go_on(run_dir: Path, *words: str) -> None:
    train({**composed("train", *TINY, "training.samples=128", *words), "run_dir": str(run_dir)})


def judge(run_dir: Path, *words: str) -> object:
    arguments = [f"run_dir={run_dir}", f"cache={run_dir / 'cache'}", *QUICK, *words]
    return evaluate(configuration.load("evaluate", arguments))


def plan(run_dir: Path, *words: str) -> object:
    return design(
        configuration.load("design", [f"statistics={run_dir}", f"out={run_dir / 'design'}", "steps=2", *words])
    )


def launched(run_dir: Path, *words: str) -> object:
    return planned(["cluster=local", f"run_dir={run_dir}", *TINY, *words])


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a folder, with the time and size by which a change would be seen."""
    found = [path for path in folder.rglob("*") if not path.is_symlink()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


@contextlib.contextmanager
def bounded(seconds: int = 20) -> Iterator[None]:
    """Fail, instead of hanging, in what takes too long; nothing here takes more than a moment."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not refused within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(act: Callable[..., object], run_dir: Path, canary: Path, *words: str, match: str) -> None:
    """Check that a command ends in one message, and that nothing came to be but what lies in the run's own folder."""
    outside = run_dir.parents[1]
    before = {name: facts for name, facts in tree(outside).items() if not name.startswith("inside")}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded(), pytest.raises(RecipeError, match=match) as caught:
        act(run_dir, *words)
    assert len(str(caught.value)) < 3000
    assert not canary.exists()
    assert {name: facts for name, facts in tree(outside).items() if not name.startswith("inside")} == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 400 << 10, "hundreds of megabytes were taken"


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def signed(run_dir: Path) -> None:
    """Make the index of the last checkpoint fit what its files hold now."""
    path = run_dir / CHECKPOINT / "checkpoint.json"
    index = json.loads(path.read_text())
    for files in index["files"].values():
        for name in files:
            content = (path.parent / name).read_bytes()
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(index))


def alone(run_dir: Path) -> None:
    """Leave only the last checkpoint: a harmed one is otherwise passed over."""
    for folder in (run_dir / "checkpoints").iterdir():
        if folder.name != CHECKPOINT.name:
            shutil.rmtree(folder)


def part(content: Callable[[Path], bytes], name: str = "ema") -> Poison:
    """Replace a tensor file of the checkpoint, sums and all."""

    def poison(run_dir: Path, canary: Path) -> None:
        (run_dir / CHECKPOINT / f"{name}.safetensors").write_bytes(content(canary))
        signed(run_dir)

    return poison


def header(described: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header, which need not make sense."""
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + data


def zipped(canary: Path) -> bytes:
    content = io.BytesIO()
    torch.save({"w": Bomb(canary)}, content)
    return content.getvalue()


def tensor(shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda canary: pickle.dumps(Bomb(canary)),
    "torch.save": zipped,
    "header of 2^60 bytes": lambda canary: struct.pack("<Q", 1 << 60) + b"{}",
    "overlapping tensors": lambda canary: header({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, bytes(12)),
    "negative offsets": lambda canary: header({"a": tensor([2], [-8, 0])}, bytes(8)),
    "tensor beyond the end": lambda canary: header({"a": tensor([10**15], [0, 4 * 10**15])}, bytes(8)),
    "shape that is not its bytes": lambda canary: header({"a": tensor([10**15], [0, 8])}, bytes(8)),
    "shape that overflows": lambda canary: header({"a": tensor([1 << 62, 1 << 62], [0, 0])}),
    "deep header": lambda canary: header(b'{"a":' * 100_000),
    "unknown dtype": lambda canary: header({"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
}


@pytest.mark.parametrize("how", HEADERS)
def test_tensor_files_that_are_none(run_dir: Path, canary: Path, how: str) -> None:
    alone(run_dir)
    part(HEADERS[how])(run_dir, canary)
    refused(draw, run_dir, canary, match=r"none of the 1 checkpoints in .* can be read: remove that folder")


@pytest.mark.parametrize(("dtype", "shape"), [("F32", [0, 1 << 63]), ("F4", [0, 1 << 62, 4])])
def test_shapes_beyond_what_torch_counts(tmp_path: Path, dtype: str, shape: list[int]) -> None:
    (tmp_path / "a").write_bytes(header({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}}))
    with pytest.raises(ValueError, match=r"failed to unpack|overflowed"):
        read_tensors(tmp_path / "a")


def test_a_lack_of_memory_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a")

    def clone(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "clone", clone)
    with pytest.raises(RuntimeError, match="allocate"):
        read_tensors(tmp_path / "a")


def edited(change: Callable[[dict[str, Any]], object]) -> Poison:
    """Change the index of the checkpoint."""

    def poison(run_dir: Path, canary: Path) -> None:
        path = run_dir / CHECKPOINT / "checkpoint.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return poison


def written(text: str) -> Poison:
    return lambda run_dir, canary: (run_dir / CHECKPOINT / "checkpoint.json").write_text(text)


def sparse(run_dir: Path, canary: Path) -> None:
    with (run_dir / CHECKPOINT / "checkpoint.json").open("r+b") as file:
        file.truncate(1 << 40)


def linked(target: str) -> Poison:
    """Replace a part by a link; its sums fit."""

    def poison(run_dir: Path, canary: Path) -> None:
        path = run_dir / CHECKPOINT / "ema.safetensors"
        path.unlink()
        path.symlink_to(target)
        if Path(target).is_file():
            signed(run_dir)
            return
        edited(lambda index: index["files"]["ema"]["ema.safetensors"].update(bytes=0))(run_dir, canary)

    return poison


def pipe(name: str | Path) -> Poison:
    def poison(run_dir: Path, canary: Path) -> None:
        (run_dir / name).unlink(missing_ok=True)
        os.mkfifo(run_dir / name)

    return poison


INDICES: dict[str, Poison] = {
    "deep": written("[" * 100_000),
    "a terabyte": sparse,
    "names twice": written('{"format_version": 1, "samples": 96, "samples": 1, "files": {}, "record": {}}'),
    "number of a million digits": written('{"format_version": 1, "samples": ' + "9" * 1_000_000 + "}"),
    "NaN samples": written('{"format_version": 1, "samples": NaN, "files": {}, "record": {}}'),
    "a part without a name": edited(lambda index: index["files"].update({"": {"x": {}}})),
    "a part that leads above": edited(lambda index: index["files"].update({"..": {"x": {}}})),
    "negative samples": edited(lambda index: index.update(samples=-1)),
    "huge samples": edited(lambda index: index.update(samples=10**30)),
    "samples as text": edited(lambda index: index.update(samples="96")),
    "files above": edited(lambda index: index["files"].update({"../../x": {"../../x.safetensors": {}}})),
    "files elsewhere": edited(lambda index: index["files"].update(ema={"/etc/passwd": {}})),
    "files in a folder above": edited(lambda index: index["files"].update(ema={"ema/../../x.safetensors": {}})),
    "part that is a link to a file of the system": linked("/etc/passwd"),
    "part that is a device": linked("/dev/zero"),
    "part that is a pipe": pipe(CHECKPOINT / "ema.safetensors"),
    "index that is a pipe": pipe(CHECKPOINT / "checkpoint.json"),
}


@pytest.mark.parametrize("how", INDICES)
def test_indices_of_checkpoints(run_dir: Path, canary: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    alone(run_dir)
    INDICES[how](run_dir, canary)
    refused(draw, run_dir, canary, match=r"none of the 1 checkpoints in .* can be read: remove that folder")
    assert CHECKPOINT.name in caplog.text


def test_a_checkpoint_with_a_strange_name_is_none(run_dir: Path, canary: Path) -> None:
    alone(run_dir)
    (run_dir / CHECKPOINT).rename(run_dir / "checkpoints" / "0²")
    (run_dir / "checkpoints" / ".replaced-x").mkdir()
    refused(draw, run_dir, canary, match="has no checkpoint yet")


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "window": ({"window": ["import os", "0x0p+0", "0x0p+0"]}, "window=.*not three hex numbers.*remove"),
    "position": ({"metrics_position": -(10**30)}, "metrics_position=-1000.*not a count.*remove"),
    "rollbacks": ({"rollbacks": "many"}, "rollbacks='many', not a count"),
}


@pytest.mark.parametrize("how", RECORDS)
def test_records_of_checkpoints(run_dir: Path, canary: Path, how: str) -> None:
    changes, message = RECORDS[how]
    edited(lambda index: index["record"].update(changes))(run_dir, canary)
    refused(go_on, run_dir, canary, match=message)


def optimizer(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Poison:
    def poison(run_dir: Path, canary: Path) -> None:
        path = run_dir / CHECKPOINT / "optimizer.safetensors"
        save_file(change(load_file(path)), path)
        signed(run_dir)

    return poison


OPTIMIZERS: dict[str, tuple[Poison, str]] = {
    # A fused kernel would write as many numbers as the parameter has.
    "too small": (
        optimizer(lambda there: {k: v if k.endswith("step") else torch.tensor(0.0) for k, v in there.items()}),
        "optimiser state .* does not fit this network: use another run_dir",
    ),
    "without moments": (
        optimizer(lambda there: {k: v for k, v in there.items() if k.endswith("step")}),
        "is step and not that of AdamW: use another run_dir",
    ),
}


@pytest.mark.parametrize("how", OPTIMIZERS)
def test_optimiser_states(run_dir: Path, canary: Path, how: str) -> None:
    poison, message = OPTIMIZERS[how]
    poison(run_dir, canary)
    refused(go_on, run_dir, canary, match=message)


def sharded(offsets: list[int], files: Callable[[Path], object] = lambda folder: None) -> Poison:
    """Give the weights as a folder of shards, the first piece of each tensor at an absurd place."""

    def poison(run_dir: Path, canary: Path) -> None:
        folder = run_dir / CHECKPOINT / "ema"
        whole = load_file(run_dir / CHECKPOINT / "ema.safetensors")
        places = {
            name: {"saved_offsets": offsets[: each.ndim] + [0] * (each.ndim - len(offsets))}
            for name, each in whole.items()
        }
        folder.mkdir()
        save_file(whole, folder / "shard-00001.safetensors", {"DCP_SHARDING_INFO": json.dumps(places), "format": "pt"})
        (run_dir / CHECKPOINT / "ema.safetensors").unlink()
        files(folder)
        # What PyTorch's own storage would unpickle, and the index that Hugging Face's tools follow.
        (folder / ".metadata").write_bytes(pickle.dumps(Bomb(canary)))
        weights = {"weight_map": dict.fromkeys(whole, "../../../../secret.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
        index = json.loads((run_dir / CHECKPOINT / "checkpoint.json").read_text())
        index["files"]["ema"] = {"ema/shard-00001.safetensors": {}}
        (run_dir / CHECKPOINT / "checkpoint.json").write_text(json.dumps(index))
        signed(run_dir)

    return poison


SHARDS: dict[str, Poison] = {
    "pieces far away": sharded([10**15]),
    "pieces at negative places": sharded([-4]),
    "pieces beyond numbers": sharded([1 << 70]),
    "shards that the index does not name": sharded(
        [0], lambda folder: save_file({"a": torch.zeros(2)}, folder / "extra.safetensors")
    ),
}


@pytest.mark.parametrize("how", SHARDS)
def test_shards(run_dir: Path, canary: Path, how: str) -> None:
    alone(run_dir)
    SHARDS[how](run_dir, canary)
    refused(draw, run_dir, canary, match="none of the 1 checkpoints")


def test_what_lies_beside_shards_is_not_read(run_dir: Path, canary: Path) -> None:
    """The pickle that torch.distributed.checkpoint writes by default, and an index that leads elsewhere."""
    sharded([0])(run_dir, canary)
    draw(run_dir)
    assert not canary.exists()


def config(change: Callable[[dict[str, Any], Path], object]) -> Poison:
    def poison(run_dir: Path, canary: Path) -> None:
        values = read_configuration(run_dir / "config.yaml")
        change(values, canary)
        (run_dir / "config.yaml").write_text(yaml.safe_dump(values))

    return poison


def raw(text: str) -> Poison:
    return lambda run_dir, canary: (run_dir / "config.yaml").write_text(text.replace("CANARY", str(canary)))


def target(path: str, group: str = "network", **values: Any) -> Poison:
    def change(there: dict[str, Any], canary: Path) -> None:
        there[group] = {
            "_target_": path,
            **{key: str(value).replace("CANARY", str(canary)) for key, value in values.items()},
        }
        there["allow_targets"] = [path.split(".")[0]]

    return config(change)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
UNREADABLE = r"cannot read the run's configuration .*config.yaml: .*Restore"
CONFIGS: dict[str, tuple[Poison, str]] = {
    "YAML that calls": (raw("a: !!python/object/apply:os.system ['touch CANARY']"), UNREADABLE),
    "YAML that makes objects": (raw("a: !!python/object/new:os.system ['touch CANARY']"), UNREADABLE),
    "billion laughs": (raw(LAUGHS), UNREADABLE),
    "deep YAML": (raw("[" * 100_000), UNREADABLE),
    "names twice": (raw("seed: 0\nseed: 1\n"), UNREADABLE),
    "number of a million digits": (raw("seed: " + "9" * 900_000), UNREADABLE),
    "no date": (raw("seed: 2001-99-99"), UNREADABLE),
    "larger than any": (raw("a: " + "x" * (2 << 20)), UNREADABLE),
    "pipe": (pipe("config.yaml"), "cannot read .*config.yaml: it is a pipe and not a file"),
    "os.system": (target("os.system", command="touch CANARY"), "network._target_: os.system is not under an allowed"),
    "subprocess.Popen": (target("subprocess.Popen", args="touch CANARY"), "subprocess.Popen is not under an allowed"),
    "through our imports": (
        target("recipes.config.build.importlib.import_module", name="antigravity"),
        r"network._target_: .*\(which is importlib\) is not under an allowed package",
    ),
    "through private names": (target("multisagd.networks.UNet.__init__.__globals__"), "begins with _"),
    "path for a name": (target("multisagd./tmp/evil.Network"), "is not an import path"),
    "ours, of another type": (target("multisagd.PowerLaw", exponent=1), "network._target_: .* is not a Module"),
    "ours, that launches": (
        target("recipes.clusters.cluster.Local", "spectrum"),
        "spectrum._target_: .* is not a Spectrum",
    ),
    "target that is no text": (
        config(lambda there, canary: there["network"].update(_target_=["os.system"])),
        "network._target_: .* is not under an allowed package",
    ),
    "group that is none": (
        config(lambda there, canary: there.update(network="os.system")),
        "config.yaml: network: .*Restore",
    ),
    "group that is missing": (config(lambda there, canary: there.pop("modality")), "config.yaml: .*modality"),
    "absurd width": (config(lambda there, canary: there["network"].update(width=10**9)), "network: .*Restore"),
    "absurd depth": (config(lambda there, canary: there["network"].update(blocks=10**9)), "network: .*Restore"),
    "width beyond numbers": (config(lambda there, canary: there["network"].update(width=10**30)), "network: "),
    "absurd size": (
        config(lambda there, canary: there["modality"].update(size=10**7)),
        r"statistics have shape \(1, 8, 8\), but .*restore",
    ),
    "absurd padding": (config(lambda there, canary: there.update(padding={"height": 10**9})), "padding=.*pad less"),
}


@pytest.mark.parametrize("how", CONFIGS)
def test_configurations(run_dir: Path, canary: Path, how: str) -> None:
    poison, message = CONFIGS[how]
    poison(run_dir, canary)
    refused(draw, run_dir, canary, match=message)


def test_interpolations_of_a_saved_configuration_are_text(
    run_dir: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "8")
    config(lambda there, canary: there["network"].update(width="${oc.env:SECRET}"))(run_dir, canary)
    refused(draw, run_dir, canary, match=r"network.width: expected a whole number, got '\$\{oc.env:SECRET\}'")


@pytest.mark.parametrize("act", [go_on, judge, launched])
@pytest.mark.parametrize("how", ["YAML that calls", "billion laughs", "pipe"])
def test_every_command_refuses_such_configurations(
    run_dir: Path, canary: Path, act: Callable[..., object], how: str
) -> None:
    poison, message = CONFIGS[how]
    poison(run_dir, canary)
    message = "config.yaml is a pipe" if act is go_on and how == "pipe" else message
    refused(act, run_dir, canary, match=message)


def test_evaluate_builds_no_foreign_data(run_dir: Path, canary: Path) -> None:
    target("os.system", "data", command="touch CANARY")(run_dir, canary)
    refused(judge, run_dir, canary, match="data._target_: os.system is not under an allowed package")


def facts(**changes: Any) -> Poison:
    def poison(run_dir: Path, canary: Path) -> None:
        path = run_dir / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return poison


@pytest.mark.parametrize(
    ("poison", "name"),
    [
        (facts(classes="everything"), "classes"),
        (facts(classes=[1, 2]), "classes"),
        (facts(text={"name": "x", "fingerprint": "y", "width": -5}), "width of the text"),
        (facts(text=["os.system"]), "text"),
        (facts(data=3), "data"),
        (lambda run_dir, canary: (run_dir / "run.json").write_text("[]"), "content"),
    ],
)
def test_facts(run_dir: Path, canary: Path, poison: Poison, name: str) -> None:
    poison(run_dir, canary)
    refused(draw, run_dir, canary, match=rf"cannot read .*run.json \(its {name} is invalid\)")


def statistics(tensors: dict[str, torch.Tensor], axes: Any, count: Any = 100) -> Poison:
    described = {"format_version": 1, "count": count, "axes": axes}

    def poison(run_dir: Path, canary: Path) -> None:
        # Beside it and renamed: the file may be mapped into memory.
        save_file(tensors, run_dir / "new", {"statistics": json.dumps(described)})
        (run_dir / "new").replace(run_dir / "statistics.safetensors")

    return poison


AXES = [{"name": name, "size": 8, "spacing": 1.0, "unit": "pixel", "corner": None} for name in ("height", "width")]
SOUND = {"mean": torch.zeros(1, 8, 8), "power": torch.ones(1, 8, 5)}
STATISTICS: dict[str, tuple[Poison, str]] = {
    "NaN": (statistics({**SOUND, "power": torch.full((1, 8, 5), torch.nan)}, AXES), "not finite"),
    "negative": (statistics({**SOUND, "power": -SOUND["power"]}, AXES), "power is negative"),
    "absurd grid": (statistics(SOUND, [{**AXES[0], "size": 10**12}, AXES[1]]), "do not fit a grid"),
    "no dimension": (statistics({**SOUND, "mean": torch.tensor(1.0)}, AXES), "do not fit a grid"),
    "axes of another kind": (statistics(SOUND, [3]), "axes are invalid"),
    "count of another kind": (statistics(SOUND, AXES, "many"), "its count should be a number of data"),
    "pipe": (pipe("statistics.safetensors"), "is a pipe and not a file"),
}


@pytest.mark.parametrize("act", [draw, plan])
@pytest.mark.parametrize("how", STATISTICS)
def test_statistics(run_dir: Path, canary: Path, act: Callable[..., object], how: str) -> None:
    poison, message = STATISTICS[how]
    poison(run_dir, canary)
    refused(act, run_dir, canary, match=rf"cannot read .*statistics.safetensors \(.*{message}")


@pytest.mark.parametrize("act", [draw, go_on])
def test_statistics_of_another_grid(run_dir: Path, canary: Path, act: Callable[..., object]) -> None:
    other = {"mean": torch.zeros(3, 4, 4), "power": torch.ones(3, 4, 3)}
    statistics(other, [{**axis, "size": 4} for axis in AXES])(run_dir, canary)
    refused(act, run_dir, canary, match=r"statistics have shape \(3, 4, 4\)")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        pickle.dumps([1]).decode("latin-1"),
        '{"format": "multisagd steps 1", "log_snrs": [NaN, 1], "objective": "w2", "sampler": "", "value": 0}',
        '{"format": "multisagd steps 1", "log_snrs": [1'
        + "0" * 400
        + '], "objective": "w2", "sampler": "", "value": 0}',
        '{"format": "multisagd steps 1", "log_snrs": [-1, 1], "__class__": "os.system"}',
    ],
    ids=["deep", "list", "pickle", "NaN", "huge", "other keys"],
)
def test_steps(run_dir: Path, canary: Path, content: str) -> None:
    (run_dir / "steps.json").write_text(content)
    refused(
        draw,
        run_dir,
        canary,
        f"steps_file={run_dir / 'steps.json'}",
        match="steps_file: .*not a file of designed steps",
    )


def link(name: str) -> Poison:
    """Make a name of the run lead to a folder or file outside."""

    def poison(run_dir: Path, canary: Path) -> None:
        outside = run_dir.parents[1] / "victim"
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
            outside.mkdir()
        else:
            path.unlink(missing_ok=True)
            outside.write_text("precious")
        path.symlink_to(outside)

    return poison


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "config.yaml.partial", "samples", "timing.jsonl", "run.json"]
)
def test_links_out_of_a_run_are_not_written_through(run_dir: Path, canary: Path, name: str) -> None:
    link(name)(run_dir, canary)
    refused(go_on, run_dir, canary, match=rf"{name} is a link to .*victim, outside of .*replace it")


def test_samples_are_not_written_through_a_link(run_dir: Path, canary: Path) -> None:
    (run_dir / "sampled").mkdir(exist_ok=True)
    link("sampled")(run_dir, canary)
    refused(draw, run_dir, canary, match="sampled is a link to .*victim, outside of .*replace it")


def test_pipes_in_a_run_are_not_waited_for(run_dir: Path, canary: Path) -> None:
    pipe("metrics.jsonl")(run_dir, canary)
    refused(go_on, run_dir, canary, match="metrics.jsonl is a pipe or a device")


def picture() -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(content, "PNG")
    return content.getvalue()


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One entry of an archive, its header as it says itself."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def larger() -> bytes:
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 60
    return info.tobuf(tarfile.GNU_FORMAT) + picture()


END = bytes(1024)
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "name above": (lambda: member("../../canary.png", picture()) + END, "leads out of the archive: pack it again"),
    "name elsewhere": (lambda: member("/tmp/canary.png", picture()) + END, "leads out of the archive: pack it again"),
    "member of 2^60 bytes": (lambda: larger() + END, "it is truncated"),
    "name of 2^30 bytes": (
        lambda: member("@LongLink", b"", b"L")[:124] + b"%011o\0" % (1 << 30) + bytes(888),
        "damaged|not a tar archive",
    ),
    "deep JSON": (
        lambda: member("a.png", picture()) + member("a.json", b"[" * 100_000) + END,
        "'a.json' is not valid JSON",
    ),
    "pickle": (lambda: pickle.dumps(Bomb(Path("/nonexistent/canary"))), "truncated|not a tar archive"),
}


@pytest.mark.parametrize("how", ARCHIVES)
def test_archives(tmp_path: Path, canary: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "inside" / "cache"))
    content, message = ARCHIVES[how]
    shards = tmp_path / "inside" / "shards"
    shards.mkdir(parents=True)
    (shards / "0.tar").write_bytes(content())
    words = ["data=webdataset", f"data.urls={shards}", "modality=image"]
    refused(go_on, tmp_path / "inside" / "run", canary, *words, match=message)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of digits, by the autoencoder that changes nothing."""
    folder = tmp_path_factory.mktemp("encoded") / "latents"
    encode(of_latents("encode", "data=digits", "shard_size=900", "engine.device=cpu", f"run_dir={folder}"))
    return folder


def of_latents(command: str, *words: str) -> dict[str, Any]:
    latent = ["modality=latent_image", "modality.modality.size=8", "modality.modality.channels=1"]
    composed = configuration.load(command, [*latent, "modality.autoencoder.name=none", *words])
    composed["modality"]["autoencoder"] = {"_target_": "modalities.autoencoders.Identity"}
    return composed


SHARD = "000000.safetensors"


def numbers(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def poison(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return poison


def named(file: str) -> Callable[[Path], object]:
    return numbers(lambda index: index["shards"][0].update(file=file))


def absurd(index: dict[str, Any]) -> None:
    index.update(examples=10**15, shard_size=10**15, shards=[{**index["shards"][0], "rows": 10**15}])


def other_shape(folder: Path) -> None:
    """Give a shard one row that is as long as all of them were."""
    tensors = {"x0": torch.zeros(1, 1, 8, 8 * 900), "labels": torch.zeros(1, dtype=torch.int64)}
    save_file(tensors, folder / SHARD)
    size = (folder / SHARD).stat().st_size
    numbers(lambda index: index["shards"][0].update(bytes=size))(folder)


def infinite(folder: Path) -> None:
    path = folder / "statistics.json"
    path.write_text(path.read_text().replace('"std": [', '"std": [1e400, '))


LATENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep index": (lambda folder: (folder / "index.json").write_text("[" * 100_000), "cannot read .*index.json"),
    "shard above": (named("../x.safetensors"), "cannot read .*index.json"),
    "shard elsewhere": (named("/etc/passwd"), "cannot read .*index.json"),
    "absurd examples": (numbers(absurd), "describes 000000.safetensors wrongly: 1,000,000,000,000,000"),
    "rows that are not there": (other_shape, r"000000.safetensors cannot be read \(it has tensors of shapes"),
    "pickle": (lambda folder: (folder / SHARD).write_bytes(pickle.dumps(Bomb(folder))), "is damaged"),
    "scale that is not finite": (infinite, "cannot read the scale of the latents"),
    "scale that is a pipe": (lambda folder: pipe("statistics.json")(folder, folder), "is a pipe"),
}


@pytest.mark.parametrize("how", LATENTS)
def test_latents(encoded: Path, tmp_path: Path, canary: Path, how: str) -> None:
    poison, message = LATENTS[how]
    latents = shutil.copytree(encoded, tmp_path / "inside" / "latents")
    poison(latents)
    words = ["data=latents", f"data.root={latents}"]

    def learn(run_dir: Path, *words: str) -> None:
        kept = [word for word in TINY if not word.startswith("modality.")]
        train(of_latents("train", *kept, f"run_dir={run_dir}", *words))

    refused(learn, tmp_path / "inside" / "run", canary, *words, match=message)


LIMITED = """
import resource, sys
from recipes import sample
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
for run_dir in sys.argv[1:3]:
    print(sample.main([f"run_dir={run_dir}", *sys.argv[3:]]))
"""


def huge(run_dir: Path) -> None:
    """Make the weights 64 GiB in a file without blocks: a tensor of the network's name, of another shape."""
    path = run_dir / CHECKPOINT / "ema.safetensors"
    described = header({"module.stem.weight": tensor([1 << 34], [0, 1 << 36])})
    with path.open("wb") as file:
        file.write(described)
        file.truncate(len(described) + (1 << 36))
    facts = {"bytes": path.stat().st_size, "sha256": "?"}
    edited(lambda index: index["files"]["ema"].update({"ema.safetensors": facts}))(run_dir, run_dir)


def test_the_command_refuses_in_little_memory(run_dir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_dir, tmp_path / "other")
    huge(run_dir)
    CONFIGS["absurd width"][0](other, other)
    command = [sys.executable, "-c", LIMITED, str(run_dir), str(other), *QUICK]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.stdout.split() == ["2", "2"], ended.stderr
    weights, network = ended.stderr.splitlines()
    assert weights.startswith("error: network: as configured it is far larger than the one whose weights are in")
    assert network.startswith("error: network: ")
