"""Models from elsewhere made to harm, exported ones and those of diffusers: no code of theirs runs.

Every folder also holds Python files that make the canary when they are imported, under the names that other libraries
would import them by.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_malicious import HEADERS, Bomb, header, refused, tensor

from recipes import export
from recipes.adopt import adopt
from recipes.config import compose as configuration
from recipes.sharing.pipeline import Pipeline
from tests.helpers.tiny import tiny_run

Poison = Callable[[Path, Path], object]
"""Harms a model's folder; its second argument is the file that must not come to be."""
EVIL = ("evil.py", "pipeline.py", "modeling.py", "sitecustomize.py", "unet/evil.py", "diffusers/__init__.py")


def with_traps(folder: Path, canary: Path) -> Path:
    """Lay Python files into a folder that make the canary when they are run."""
    code = f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n"
    for name in EVIL:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_run(root / "run", "training.samples=16")
    assert export.main([f"run_dir={root / 'run'}", f"out={root / 'model'}"]) == 0
    return root / "model"


@pytest.fixture
def model(exported: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with traps, which is the working folder too: there Python finds modules."""
    folder = with_traps(shutil.copytree(exported, tmp_path / "inside" / "model"), canary)
    monkeypatch.chdir(folder)
    return folder


def load(folder: Path) -> object:
    return Pipeline.from_pretrained(folder, device="cpu")


def notes(change: Callable[[dict[str, Any]], object]) -> Poison:
    def poison(folder: Path, canary: Path) -> None:
        told = json.loads((folder / "model.json").read_text())
        change(told)
        (folder / "model.json").write_text(json.dumps(told).replace("CANARY", str(canary)))

    return poison


def noted(**texts: str) -> Poison:
    """Give entries as they are written, which need be no JSON."""

    def poison(folder: Path, canary: Path) -> None:
        told = json.loads((folder / "model.json").read_text())
        text = json.dumps(told | {name: f"@{name}" for name in texts})
        for name, written in texts.items():
            text = text.replace(f'"@{name}"', written)
        (folder / "model.json").write_text(text)

    return poison


def group(group: str, /, **node: Any) -> Poison:
    return notes(lambda told: told["config"].update({group: node}))


def allowed(told: dict[str, Any]) -> None:
    told["allow_targets"] = told["config"]["allow_targets"] = ["evil", "os"]
    told["config"]["network"] = {"_target_": "evil.Evil"}


def weights(content: Callable[[Path], bytes]) -> Poison:
    return lambda folder, canary: (folder / "model.safetensors").write_bytes(content(canary))


def replaced(name: str, target: str) -> Poison:
    def poison(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return poison


def pipe(name: str) -> Poison:
    def poison(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return poison


DIFFUSERS = {"_target_": "multisagd.integrations.networks.DiffusersNetwork"}
COMMAND = "touch CANARY"
NOT_ALLOWED = "is not under an allowed package"
EXPORTED: dict[str, tuple[Poison, str]] = {
    "os.system": (group("network", _target_="os.system", command=COMMAND), NOT_ALLOWED),
    "eval": (group("spectrum", _target_="builtins.eval", source="open('CANARY', 'w')"), NOT_ALLOWED),
    "a module beside it": (group("network", _target_="evil.Evil"), NOT_ALLOWED),
    "its own list of what is allowed": (notes(allowed), NOT_ALLOWED),
    "through a module of ours": (
        group("network", _target_="multisagd.integrations.networks.torch.hub.load", repo_or_dir="."), NOT_ALLOWED
    ),
    "diffusers' own loader": (
        group("network", _target_="diffusers.DiffusionPipeline.from_pretrained", custom_pipeline="."), NOT_ALLOWED
    ),
    "a clock that runs": (
        group("network", **DIFFUSERS, clock={"_target_": "os.system", "command": COMMAND}), NOT_ALLOWED
    ),
    "a network by path": (group("network", **DIFFUSERS, name="evil.Evil"), "cannot use diffusers' 'evil.Evil'"),
    "another class of diffusers": (
        group("network", **DIFFUSERS, name="DiffusionPipeline"), "cannot use diffusers' 'DiffusionPipeline'"
    ),
    "options that are targets": (
        group("network", **DIFFUSERS, options={"act_fn": {"_target_": "os.system", "command": COMMAND}}), "network: "
    ),
    "absurd width": (
        group("network", **DIFFUSERS, options={"block_out_channels": [10**9, 10**9]}), "network: .*Restore"
    ),
    "absurd depth": (group("network", **DIFFUSERS, options={"layers_per_block": 10**9}), "network: .*Restore"),
    "absurd schedule": (
        group("schedule", _target_="multisagd.integrations.discrete.DiscreteSchedule", steps=10**15), "schedule"
    ),
    "a link to a file of the system": (replaced("model.safetensors", "/etc/passwd"), "export it again"),
    "a link to a device": (replaced("model.safetensors", "/dev/zero"), "export it again"),
    "weights that are a pipe": (pipe("model.safetensors"), "export it again"),
    "notes that are a pipe": (pipe("model.json"), "export it again"),
    "samples beyond numbers": (noted(samples="1e400"), "inf is no number of samples.*export it again"),
    "samples that are none": (noted(samples="NaN"), "nan is no number of samples.*export it again"),
    "samples of 5,000 digits": (noted(samples="9" * 5000), "a number of 5,000 digits is too long.*export it again"),
    "samples as text": (noted(samples='"16"'), "'16' is no number of samples.*export it again"),
    "a share that is no number": (
        notes(lambda told: told["config"]["network"].update(dropout=float("nan"))), "network.dropout: expected a number"
    ),
    "a share beyond numbers": (
        notes(lambda told: told["config"]["training"].update(condition_dropout=float("inf"))), "condition_dropout"
    ),
    "a spectrum that is no number": (
        group("spectrum", _target_="multisagd.PowerLaw", exponent=float("nan")), "spectrum.exponent: expected a number"
    ),
    "a schedule of no kind": (notes(lambda told: told["config"].update(schedule={})), "schedule: has no _target_"),
    "facts of no kind": (notes(lambda told: told.update(facts=[])), "no facts.*export it again"),
    "a part that no keys build": (
        group("spectrum", _target_="recipes.base.errors.RecipeError"), "spectrum: RecipeError cannot be built from keys"
    ),
    "names twice": (noted(samples='1, "samples": 2'), "appears twice in one object.*export it again"),
    "deep notes": (lambda folder, canary: (folder / "model.json").write_text("[" * 100_000), "export it again"),
    **{f"weights: {name}": (weights(content), "export it again") for name, content in HEADERS.items()},
}  # fmt: skip


@pytest.mark.parametrize("how", EXPORTED)
def test_exported_models(model: Path, canary: Path, how: str) -> None:
    if "diffusers" in json.dumps(EXPORTED[how][1]) or how.startswith("absurd"):
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    poison, message = EXPORTED[how]
    poison(model, canary)
    refused(load, model, canary, match=message)


def test_keys_by_which_other_libraries_find_code_mean_nothing(model: Path, canary: Path) -> None:
    for told in ({"auto_map": {"AutoModel": "modeling.Evil"}}, {"_class_name": ["pipeline", "Evil"]}):
        notes(lambda there, told=told: there.update(told))(model, canary)
        (model / "config.json").write_text(json.dumps(told))
        (model / "model_index.json").write_text(json.dumps(told))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    Pipeline.from_pretrained(model, device="cpu")(1, 1, progress=False)
    assert not canary.exists()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of diffusers with random weights."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    folder = tmp_path_factory.mktemp("foreign") / "model"
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def pipeline(foreign: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = with_traps(shutil.copytree(foreign, tmp_path / "inside" / "model"), canary)
    monkeypatch.chdir(folder)
    return folder


def take_over(folder: Path) -> object:
    out = folder.parent / "out"
    return adopt(configuration.load("adopt", [f"model={folder}", f"out={out}"]))


def of_json(name: str, **changes: Any) -> Poison:
    def poison(folder: Path, canary: Path) -> None:
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))

    return poison


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
STEM = "unet/diffusion_pytorch_model"


def only(name: str, content: Callable[[Path], bytes]) -> Poison:
    """Leave no weights but these."""

    def poison(folder: Path, canary: Path) -> None:
        (folder / f"{STEM}.safetensors").unlink()
        (folder / name).write_bytes(content(canary))

    return poison


def indexed(file: str) -> Poison:
    """Name weights in an index; those of its own are moved to where it should not lead."""

    def poison(folder: Path, canary: Path) -> None:
        (folder / f"{STEM}.safetensors").rename(folder.parent / "secret.safetensors")
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": file}}))

    return poison


def sparse(folder: Path, canary: Path) -> None:
    """Make 64 GiB of weights in a file without blocks."""
    described = header({"conv_in.weight": tensor([1 << 34], [0, 1 << 36])})
    with (folder / f"{STEM}.safetensors").open("wb") as file:
        file.write(described)
        file.truncate(len(described) + (1 << 36))


FOREIGN: dict[str, tuple[Poison, str]] = {
    "a class beside it": (of_json(UNET, _class_name="evil.Evil"), "networks of class 'evil.Evil' cannot be adopted"),
    "a class as a list": (of_json(UNET, _class_name=["evil", "Evil"]), "cannot be adopted"),
    "os.system": (of_json(UNET, _class_name="os.system"), "networks of class 'os.system' cannot be adopted"),
    "a scheduler beside it": (of_json(SCHEDULER, _class_name="evil.Evil", beta_schedule=["evil"]), "clock.*betas"),
    "a scheduler named in colour": (of_json(SCHEDULER, _class_name="DDPM\x1b[31m"), "is not the name of a class"),
    "an environment variable": (of_json(UNET, act_fn="${oc.env:SECRET}"), "texts that are not options"),
    "a missing value": (of_json(UNET, act_fn="???"), "texts that are not options"),
    "a target": (of_json(UNET, act_fn={"_target_": "os.system", "command": "touch x; rm y"}), "not options of a"),
    "absurd width": (of_json(UNET, block_out_channels=[10**9, 10**9]), "do not fit its config.json"),
    "absurd depth": (of_json(UNET, layers_per_block=10**9), "do not fit its config.json"),
    "absurd steps": (of_json(SCHEDULER, num_train_timesteps=10**15), "num_train_timesteps=1000000000000000"),
    "absurd channels": (of_json(UNET, in_channels=10**30), "network|config.json"),
    "betas of another kind": (of_json(SCHEDULER, trained_betas=["x"]), "cannot read the scheduler"),
    "deep": (lambda folder, canary: (folder / UNET).write_text("[" * 100_000), "cannot read .*config.json"),
    "names twice": (
        lambda folder, canary: (folder / UNET).write_text('{"_class_name": "UNet2DModel", "_class_name": "x"}'),
        "appears twice in one object",
    ),
    "a pipe": (pipe(UNET), "it is a pipe and not a file"),
    "a pickle renamed": (only(f"{STEM}.safetensors", lambda c: pickle.dumps(Bomb(c))), "cannot read the weights"),
    "a pickle": (only(f"{STEM}.bin", lambda c: pickle.dumps(Bomb(c))), "a format that can run code when read"),
    "torch.save": (only(f"{STEM}.safetensors", HEADERS["torch.save"]), "cannot read the weights"),
    "an index that leads above": (indexed("../../secret.safetensors"), "not safetensors files of its folder"),
    "an index that leads elsewhere": (indexed("/tmp/secret.safetensors"), "not safetensors files of its folder"),
    "an index of pickles": (indexed("weights.bin"), "not safetensors files of its folder"),
    "64 GiB": (sparse, "do not fit its config.json"),
    **{f"weights: {name}": (only(f"{STEM}.safetensors", content), "cannot read|do not fit its config.json")
       for name, content in HEADERS.items()},
}  # fmt: skip


@pytest.mark.parametrize("how", FOREIGN)
def test_models_of_diffusers(pipeline: Path, canary: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "silu")
    poison, message = FOREIGN[how]
    poison(pipeline, canary)
    refused(take_over, pipeline, canary, match=message)
    assert not (pipeline.parent / "out").exists()


def test_keys_by_which_diffusers_finds_code_mean_nothing(pipeline: Path, canary: Path) -> None:
    """Custom pipelines and components in the index, and what transformers calls `auto_map`."""
    index = {
        "_class_name": ["pipeline", "Evil"],
        "unet": ["evil", "Evil"],
        "scheduler": ["evil", "Evil"],
        "x": ["y", "z"],
    }
    (pipeline / "model_index.json").write_text(json.dumps(index))
    of_json(UNET, _auto_map={"AutoModel": "evil.Evil"}, _name_or_path="../../..", _use_default_values=["x"])(
        pipeline, canary
    )
    (pipeline / f"{STEM}.bin").write_bytes(pickle.dumps(Bomb(canary)))
    take_over(pipeline)
    assert not canary.exists()


def test_a_scheduler_whose_name_holds_lines_is_refused(pipeline: Path, canary: Path) -> None:
    """It would be written into the experiment, and printed."""
    of_json(SCHEDULER, _class_name=f"DDPM\nallow_targets: [os]\nnetwork: {{_target_: os.system}}\r\x85{canary}")(
        pipeline, canary
    )
    refused(take_over, pipeline, canary, match="is not the name of a class")
    assert not (pipeline.parent / "out").exists()
