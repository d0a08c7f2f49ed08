"""Hostile runs, latents and steps are refused in one message, no code of theirs runs, and none contacts an address.

Each case poisons a copy of a real run and gives it to the command that would use it. Whoever can write a file of a run
can also write its SHA-256, so the hashes are made to fit.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import yaml
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from modalities import byte_ranges
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration, read_tensors
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.design import design
from recipes.encode import encode
from recipes.evaluate import evaluate
from recipes.evaluation.sets import real_data
from recipes.launch import planned
from recipes.report import ReportSettings, write_report
from recipes.sample import sample
from recipes.train import train
from tests.helpers.archives import archive
from tests.helpers.hostile_files import (
    TENSOR_FILES,
    Bomb,
    Poison,
    assert_refused,
    canary,
    edited,
    header,
    link,
    pipe,
    replaced,
    tensor,
    updated,
    weights,
    write_sparse_tensor,
    written,
)
from tests.helpers.tiny import TINY, tiny_run

QUICK = ["steps=2", "count=2", "engine.threads=1", "engine.device=cpu"]
CHECKPOINT = Path("checkpoints/000000000096")
INDEX = CHECKPOINT / "checkpoint.json"
WEIGHTS = CHECKPOINT / "ema.safetensors"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder)
    return folder


@pytest.fixture
def run_dir(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a process that cannot use the network."""
    connect = Mock(side_effect=AssertionError("a connection was opened"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setenv("SECRET", "8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "inside" / "cache"))
    return shutil.copytree(healthy, tmp_path / "inside" / "run")


@functools.cache
def composed(command: str, *words: str) -> dict[str, Any]:
    """Compose a configuration once for all cases, which takes longer than to refuse it."""
    return configuration.load(command, [*words, "run_dir=anywhere"])


def run_sample(run_dir: Path, *words: str) -> object:
    return sample({**composed("sample", *QUICK, *words), "run_dir": str(run_dir)})


def continue_training(run_dir: Path, *words: str) -> None:
    train({**composed("train", *TINY, "training.samples=128", *words), "run_dir": str(run_dir)})


def run_evaluate(run_dir: Path) -> object:
    return evaluate(configuration.load("evaluate", [f"run_dir={run_dir}", f"cache={run_dir / 'cache'}", *QUICK]))


def run_design(run_dir: Path) -> object:
    return design(configuration.load("design", [f"statistics={run_dir}", f"out={run_dir / 'design'}", "steps=2"]))


def plan_launch(run_dir: Path) -> object:
    return planned(["cluster=local", f"run_dir={run_dir}", *TINY])


def fitted(*poisons: Poison) -> Poison:
    """Poison a run, and make the index of its last checkpoint fit what the files hold then."""

    def describe(index: dict[str, Any], run_dir: Path) -> None:
        for files in index["files"].values():
            for name in files:
                content = (run_dir / CHECKPOINT / name).read_bytes()
                files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def poison(run_dir: Path) -> None:
        for each in poisons:
            each(run_dir)
        edited(INDEX, functools.partial(describe, run_dir=run_dir))(run_dir)

    return poison


def parts(**files: dict[str, Any]) -> Poison:
    """Set the files of which a part of the checkpoint consists."""
    return edited(INDEX, lambda index: index["files"].update(files))


def linked_device(run_dir: Path) -> None:
    link(WEIGHTS, "/dev/zero")(run_dir)
    edited(INDEX, lambda index: index["files"]["ema"][WEIGHTS.name].update(bytes=0))(run_dir)


def shards(offset: int, extra: bool = False) -> Poison:
    """Give the weights as a folder of shards, the first piece of each tensor at an absurd place."""

    def poison(run_dir: Path) -> None:
        folder = run_dir / CHECKPOINT / "ema"
        whole = load_file(run_dir / WEIGHTS)
        places = {name: {"saved_offsets": ([offset] + [0] * each.ndim)[: each.ndim]} for name, each in whole.items()}
        folder.mkdir()
        save_file(whole, folder / "shard-00001.safetensors", {"DCP_SHARDING_INFO": json.dumps(places), "format": "pt"})
        (run_dir / WEIGHTS).unlink()
        if extra:
            save_file({"a": torch.zeros(2)}, folder / "extra.safetensors")
        # What PyTorch's own storage would unpickle, and the index that Hugging Face's tools follow.
        (folder / ".metadata").write_bytes(pickle.dumps(Bomb(canary(run_dir))))
        weight_map = {"weight_map": dict.fromkeys(whole, "../../../../secret.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))

    return fitted(poison, parts(ema={"ema/shard-00001.safetensors": {}}))


CHECKPOINTS: dict[str, Poison] = {
    **{f"weights: {kind}": fitted(weights(WEIGHTS, content)) for kind, content in TENSOR_FILES.items()},
    "deep": written(INDEX, "[" * 100_000),
    "a terabyte": lambda run_dir: os.truncate(run_dir / INDEX, 1 << 40),
    "duplicate names": written(INDEX, '{"format_version": 1, "samples": 96, "samples": 1, "files": {}, "record": {}}'),
    "number of a million digits": written(INDEX, '{"format_version": 1, "samples": ' + "9" * 1_000_000 + "}"),
    "NaN samples": written(INDEX, '{"format_version": 1, "samples": NaN, "files": {}, "record": {}}'),
    "negative samples": updated(INDEX, samples=-1),
    "huge samples": updated(INDEX, samples=10**30),
    "samples as text": updated(INDEX, samples="96"),
    "a part without a name": parts(**{"": {"x": {}}}),
    "a part that leads above": parts(**{"..": {"x": {}}}),
    "files above": parts(**{"../../x": {"../../x.safetensors": {}}}),
    "files elsewhere": parts(ema={"/etc/passwd": {}}),
    "files in a folder above": parts(ema={"ema/../../x.safetensors": {}}),
    "weights that are a link to a file of the system": fitted(link(WEIGHTS, "/etc/passwd")),
    "weights that are a device": linked_device,
    "weights that are a pipe": pipe(WEIGHTS),
    "index that is a pipe": pipe(INDEX),
    "shards far away": shards(10**15),
    "shards at negative places": shards(-4),
    "shards beyond numbers": shards(1 << 70),
    "shards that the index does not name": shards(0, extra=True),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_sample_refuses_hostile_checkpoints(run_dir: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged checkpoint is passed over, so only the last one is left."""
    shutil.rmtree(run_dir / "checkpoints" / "000000000048")
    CHECKPOINTS[kind](run_dir)
    assert_refused(run_sample, run_dir, match=r"none of the 1 checkpoints in .* can be read: remove that folder")
    assert CHECKPOINT.name in caplog.text


def test_sample_ignores_checkpoint_folders_of_other_names(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints" / "000000000048")
    (run_dir / CHECKPOINT).rename(run_dir / "checkpoints" / "0²")
    (run_dir / "checkpoints" / ".replaced-x").mkdir()
    assert_refused(run_sample, run_dir, match="has no checkpoint yet")


def test_sample_ignores_other_files_next_to_shards(run_dir: Path) -> None:
    """The pickle that torch.distributed.checkpoint writes by default, and an index that leads elsewhere."""
    shards(0)(run_dir)
    run_sample(run_dir)
    assert not canary(run_dir).exists()


def test_read_tensors_refuses_shapes_beyond_torch_but_not_lack_of_memory(tmp_path: Path) -> None:
    for shape, dtype in (([0, 1 << 63], "F32"), ([0, 1 << 62, 4], "F4")):
        (tmp_path / "a").write_bytes(header({"a": tensor(shape, [0, 0], dtype)}))
        with pytest.raises(ValueError, match=r"failed to unpack|overflowed"):
            read_tensors(tmp_path / "a")
    save_file({"a": torch.ones(2)}, tmp_path / "a")
    error = RuntimeError("can't allocate memory")
    with patch.object(torch.Tensor, "clone", side_effect=error), pytest.raises(RuntimeError, match="allocate"):
        read_tensors(tmp_path / "a")


def config(change: Callable[[dict[str, Any]], object]) -> Poison:
    def poison(run_dir: Path) -> None:
        values = read_configuration(run_dir / "config.yaml")
        change(values)
        raw(yaml.safe_dump(values))(run_dir)

    return poison


def target(path: str, group: str = "network", **values: Any) -> Poison:
    """Let a group of the configuration build something else, which the configuration itself allows."""
    return config(
        lambda keys: keys.update({group: {"_target_": path, **values}, "allow_targets": [path.split(".")[0]]})
    )


def network(**values: Any) -> Poison:
    return config(lambda keys: keys["network"].update(values))


raw = functools.partial(written, "config.yaml")
BILLION_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
UNREADABLE = r"cannot read the run's configuration .*config.yaml: .*Restore"
CONFIGS: dict[str, tuple[Poison, str]] = {
    "YAML that calls": (raw("a: !!python/object/apply:os.system ['touch CANARY']"), UNREADABLE),
    "YAML that makes objects": (raw("a: !!python/object/new:os.system ['touch CANARY']"), UNREADABLE),
    "billion laughs": (raw(BILLION_LAUGHS), UNREADABLE),
    "deep YAML": (raw("[" * 100_000), UNREADABLE),
    "duplicate names": (raw("seed: 0\nseed: 1\n"), UNREADABLE),
    "number of a million digits": (raw("seed: " + "9" * 900_000), UNREADABLE),
    "impossible date": (raw("seed: 2001-99-99"), UNREADABLE),
    "too large": (raw("a: " + "x" * (2 << 20)), UNREADABLE),
    "pipe": (pipe("config.yaml"), "cannot read .*config.yaml: it is a pipe and not a file"),
    "interpolation": (network(width="${oc.env:SECRET}"), r"width: expected a whole number, got '\$\{oc.env:SECRET\}'"),
    "os.system": (target("os.system", command="touch CANARY"), "network._target_: os.system is not under an allowed"),
    "through our imports": (
        target("recipes.config.build.importlib.import_module", name="x"), r"\(which is importlib\) is not under"
    ),
    "path for a name": (target("multisagd./tmp/evil.Network"), "is not the import path"),
    "ours, that launches": (target("recipes.clusters.cluster.Local", "spectrum"), "_target_: .* is not a Spectrum"),
    "group that is text": (config(lambda keys: keys.update(network="os.system")), "config.yaml: network: .*Restore"),
    "group that is missing": (config(lambda keys: keys.pop("modality")), "config.yaml: .*modality"),
    "absurd width": (network(width=10**9), "network: .*Restore"),
    "absurd depth": (network(blocks=10**9), "network: .*Restore"),
    "width beyond numbers": (network(width=10**30), "network: "),
    "absurd size": (config(lambda keys: keys["modality"].update(size=10**7)), r"statistics have shape .*restore"),
    "absurd padding": (config(lambda keys: keys.update(padding={"height": 10**9})), "padding=.*reduce the padding"),
}  # fmt: skip


def facts(name: str, **changes: Any) -> tuple[Poison, str]:
    return updated("run.json", **changes), rf"cannot read .*run.json \(its {name} is invalid\)"


def huge_weights(run_dir: Path) -> None:
    """Give a tensor of the network 64 GiB, in another shape."""
    write_sparse_tensor(run_dir / WEIGHTS, "module.stem.weight")
    parts(ema={WEIGHTS.name: {"bytes": (run_dir / WEIGHTS).stat().st_size, "sha256": "?"}})(run_dir)


RUNS: dict[str, tuple[Poison, str]] = {
    "weights of 64 GiB": (huge_weights, "network: the configured network is far larger than the one in the checkpoint"),
    **{f"configuration: {kind}": case for kind, case in CONFIGS.items()},
    "classes that are text": facts("classes", classes="everything"),
    "classes that are numbers": facts("classes", classes=[1, 2]),
    "negative width of text": facts("width of the text", text={"name": "x", "fingerprint": "y", "width": -5}),
    "text encoder that is a list": facts("text", text=["os.system"]),
    "data that are a number": facts("data", data=3),
    "facts that are a list": (
        written("run.json", "[]"),
        r"cannot read .*run.json \(its content is not a JSON object\)",
    ),
}


def link_outside(name: str) -> Poison:
    """Make a file or folder of the run lead outside."""

    def poison(run_dir: Path) -> None:
        victim = run_dir.parents[1] / "victim"
        victim.mkdir()
        if (run_dir / name).exists():
            (run_dir / name).rename(run_dir.parent / "before")
        (run_dir / name).symlink_to(victim)

    return poison


def optimizer(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Poison:
    path = CHECKPOINT / "optimizer.safetensors"
    return fitted(lambda run_dir: save_file(change(load_file(run_dir / path)), run_dir / path))


def record(**changes: Any) -> Poison:
    return edited(INDEX, lambda index: index["record"].update(changes))


TRAININGS: dict[str, tuple[Poison, str]] = {
    "record: window": (record(window=["os", "0x0p+0", "0x0p+0"]), "window=.*not three hex numbers.*remove"),
    "record: position": (record(metrics_position=-(10**30)), "metrics_position=-1000.*not a count.*remove"),
    "record: rollbacks": (record(rollbacks="many"), "rollbacks='many', not a count"),
    # A fused kernel would write as many numbers as the parameter has.
    "optimiser: too small": (
        optimizer(lambda state: {k: v if k.endswith("step") else torch.tensor(0.0) for k, v in state.items()}),
        "optimiser state .* does not fit this network",
    ),
    "optimiser: without moments": (
        optimizer(lambda state: {k: v for k, v in state.items() if k.endswith("step")}), "is step, not AdamW's"
    ),
    **{
        f"link: {name}": (link_outside(name), rf"{name} is a symbolic link to .*victim, outside of .*replace it")
        for name in (".lock", "metrics.jsonl", "config.yaml.partial", "samples", "timing.jsonl", "run.json")
    },
    "pipe": (pipe("metrics.jsonl"), "metrics.jsonl is a pipe or a device"),
}  # fmt: skip


def statistics(axes: Any, count: Any = 100, **tensors: torch.Tensor) -> Poison:
    described = {"format_version": 1, "count": count, "axes": axes}

    def poison(run_dir: Path) -> None:
        # Written next to it and renamed: the file may be mapped into memory.
        save_file({**SOUND, **tensors}, run_dir / "new", {"statistics": json.dumps(described)})
        (run_dir / "new").replace(run_dir / "statistics.safetensors")

    return poison


AXES = [{"name": name, "size": 8, "spacing": 1.0, "unit": "pixel", "corner": None} for name in ("height", "width")]
SOUND = {"mean": torch.zeros(1, 8, 8), "power": torch.ones(1, 8, 5)}
STATISTICS: dict[str, tuple[Poison, str]] = {
    "NaN": (statistics(AXES, power=torch.full((1, 8, 5), torch.nan)), "not finite"),
    "negative": (statistics(AXES, power=-torch.ones(1, 8, 5)), "is negative at some frequencies"),
    "absurd grid": (statistics([{**AXES[0], "size": 10**12}, AXES[1]]), "do not match a grid"),
    "no dimension": (statistics(AXES, mean=torch.tensor(1.0)), "do not match a grid"),
    "axes that are a number": (statistics([3]), "axes of the grid are invalid"),
    "count that is text": (statistics(AXES, "many"), "must be a positive number of examples"),
    "pipe": (pipe("statistics.safetensors"), "is a pipe and not a file"),
}


SMALL = statistics(
    [{**axis, "size": 4} for axis in AXES], mean=torch.zeros(3, 4, 4), power=torch.ones(3, 4, 3)
)  # fmt: skip
CASES: dict[str, tuple[Poison, str, Sequence[Callable[[Path], object]]]] = {
    **{f"run: {kind}": (*case, [run_sample]) for kind, case in RUNS.items()},
    **{f"training: {kind}": (*case, [continue_training]) for kind, case in TRAININGS.items()},
    **{
        f"statistics: {kind}": (poison, rf"cannot read .*statistics.safetensors.*{message}", [run_sample, run_design])
        for kind, (poison, message) in STATISTICS.items()
    },
    "statistics: another grid": (SMALL, r"statistics have shape \(3, 4, 4\)", [run_sample, continue_training]),
    "a link in place of samples": (link_outside("sampled"), "sampled is a symbolic link to .*victim", [run_sample]),
    "data of os.system": (
        target("os.system", "data", command="touch CANARY"), "data._target_: os.system is not under", [run_evaluate]
    ),
    "billion laughs": (*CONFIGS["billion laughs"], [continue_training, run_evaluate, plan_launch]),
    "YAML that calls": (*CONFIGS["YAML that calls"], [continue_training, run_evaluate, plan_launch]),
    "a pipe": (pipe("config.yaml"), "config.yaml.* is a pipe", [continue_training, run_evaluate, plan_launch]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_commands_refuse_hostile_runs(run_dir: Path, kind: str) -> None:
    poison, message, commands = CASES[kind]
    poison(run_dir)
    for command in commands:
        assert_refused(command, run_dir, match=message)


DESIGN = '{"format": "multisagd steps 1", "log_snrs": %s, "objective": "w2", "sampler": "", "value": 0}'
HUGE, OTHER = (
    DESIGN % f"[1{'0' * 400}]",
    '{"format": "multisagd steps 1", "log_snrs": [0, 1], "__class__": "os.system"}',
)
STEPS = {"deep": "[" * 100_000, "pickle": pickle.dumps([1]).decode("latin-1"), "huge": HUGE, "other keys": OTHER}


@pytest.mark.parametrize("kind", STEPS)
def test_sample_refuses_hostile_steps(run_dir: Path, kind: str) -> None:
    path = run_dir / "steps.json"
    path.write_text(STEPS[kind])
    assert_refused(run_sample, run_dir, f"steps_file={path}", match="steps_file: .*not a file of designed steps")


def of_latents(command: str, *words: str) -> dict[str, Any]:
    latent = ["modality=latent_image", "modality.modality.size=8", "modality.modality.channels=1"]
    composed = configuration.load(command, [*latent, "modality.autoencoder.name=none", *words])
    composed["modality"]["autoencoder"] = {"_target_": "modalities.autoencoders.Identity"}
    return composed


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of digits, by the autoencoder that changes nothing."""
    folder = tmp_path_factory.mktemp("encoded") / "latents"
    encode(of_latents("encode", "data=digits", "shard_size=900", "engine.device=cpu", f"run_dir={folder}"))
    return folder


SHARD = "000000.safetensors"


def first_shard(**changes: Any) -> Poison:
    return edited("index.json", lambda index: index["shards"][0].update(changes))


def absurd(index: dict[str, Any]) -> None:
    index.update(examples=10**15, shard_size=10**15, shards=[{**index["shards"][0], "rows": 10**15}])


def other_shape(folder: Path) -> None:
    """Give a shard one row that is as long as all of them were."""
    tensors = {"x0": torch.zeros(1, 1, 8, 8 * 900), "labels": torch.zeros(1, dtype=torch.int64)}
    save_file(tensors, folder / SHARD)
    first_shard(bytes=(folder / SHARD).stat().st_size)(folder)


LATENTS: dict[str, tuple[Poison, str]] = {
    "deep index": (written("index.json", "[" * 100_000), "cannot read .*index.json"),
    "shard above": (first_shard(file="../x.safetensors"), "cannot read .*index.json"),
    "shard elsewhere": (first_shard(file="/etc/passwd"), "cannot read .*index.json"),
    "absurd examples": (
        edited("index.json", absurd),
        "describes 000000.safetensors incorrectly, with 1,000,000,000,000,000",
    ),
    "missing rows": (other_shape, r"000000.safetensors cannot be read \(it has tensors of shapes"),
    "pickle": (weights(SHARD, TENSOR_FILES["pickle"]), "is damaged"),
    "scale that is not finite": (replaced("statistics.json", '"std": [', '"std": [1e400, '), "cannot read the scale"),
    "scale that is a pipe": (pipe("statistics.json"), "is a pipe"),
}


@pytest.mark.parametrize("kind", LATENTS)
def test_train_refuses_hostile_latents(encoded: Path, tmp_path: Path, kind: str) -> None:
    poison, message = LATENTS[kind]
    latents = shutil.copytree(encoded, tmp_path / "inside" / "latents")
    poison(latents)

    def train_on_latents(run_dir: Path) -> None:
        words = [word for word in TINY if not word.startswith("modality.")]
        train(of_latents("train", *words, f"run_dir={run_dir}", "data=latents", f"data.root={latents}"))

    assert_refused(train_on_latents, tmp_path / "inside" / "run", match=message)


ADDRESSES: list[Any] = [
    "reference::evil.json", "reference://a.tar::http://127.0.0.1:9/evil.json", "http://127.0.0.1:9/a.tar",
    "file:///tmp/a.tar", "local:///tmp/a.tar", "memory://a.tar", "zip://a.tar::x.zip", "tar://a.tar::x.tar",
    "simplecache::http://127.0.0.1:9/a.tar", "filecache::/tmp/a.tar", "github://me:repository@main/a.tar",
    "jupyter://127.0.0.1:9/a.tar", "ssh://me:SECRET@127.0.0.1/a.tar", "//host/share/a.tar", r"\\host\share\a.tar",
    "s{3..3}://bucket/a.tar", "{0..1}::http://127.0.0.1:9/a.tar", "data:,x", "pipe:touch canary",
    "dir::file:///", "gs://bucket/a.tar?token=SECRET", ["a.tar", "http://127.0.0.1:9/b.tar"],
]  # fmt: skip
SHARDS = {"_target_": "modalities.tars.TarShards"}


def naming(run_dir: Path, **data: Any) -> Path:
    """Let the records of a run name other data."""
    config = read_configuration(run_dir / "config.yaml")
    configuration.write({**config, "data": {**SHARDS, **data}}, run_dir / "config.yaml")
    updated("run.json", data=None)(run_dir)
    return run_dir


@pytest.mark.parametrize("urls", ADDRESSES, ids=str)
def test_real_data_opens_an_address_only_if_the_command_line_repeats_it(
    run_dir: Path, urls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_url = Mock(side_effect=ValueError("opened"))
    monkeypatch.setattr(byte_ranges, "url_to_fs", open_url)
    with pytest.raises(RecipeError, match=r"^data\.urls=.* If you trust it, repeat it") as refused:
        real_data(naming(run_dir, urls=urls), Builder())
    assert "SECRET" not in str(refused.value)
    open_url.assert_not_called()
    with pytest.raises(RecipeError, match="opened"):
        real_data(naming(run_dir, urls="http://127.0.0.1:9/other.tar"), Builder(), {"urls": urls})
    open_url.assert_called_once_with(byte_ranges.expanded(urls if isinstance(urls, str) else urls[0])[0])


def test_real_data_opens_no_address_in_any_other_key(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "url_to_fs", lambda url: pytest.fail(f"fsspec was given {url}"))
    for key in ("root", "manifest", "index", "anything"):
        with pytest.raises(RecipeError, match=rf"^data\.{key}=https://…@h/x: .* must not contact any other address"):
            real_data(naming(run_dir, urls="a.tar", **{key: "https://me:SECRET@h/x"}), Builder())
    inner = {**SHARDS, "urls": "http://127.0.0.1:9/a.tar"}
    with pytest.raises(RecipeError, match=r"^data\.dataset\.urls=http"):
        real_data(naming(run_dir, _target_="modalities.wrapped.Captioned", dataset=inner, encoder={}), Builder())
    sources = {"a": inner}
    with pytest.raises(RecipeError, match=r"^data\.sources\.a\.urls=http.* repeat it: add \"data\.sources\.a\.urls="):
        real_data(naming(run_dir, _target_="modalities.mixture.Mixture", sources=sources), Builder())
    monkeypatch.setattr(byte_ranges, "url_to_fs", Mock(side_effect=ValueError("opened")))
    with pytest.raises(RecipeError, match="opened"):
        real_data(run_dir, Builder(), {"sources": {"a": {"urls": inner["urls"]}}})
    for source, message in (
        ({"_target_": "os.system"}, r"^data\.sources\.a\._target_: os\.system is not under an allowed package"),
        ({"_target_": "modalities.image.Image"}, "Image is not a Dataset"),
        ({**SHARDS, "urls": "nowhere.tar", "trusted": True}, r"nowhere\.tar"),
    ):
        with pytest.raises(RecipeError, match=message):
            real_data(naming(run_dir, _target_="modalities.mixture.Mixture", sources={"a": source}), Builder())
    # A run cannot call itself trusted, and environment variables are not a part of it.
    with pytest.raises(RecipeError, match=r"nowhere\.tar"):
        real_data(naming(run_dir, urls="nowhere.tar", trusted=True), Builder())
    monkeypatch.setenv("SECRET", "/etc")
    with pytest.raises(RecipeError, match=r"\$\{oc\.env:SECRET\}"):
        real_data(naming(run_dir, urls="${oc.env:SECRET}/a.tar"), Builder())


def test_real_data_writes_nothing_where_a_run_names_an_index(run_dir: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    picture = io.BytesIO()
    PILImage.new("L", (8, 8), 90).save(picture, "PNG")
    (shards / "0.tar").write_bytes(archive(*((f"{number}.png", picture.getvalue()) for number in range(120))))
    before = sorted(tmp_path.rglob("*"))
    naming(run_dir, urls=f"{shards}/{{0..0}}.tar", index=str(tmp_path / "outside"))
    train, held_out = real_data(run_dir, Builder())
    assert len(train) + len(held_out) == 120
    assert sorted(tmp_path.rglob("*")) == before
    config = read_configuration(run_dir / "config.yaml")
    for root, message in (("http://me:SECRET@127.0.0.1:9/a.tar", "is an address"), (str(shards), "0.tar is also")):
        config["validation"]["root"] = root
        configuration.write(config, run_dir / "config.yaml")
        with pytest.raises(RecipeError, match=rf"^validation\.root=.*{message}") as refused:
            real_data(run_dir, Builder())
        assert "SECRET" not in str(refused.value)


def test_report_and_sample_open_no_address_of_a_run(run_dir: Path) -> None:
    """A report explains why it shows no data, and samples need no data."""
    naming(run_dir, urls="reference://a.tar::http://127.0.0.1:9/evil.json")
    path, _ = write_report(ReportSettings(run_dir))
    assert "must not contact any other address" in path.read_text()
    run_sample(run_dir)
