"""`multisagd train` trains networks of diffusers on every medium, continues, and exports them."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes import export
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.sample import sample
from recipes.train import train
from tests.helpers.captions import captioned_pictures
from tests.helpers.every_modality import MODALITIES
from tests.helpers.launching import ranks
from tests.helpers.tiny import TINY, assert_same, last_state

pytest.importorskip("diffusers", reason="diffusers is not installed")

PLAIN = [word for word in TINY if not word.startswith(("network.", "modality."))]
IMAGE = ["network=diffusers", "network.options={block_out_channels:[16,16],layers_per_block:1}", "modality.size=8"]


def trained(run_dir: Path, *overrides: str) -> dict[str, torch.Tensor]:
    train(configuration.load("train", [*PLAIN, f"run_dir={run_dir}", *overrides]))
    return dict(last_state(run_dir).tensors["ema"])


def drawn(run_dir: Path, *overrides: str) -> torch.Tensor:
    quick = ["steps=2", "count=3", "engine.threads=1", "engine.device=cpu", *overrides]
    return load_file(sample(configuration.load("sample", [f"run_dir={run_dir}", *quick])) / "samples.safetensors")["x0"]


@pytest.mark.slow
def test_train_resumes_diffusers_networks_bit_exactly(tmp_path: Path) -> None:
    trained(tmp_path / "whole", *IMAGE, "spectrum=power_law")
    trained(tmp_path / "parts", *IMAGE, "spectrum=power_law", "training.samples=48")
    trained(tmp_path / "parts", *IMAGE, "spectrum=power_law")
    assert_same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))


def test_export_and_guidance_work_with_diffusers_networks(tmp_path: Path) -> None:
    trained(tmp_path / "run", *IMAGE)
    assert export.main([f"run_dir={tmp_path / 'run'}", f"out={tmp_path / 'model'}"]) == 0
    plain = drawn(tmp_path / "run", f"out={tmp_path / 'a'}")
    assert torch.equal(drawn(tmp_path / "model", f"out={tmp_path / 'b'}"), plain)
    assert not torch.equal(drawn(tmp_path / "run", f"out={tmp_path / 'c'}", "guidance.scale=4"), plain)


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
    before = trained(tmp_path / "run", *words, *classless, "validation.holdout=2", "training.samples=16")
    after = trained(tmp_path / "run", *words, *classless, "validation.holdout=2", "training.samples=48")
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert any(not torch.equal(before[key], after[key]) for key in after if key.endswith("weight"))
    assert drawn(tmp_path / "run").isfinite().all()


@pytest.mark.slow
def test_train_on_two_shards_equals_one_process(tmp_path: Path) -> None:
    """diffusers' transformer calls a part of its first block before that block."""
    name, options = MEDIA["image"]
    words = ["network=diffusers", f"network.name={name}", f"network.options={options}", "modality.size=8"]
    words += ["engine.precision=float64", "training.samples=32", "every.checkpoint=32"]
    expected = trained(tmp_path / "alone", *words)
    run_dir = tmp_path / "together"
    done = ranks(2, "recipes.train", *PLAIN, *words, "engine.distribution=fsdp", f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr[:6000]
    assert_close(dict(last_state(run_dir).tensors["ema"]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_samples_of_a_diffusers_network_depend_on_their_prompts_alone(tmp_path: Path) -> None:
    network = ["network=diffusers", "network.name=UNet2DConditionModel", IMAGE[1], "modality.size=8"]
    trained(tmp_path / "run", *network, *captioned_pictures(tmp_path))
    red, long, empty = (
        drawn(tmp_path / "run", f"prompts={prompts}", "count=2")
        for prompts in ('["a red square","a blue square"]', '["a red square","a blue green red square"]', "null")
    )
    assert torch.allclose(red[0], long[0], atol=1e-5), "a prompt depends on how long the other one is"
    assert not torch.equal(red, empty)


def test_train_names_mistakes_in_diffusers_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = {
        "network.name=AutoencoderKL": "network: cannot use diffusers' 'AutoencoderKL': choose one of UNet1DModel",
        "network.name=UNet1DModel": "network: UNet1DModel is for 1 grid dimensions, but the data have 2",
        "network.options={witdh:3}": "network: UNet2DModel has no option 'witdh'",
        "network.clock={_target_:os.system,command:ls}": r"network.clock._target_: os.system is not under an allow",
        "network._target_=diffusers.UNet2DModel": "network._target_: diffusers.UNet2DModel is not under an allowed",
    }
    for word, message in mistakes.items():
        with pytest.raises(RecipeError, match=message):
            trained(tmp_path / "run", "network=diffusers", "modality.size=8", word)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(RecipeError, match=r"network: .* pip install .*diffusers"):
        trained(tmp_path / "run", *IMAGE)
    assert not (tmp_path / "run").exists()
