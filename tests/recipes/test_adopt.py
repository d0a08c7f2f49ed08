"""Adopted models of diffusers estimate as diffusers does, and its networks train on every medium."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import multisagd as ms
from modalities.image import Image
from multisagd.integrations.discrete import DiscreteSchedule
from recipes import adopt as recipe
from recipes import export
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.assembly import Assembly
from recipes.runs.checkpoint import State
from recipes.runs.settings import ModelSettings
from recipes.sample import sample
from recipes.sharing.diffusers_model import read_scheduler
from recipes.train import train
from recipes.training.setup import load_initial
from tests.helpers.every_modality import MODALITIES
from tests.helpers.hostile_files import edited
from tests.helpers.launching import ranks
from tests.helpers.tiny import TINY, assert_same, last_state, tiny_run

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

SMALL = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}  # fmt: skip
QUICK = [word for word in TINY if not word.startswith(("network.", "modality."))]
UNET = "unet/config.json"


def shaken(network: torch.nn.Module) -> Any:
    """Add noise to all weights of a network, some of which are zeros at first."""
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return network.eval()


def saved(folder: Path, scheduler: Any = None, **options: Any) -> Any:
    """Save a pipeline with random weights and return it."""
    torch.manual_seed(0)
    unet = shaken(diffusers.UNet2DModel(**{**SMALL, **options}))
    pipeline = diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pipeline in a folder."""
    saved(tmp_path / "model")
    return tmp_path / "model"


def adopted(model: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    """Adopt a model and return its weights."""
    recipe.adopt(configuration.load("adopt", [f"model={model}", f"out={out}", *words]))
    return load_file(out / "adopted.safetensors")


def denoiser_of(out: Path, *words: str) -> ms.Denoiser:
    """Return the denoiser that a training of an adopted model begins with."""
    config = configuration.load("train", ["experiment=adopted", "run_dir=r", *words], out)
    builder, modality = Builder(), Image(size=8, channels=1)
    data = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(9)) + 2
    statistics = ms.DataStatistics.measure([data], modality.grid())
    assembly = Assembly(ModelSettings.of(config, builder), builder, modality, statistics, None)
    network = assembly.network()
    load_initial(network, Path(config["training"]["initial"]), builder)
    return assembly.denoiser(network.eval(), assembly.process()).eval()


