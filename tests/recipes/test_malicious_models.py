"""Hostile models, exported ones and those of diffusers, are refused in one message, and no code of theirs runs.

Every folder also holds Python files that make the canary when they are imported, under the names that other libraries
would import them by.
"""

import functools
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes import export
from recipes.adopt import adopt
from recipes.config import compose as configuration
from recipes.sharing.pipeline import Pipeline
from tests.helpers.hostile_files import (
    TENSOR_FILES,
    Bomb,
    Poison,
    assert_refused,
    canary,
    edited,
    link,
    pipe,
    replaced,
    updated,
    weights,
    write_sparse_tensor,
    written,
)
from tests.helpers.tiny import tiny_run

INTEGRATIONS = "multisagd.integrations"
EVIL = ("evil.py", "pipeline.py", "modeling.py", "sitecustomize.py", "unet/evil.py", "diffusers/__init__.py")


def with_traps(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a model and add Python files that make the canary; it is the working folder too: there Python looks."""
    folder = shutil.copytree(original, tmp_path / "inside" / "model")
    for name in EVIL:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os\nos.mkdir({str(canary(folder))!r})\nclass Evil: pass\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_run(root / "run", "training.samples=16")
    assert export.main([f"run_dir={root / 'run'}", f"out={root / 'model'}"]) == 0
    return root / "model"


@pytest.fixture
def model(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return with_traps(exported, tmp_path, monkeypatch)


def load(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def group(group: str, target: str, /, **node: Any) -> Poison:
    return edited("model.json", lambda content: content["config"].update({group: {"_target_": target, **node}}))


def setting(group: str, /, **values: Any) -> Poison:
    return edited("model.json", lambda content: content["config"][group].update(values))


network = functools.partial(group, "network", f"{INTEGRATIONS}.networks.DiffusersNetwork")


def samples(text: str) -> Poison:
    """Write the number of samples as given, which need not be JSON."""
    return replaced("model.json", '"samples": 16', f'"samples": {text}')


def allowed(content: dict[str, Any]) -> None:
    content["allow_targets"] = content["config"]["allow_targets"] = ["evil", "os"]
    content["config"]["network"] = {"_target_": "evil.Evil"}


SHELL = {"_target_": "os.system", "command": "touch ../../canary"}
NOT_ALLOWED = "is not under an allowed package"
AGAIN = "export it again"
EXPORTED: dict[str, tuple[Poison, str]] = {
    "os.system": (group("network", SHELL["_target_"], command=SHELL["command"]), NOT_ALLOWED),
    "eval": (group("spectrum", "builtins.eval", source="open('../../canary', 'w')"), NOT_ALLOWED),
    "a module next to it": (group("network", "evil.Evil"), NOT_ALLOWED),
    "its own list of what is allowed": (edited("model.json", allowed), NOT_ALLOWED),
    "through a module of ours": (group("network", f"{INTEGRATIONS}.networks.torch.hub.load"), NOT_ALLOWED),
    "diffusers' own loader": (group("network", "diffusers.DiffusionPipeline.from_pretrained"), NOT_ALLOWED),
    "a clock that runs": (network(clock=SHELL), NOT_ALLOWED),
    "a network by path": (network(name="evil.Evil"), "cannot use diffusers' 'evil.Evil'"),
    "another class of diffusers": (network(name="DiffusionPipeline"), "cannot use diffusers' 'DiffusionPipeline'"),
    "options that are targets": (network(options={"act_fn": SHELL}), "network: "),
    "absurd width": (network(options={"block_out_channels": [10**9, 10**9]}), "network: .*Restore"),
    "absurd depth": (network(options={"layers_per_block": 10**9}), "network: .*Restore"),
    "absurd schedule": (group("schedule", f"{INTEGRATIONS}.discrete.DiscreteSchedule", steps=10**15), "schedule"),
    "a link to a file of the system": (link("model.safetensors", "/etc/passwd"), AGAIN),
    "a link to a device": (link("model.safetensors", "/dev/zero"), AGAIN),
    "weights that are a pipe": (pipe("model.safetensors"), AGAIN),
    "notes that are a pipe": (pipe("model.json"), AGAIN),
    "infinite samples": (samples("1e400"), f"inf is not a number of samples.*{AGAIN}"),
    "NaN samples": (samples("NaN"), f"nan is not a number of samples.*{AGAIN}"),
    "samples of 5,000 digits": (samples("9" * 5000), f"a number of 5,000 digits is too long.*{AGAIN}"),
    "samples as text": (samples('"16"'), f"'16' is not a number of samples.*{AGAIN}"),
    "duplicate names": (samples('1, "samples": 2'), f"appears twice in one object.*{AGAIN}"),
    "NaN dropout": (setting("network", dropout=math.nan), "network.dropout: expected a number"),
    "infinite dropout of conditions": (setting("training", condition_dropout=math.inf), "condition_dropout"),
    "NaN exponent": (group("spectrum", "multisagd.PowerLaw", exponent=math.nan), "exponent: expected a number"),
    "metadata that are a list": (updated("model.json", metadata=[]), f"its metadata .* missing.*{AGAIN}"),
    "a class without keys": (group("spectrum", "recipes.base.errors.RecipeError"), "RecipeError cannot be built from"),
    "deep notes": (written("model.json", "[" * 100_000), AGAIN),
    **{f"weights: {kind}": (weights("model.safetensors", content), AGAIN) for kind, content in TENSOR_FILES.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPORTED)
def test_pipeline_refuses_hostile_exported_models(model: Path, kind: str) -> None:
    poison, message = EXPORTED[kind]
    if "diffusers" in message or kind.startswith("absurd"):  # importing it takes longer than to refuse a model
        pytest.importorskip("diffusers.models.unets.unet_2d", reason="diffusers is not installed")
    poison(model)
    assert_refused(load, model, match=message)


def test_pipeline_ignores_keys_by_which_other_libraries_load_code(model: Path) -> None:
    for keys in ({"auto_map": {"AutoModel": "modeling.Evil"}}, {"_class_name": ["pipeline", "Evil"]}):
        updated("model.json", **keys)(model)
        (model / "config.json").write_text(json.dumps(keys))
        (model / "model_index.json").write_text(json.dumps(keys))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary(model))))
    load(model)(1, 1, progress=False)
    assert not canary(model).exists()


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
def pipeline(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECRET", "silu")
    return with_traps(foreign, tmp_path, monkeypatch)


def run_adopt(folder: Path) -> object:
    return adopt(configuration.load("adopt", [f"model={folder}", f"out={folder.parent / 'out'}"]))


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
STEM = "unet/diffusion_pytorch_model"
TENSORS = f"{STEM}.safetensors"


def only_pickle(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / f"{STEM}.bin").write_bytes(pickle.dumps(Bomb(canary(folder))))


def removed(name: str) -> Poison:
    return lambda folder: (folder / name).rename(folder.parent / "removed")


def indexed(file: str) -> Poison:
    """Name a file of weights in an index; those of the model are moved to where it should not lead."""

    def poison(folder: Path) -> None:
        (folder / TENSORS).rename(folder.parent / "secret.safetensors")
        (folder / f"{TENSORS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": file}}))

    return poison


LINES = "DDPM\nallow_targets: [os]\nnetwork: {_target_: os.system}\r\x85/canary"
DO_NOT_FIT = "do not fit its config.json"
FOREIGN: dict[str, tuple[Poison, str]] = {
    "no scheduler": (removed("scheduler"), "has no scheduler"),
    "no network": (removed("unet"), "contains no network"),
    "no weights": (removed(TENSORS), "contains no weights: .* missing"),
    "an option": (updated(UNET, dance=3), "UNet2DModel has no option 'dance'"),
    "another scheduler": (updated(SCHEDULER, _class_name="EDMEulerScheduler"), "trained with EDMEulerScheduler can"),
    "a continuous clock": (updated(SCHEDULER, timestep_type="continuous"), "timestep_type='continuous' cannot be ad"),
    "inverted levels": (updated(SCHEDULER, invert_sigmas=True), "invert_sigmas=True cannot be adopted"),
    "shifted levels": (updated(SCHEDULER, _class_name="CogVideoXDPMScheduler"), "snr_shift_scale=3.0 cannot be ad"),
    "v of a flow": (updated(SCHEDULER, use_flow_sigmas=True, prediction_type="v_prediction"), "flow_prediction"),
    "a flow without one": (updated(SCHEDULER, prediction_type="flow_prediction"), "only epsilon, sample, v_prediction"),
    "a class next to it": (updated(UNET, _class_name="evil.Evil"), "networks of class 'evil.Evil' cannot be adopted"),
    "a class as a list": (updated(UNET, _class_name=["evil", "Evil"]), "cannot be adopted"),
    "os.system": (updated(UNET, _class_name="os.system"), "networks of class 'os.system' cannot be adopted"),
    "a scheduler next to it": (updated(SCHEDULER, _class_name="evil.Evil", beta_schedule=["evil"]), "clock.*betas"),
    # It would be written into the experiment, and printed.
    "a scheduler named in colour": (updated(SCHEDULER, _class_name="DDPM\x1b[31m"), "is not the name of a class"),
    "a scheduler named by lines": (updated(SCHEDULER, _class_name=LINES), "is not the name of a class"),
    "an environment variable": (updated(UNET, act_fn="${oc.env:SECRET}"), "strings that are not options"),
    "a missing value": (updated(UNET, act_fn="???"), "strings that are not options"),
    "a target": (updated(UNET, act_fn=SHELL), "cannot be built with these options"),
    "a target with shell syntax": (updated(UNET, act_fn={**SHELL, "command": "touch x; rm y"}), "not options of a"),
    "absurd width": (updated(UNET, block_out_channels=[10**9, 10**9]), DO_NOT_FIT),
    "absurd depth": (updated(UNET, layers_per_block=10**9), DO_NOT_FIT),
    "absurd steps": (updated(SCHEDULER, num_train_timesteps=10**15), "num_train_timesteps=1000000000000000"),
    "absurd channels": (updated(UNET, in_channels=10**30), "network|config.json"),
    "betas that are text": (updated(SCHEDULER, trained_betas=["x"]), "cannot read the scheduler"),
    "deep": (written(UNET, "[" * 100_000), "cannot read .*config.json"),
    "duplicate names": (written(UNET, '{"_class_name": "UNet2DModel", "_class_name": "x"}'), "appears twice in one"),
    "a pipe": (pipe(UNET), "it is a pipe and not a file"),
    "a pickle": (only_pickle, "a format that can run code when read"),
    "an index that leads above": (indexed("../../secret.safetensors"), "not safetensors files in its folder"),
    "an index that leads elsewhere": (indexed("/tmp/secret.safetensors"), "not safetensors files in its folder"),
    "an index of pickles": (indexed("weights.bin"), "not safetensors files in its folder"),
    "64 GiB": (lambda folder: write_sparse_tensor(folder / TENSORS, "conv_in.weight"), DO_NOT_FIT),
    **{f"weights: {kind}": (weights(TENSORS, content), f"cannot read the weights|{DO_NOT_FIT}")
       for kind, content in TENSOR_FILES.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_adopt_refuses_hostile_models(pipeline: Path, kind: str) -> None:
    poison, message = FOREIGN[kind]
    poison(pipeline)
    assert_refused(run_adopt, pipeline, match=message)
    assert not (pipeline.parent / "out").exists()


def test_adopt_ignores_keys_by_which_diffusers_loads_code(pipeline: Path) -> None:
    """Custom pipelines and components in the index, and what transformers calls `auto_map`."""
    evil = ["evil", "Evil"]
    index = {"_class_name": ["pipeline", "Evil"], "unet": evil, "scheduler": evil, "x": ["y", "z"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    ignored = {"_auto_map": {"AutoModel": "evil.Evil"}, "_name_or_path": "../../..", "_use_default_values": ["x"]}
    updated(UNET, **ignored)(pipeline)
    (pipeline / f"{STEM}.bin").write_bytes(pickle.dumps(Bomb(canary(pipeline))))
    run_adopt(pipeline)
    assert not canary(pipeline).exists()