SCHEDULERS = {
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "v": lambda: diffusers.DDPMScheduler(
        clip_sample=False, prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"
    ),
    "x0": lambda: diffusers.DDPMScheduler(clip_sample=False, prediction_type="sample", beta_schedule="scaled_linear"),
    "few": lambda: diffusers.DDIMScheduler(clip_sample=False, num_train_timesteps=50, beta_end=0.3),
    "euler": lambda: diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.001),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_read_scheduler_keeps_noise_levels_or_refuses(tmp_path: Path) -> None:
    """Every scheduler that diffusers has, by its defaults."""
    read, refused = set(), set()
    for name in filter(lambda name: name.endswith("Scheduler"), dir(diffusers)):
        try:
            scheduler = getattr(diffusers, name)()
            scheduler.save_pretrained(tmp_path / name)
        except (TypeError, AttributeError, ImportError):  # it has no defaults, or is no scheduler
            continue
        try:
            clock = read_scheduler(tmp_path / name)
        except RecipeError:
            refused.add(name)
            continue
        read.add(name)
        if clock.kind == "flow":
            assert clock.prediction == "flow", name
            continue
        schedule = Builder().build(clock.timesteps["clock"], ms.Schedule, "clock")
        alpha, sigma = schedule.alpha_sigma((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
        expected = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
        torch.testing.assert_close(sigma / alpha, expected, rtol=1e-3, atol=1e-4, msg=name)
    assert {"DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"} < read
    assert {"EDMEulerScheduler", "CogVideoXDDIMScheduler"} < refused


@pytest.mark.parametrize("name", SCHEDULERS)
def test_adopted_denoiser_estimates_as_diffusers_does(name: str, tmp_path: Path) -> None:
    pipeline = saved(tmp_path / "model", SCHEDULERS[name]())
    adopted(tmp_path / "model", tmp_path / "out")
    denoiser = denoiser_of(tmp_path / "out")
    # Euler has no estimate of x0 of its own in x_t; DDPM's with the same configuration has.
    judge = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    steps = judge.config.num_train_timesteps
    x_t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for timestep in (0, 1, steps // 10, steps // 2, steps - 2, steps - 1):
        with torch.no_grad():
            output = pipeline.unet(x_t, timestep).sample
            theirs = judge.step(output, timestep, x_t, generator=torch.Generator()).pred_original_sample
            ours = denoiser(x_t, torch.tensor([(timestep + 1) / steps], dtype=torch.float64))
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * size, msg=f"at timestep {timestep}")


NARROW = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
CROSS = {**NARROW, "cross_attention_dim": 8, "attention_head_dim": 4}
# options, channels and grid, the other inputs of diffusers' network
OTHERS: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, torch.Tensor]]] = {
    "UNet1DModel": ({"block_out_channels": (32, 32, 32), "extra_in_channels": 64}, (2, 64), {}),
    "UNet2DConditionModel": (
        {**CROSS, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        (4, 8, 8), {"encoder_hidden_states": torch.linspace(-2, 2, 80).reshape(2, 5, 8)},
    ),
    "UNet3DConditionModel": (
        {**CROSS, "in_channels": 1, "out_channels": 1, "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
         "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D")},
        (1, 3, 8, 8), {"encoder_hidden_states": torch.zeros(2, 1, 8)},
    ),
    "DiTTransformer2DModel": (
        {"in_channels": 2, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 8,
         "num_embeds_ada_norm": 3, "norm_num_groups": 1},
        (2, 8, 8), {"class_labels": torch.tensor([1, 2])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_adopt_keeps_the_weights_of_every_class_of_network(name: str, tmp_path: Path) -> None:
    options, (channels, *grid), inputs = OTHERS[name]
    torch.manual_seed(0)
    theirs = shaken(getattr(diffusers, name)(**options))
    theirs.save_pretrained(tmp_path / "model" / ("transformer" if name.startswith("DiT") else "unet"))
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    adopted(tmp_path / "model", tmp_path / "out")
    config = configuration.load("train", ["experiment=adopted", "run_dir=r"], tmp_path / "out")
    facts = {"channels": channels, "dimensions": len(grid), "classes": 3 if "class_labels" in inputs else None}
    facts["context"] = 8 if name == "UNet2DConditionModel" else None
    ours = Builder().build(config["network"], torch.nn.Module, "network", **facts)
    load_initial(ours, tmp_path / "out" / "adopted.safetensors", Builder())
    x, steps = torch.randn(2, channels, *grid, generator=torch.Generator().manual_seed(4)), torch.tensor([10, 700])
    log_snr = DiscreteSchedule().log_snr((steps.double() + 1) / 1000).float()
    condition = next(iter(inputs.values()), None) if name != "UNet3DConditionModel" else None
    with torch.no_grad():
        expected = theirs(x, timestep=steps, **inputs, return_dict=False)[0]
        torch.testing.assert_close(ours.eval()(x, log_snr, condition), expected, rtol=1e-3, atol=1e-3)


def test_adopt_takes_missing_options_from_diffusers_defaults(tmp_path: Path) -> None:
    """They change the network without changing the shape of any weight."""
    saved(tmp_path / "model", block_out_channels=(32, 32), norm_num_groups=32)

    def remove_defaults(options: dict[str, Any]) -> None:
        assert (options.pop("norm_num_groups"), options.pop("attention_head_dim")) == (32, 8)

    edited(UNET, remove_defaults)(tmp_path / "model")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "model" / "unet")
    adopted(tmp_path / "model", tmp_path / "out")
    network = denoiser_of(tmp_path / "out").network
    x, log_snr = torch.ones(1, 1, 8, 8), DiscreteSchedule().log_snr(torch.tensor([0.501], dtype=torch.float64))
    with torch.no_grad():
        torch.testing.assert_close(network(x, log_snr.float()), theirs(x, 500).sample, rtol=1e-3, atol=1e-3)


FLOWS = {
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "noise": lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True),
    "x0": lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="sample"),
}


@pytest.mark.parametrize("prediction", FLOWS)
def test_adopted_flow_estimates_as_diffusers_does(prediction: str, tmp_path: Path) -> None:
    scheduler = FLOWS[prediction]()
    pipeline = saved(tmp_path / "model", scheduler)
    adopted(tmp_path / "model", tmp_path / "out")
    denoiser = denoiser_of(tmp_path / "out")
    x_t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for sigma in (0.05, 0.4, 0.95):
        with torch.no_grad():
            output = pipeline.unet(x_t, 1000 * sigma).sample
            shift = 3.0 if prediction == "flow" else 1.0
            time = sigma / (shift - (shift - 1) * sigma)
            ours = denoiser(x_t, torch.tensor([time], dtype=torch.float64))
        theirs = {"flow": x_t - sigma * output, "noise": (x_t - sigma * output) / (1 - sigma), "x0": output}
        torch.testing.assert_close(ours, theirs[prediction], rtol=1e-3, atol=1e-3)


def trained(run_dir: Path, folder: Path | None, *words: str) -> State:
    train(configuration.load("train", [*QUICK, f"run_dir={run_dir}", *words], folder))
    return last_state(run_dir)


STILL = ["training.learning_rate=1e-12", "training.weight_decay=0", "training.samples=16"]


def test_train_continues_from_an_adopted_model_with_shaped_noise(model: Path, tmp_path: Path) -> None:
    """The first weights are the model's, it learns, and it continues when the model is gone."""
    out = tmp_path / "out"
    first = adopted(model, out)
    words = ["experiment=adopted", "spectrum=power_law", "training.conditional=false"]
    kept = trained(tmp_path / "still", out, *words, *STILL).tensors["network"]
    assert first.keys() == kept.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-6)

    whole = trained(tmp_path / "whole", out, *words)
    trained(tmp_path / "parts", out, *words, "training.samples=48")
    before = json.loads((tmp_path / "parts" / "run.json").read_text())["initial"]
    assert before["from"] == str(out / "adopted.safetensors")
    (out / "adopted.safetensors").unlink()
    assert_same(trained(tmp_path / "parts", out, *words), whole)
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["initial"] == before


def test_adopt_adds_a_class_for_none(tmp_path: Path) -> None:
    saved(tmp_path / "model", num_class_embeds=10)
    table = adopted(tmp_path / "model", tmp_path / "out")["model.class_embedding.weight"]
    assert table.shape[0] == 11
    torch.testing.assert_close(table[10], table[:10].mean(0))
    trained(tmp_path / "run", tmp_path / "out", "experiment=adopted", "training.samples=16")
    last = adopted(tmp_path / "model", tmp_path / "last", "null_class=last")
    assert len(last["model.class_embedding.weight"]) == 10
    with pytest.raises(RecipeError, match=r"num_class_embeds=10 means 9 classes .* but the data have 10"):
        trained(tmp_path / "other", tmp_path / "last", "experiment=adopted")


def test_adopt_reads_old_attention_names_and_half_precision(model: Path, tmp_path: Path) -> None:
    """Names of weights as in the first models of diffusers, which lie on the hub, and a variant in float16 alone."""
    first = adopted(model, tmp_path / "out")
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(path).items():
        for now, then in former.items():
            name = name.replace(f".{now}.", f".{then}.")
        tensors[name] = tensor.half()
    assert any("proj_attn" in name for name in tensors)
    path.unlink()
    save_file(tensors, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    again = adopted(model, tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(torch.equal(again[name], first[name].half().float()) for name in first)


def test_train_starts_from_a_run_or_an_exported_model_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run(tmp_path / "run", "training.samples=32")
    assert export.main([f"run_dir={tmp_path / 'run'}", f"out={tmp_path / 'model'}"]) == 0
    averaged = last_state(tmp_path / "run").tensors["ema"]
    hashes = set()
    for name in ("run", "model"):
        state = tiny_run(tmp_path / f"from-{name}", f"training.initial={tmp_path / name}", *STILL)
        for key, tensor in state.tensors["network"].items():
            torch.testing.assert_close(tensor, averaged[f"module.{key}"], rtol=0, atol=1e-6)
        hashes.add(json.loads((tmp_path / f"from-{name}" / "run.json").read_text())["initial"]["sha256"])
    assert len(hashes) == 1

    monkeypatch.chdir(tmp_path)
    for word, message in {
        "training.conditional=false": "does not match the configured network: size mismatch: conditioning.labels",
        "training.initial=nowhere": "training.initial=nowhere cannot be read .*choose a safetensors file, an exported",
        "training.initial=.": r"training.initial=\.: ",
    }.items():
        with pytest.raises(RecipeError, match=message):
            tiny_run(tmp_path / "new", f"training.initial={tmp_path / 'run'}", word)
        assert not (tmp_path / "new").exists()


def test_adopt_writes_an_experiment_and_the_command_that_trains_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my models"
    adopted(model, out)
    command = f"--config-dir='{out}' experiment=adopted spectrum=power_law run_dir="
    assert command in capsys.readouterr().out
    text = (out / "experiment" / "adopted.yaml").read_text()
    assert command in text
    keys = yaml.safe_load(text)
    assert keys["modality"] == {"size": 8, "channels": 1}
    assert keys["denoiser"] == {"prediction": "noise"}
    config = configuration.load("train", ["experiment=adopted", "run_dir=r"], out)
    assert config["schedule"]["_target_"].endswith("DiscreteSchedule")
    assert config["denoiser"]["centred"] is False
    adopted(model, out)  # over itself


def drawn(run_dir: Path, *overrides: str) -> torch.Tensor:
    quick = ["steps=2", "count=3", "engine.threads=1", "engine.device=cpu", *overrides]
    return load_file(sample(configuration.load("sample", [f"run_dir={run_dir}", *quick])) / "samples.safetensors")["x0"]


MEDIA = {
    "waveform": ["UNet1DModel", "{block_out_channels:[32,32,32]}"],
    "video": ["UNet3DConditionModel", "{block_out_channels:[16,16],layers_per_block:1}"],
    "image": ["DiTTransformer2DModel", "{num_layers:1,num_attention_heads:2,attention_head_dim:8,sample_size:8}"],
    "spectrogram": ["UNet2DConditionModel", "{block_out_channels:[16,16],layers_per_block:1}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("medium", MEDIA)
def test_train_learns_with_every_class_of_network_on_its_medium(medium: str, tmp_path: Path) -> None:
    name, options = MEDIA[medium]
    words = ["network=diffusers", f"network.name={name}", f"network.options={options}", *MODALITIES[medium]]
    classless = ["training.conditional=false"] if name in ("UNet1DModel", "UNet3DConditionModel") else []
    words += ["validation.holdout=2", *classless]
    before, after = (
        dict(trained(tmp_path / "run", None, *words, f"training.samples={samples}").tensors["ema"])
        for samples in (16, 48)
    )
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert any(not torch.equal(before[key], after[key]) for key in after if key.endswith("weight"))
    assert drawn(tmp_path / "run").isfinite().all()


@pytest.mark.slow
def test_train_on_two_shards_equals_one_process(tmp_path: Path) -> None:
    """diffusers' transformer calls a part of its first block before that block."""
    name, options = MEDIA["image"]
    words = ["network=diffusers", f"network.name={name}", f"network.options={options}", "modality.size=8"]
    words += ["engine.precision=float64", "training.samples=32", "every.checkpoint=32"]
    expected = trained(tmp_path / "alone", None, *words).tensors["ema"]
    run_dir = tmp_path / "together"
    done = ranks(2, "recipes.train", *QUICK, *words, "engine.distribution=fsdp", f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr[:6000]
    torch.testing.assert_close(dict(last_state(run_dir).tensors["ema"]), dict(expected), rtol=1e-9, atol=1e-12)
