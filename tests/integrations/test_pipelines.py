"""Shaped pipelines of diffusers start from and inject coloured noise, in a training script of two other lines too."""

import ast
import difflib
import inspect
import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import diffusers
import pytest
import torch

import multisagd as ms
from benchmarks import diffusers_schedulers as law
from multisagd.integrations import ScheduledDenoiser, ShapedNoise, pipelines, shape_pipeline, shape_scheduler

SHAPED = ShapedNoise(ms.PowerLaw(-0.5))
NAMES = ["DDPM", "DDIM"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unet() -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4, 8), norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def stock(name: str = "DDPM"):
    return quiet(getattr(diffusers, f"{name}Pipeline")(unet(), getattr(diffusers, f"{name}Scheduler")()))


def shape(pipeline, shaped: ShapedNoise = SHAPED):
    return quiet(shape_pipeline(pipeline, shaped))


def copy_weights(pipeline):
    """Let a pipeline's weights begin where PyTorch begins its tensors, and not where they happen to lie in the file.

    By the address of what it multiplies MKL orders its sums, which are otherwise equal: the last bits differ.
    """
    for parameter in pipeline.unet.parameters():
        parameter.data = parameter.data.clone()
    return pipeline


def inputs_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Record what a model is given."""
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
                                    with_kwargs=True)  # fmt: skip
    return seen


def images(pipeline, batch_size: int = 2, steps: int = 3, generator=None) -> torch.Tensor:
    """Return what a pipeline draws, channels first; some versions of diffusers give arrays, channels last."""
    drawn = pipeline(
        batch_size=batch_size, num_inference_steps=steps, generator=generator or seeded(), output_type="pt"
    ).images
    return drawn if isinstance(drawn, torch.Tensor) else torch.from_numpy(drawn).movedim(-1, 1)


def test_shape_pipeline_keeps_the_class_and_leaves_the_first_pipeline_alone():
    pipeline = stock()
    shaped = shape_pipeline(pipeline, SHAPED)
    assert isinstance(shaped, diffusers.DDPMPipeline)
    assert type(shaped) is pipelines.ShapedDDPMPipeline
    assert inspect.signature(shaped.__call__) == inspect.signature(pipeline.__call__)
    assert shaped.unet is pipeline.unet
    assert type(pipeline) is diffusers.DDPMPipeline
    assert type(pipeline.scheduler) is diffusers.DDPMScheduler
    assert pipeline.config["scheduler"] == ("diffusers", "DDPMScheduler")


def test_shaped_pipeline_starts_from_coloured_noise_of_one_generator_or_one_per_item():
    for name in NAMES:
        shaped = shape(stock(name))
        seen = inputs_of(shaped.unet)
        images(shaped, steps=2)
        assert torch.equal(seen[0], SHAPED.noise((2, 1, 8, 8), seeded())), name
    together = images(shape(stock()), generator=[seeded(1), seeded(2)])
    alone = images(shape(stock()), 1, generator=[seeded(2)])
    assert torch.allclose(together[1:], alone, atol=1e-5)
    pipeline = stock()
    assert torch.equal(images(pipeline), images(shape(pipeline, ShapedNoise(ms.Flat()))))


def test_shaped_pipeline_is_a_loop_over_the_shaped_scheduler():
    """Whose law `test_schedulers.py` proves; the model is the exact denoiser of Gaussian data."""
    scheduler = shape_scheduler(diffusers.DDPMScheduler(clip_sample=False), SHAPED)
    model = ScheduledDenoiser(law.oracle(law.NOISE, law.DATA, law.GRID), scheduler, channels=1)
    drawn = images(shape(diffusers.DDPMPipeline(model, scheduler)), steps=5)
    generator = seeded()
    x = SHAPED.noise((2, 1, 16, 16), generator)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t).sample, t, x, generator=generator).prev_sample
    assert torch.equal(drawn, (x / 2 + 0.5).clamp(0, 1))


def test_shaped_stable_diffusion_colours_its_latents_and_warns_of_white_ones_of_the_caller():
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(4, 8),
        norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler()
    parts = (None, None, None, network, scheduler, None, None)
    shaped = shape(diffusers.StableDiffusionPipeline(*parts, requires_safety_checker=False))
    seen = inputs_of(shaped.unet)
    options = {"prompt_embeds": torch.zeros(1, 3, 8), "guidance_scale": 1.0, "num_inference_steps": 2}
    options |= {"output_type": "latent", "height": 64, "width": 64}
    shaped(**options, generator=seeded())
    start = SHAPED.noise((1, 4, 8, 8), seeded()) * shaped.scheduler.init_noise_sigma
    shaped.scheduler.set_timesteps(2)
    expected = shaped.scheduler.scale_model_input(start, shaped.scheduler.timesteps[0])
    assert torch.allclose(seen[0], expected, atol=1e-6)
    seen.clear()
    white = torch.randn(1, 4, 8, 8, generator=seeded())
    with pytest.warns(UserWarning, match="started from white noise"):
        shaped(**options, latents=white)
    assert torch.allclose(seen[0], expected / start * white * shaped.scheduler.init_noise_sigma, atol=1e-5)


def test_shaped_flux_colours_latents_before_it_packs_them():
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        axes_dims_rope=[2, 2, 4], num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    shaped = shape(diffusers.FluxPipeline(scheduler, None, None, None, None, None, network))
    seen = inputs_of(shaped.transformer)
    options = {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        shaped(**options, height=128, width=128, num_inference_steps=2, output_type="latent", generator=seeded())
    noise = SHAPED.noise((1, 4, 16, 16), seeded())
    patches = noise.view(1, 4, 8, 2, 8, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 64, 16)
    assert torch.equal(seen[0], patches)


def test_shaped_pipeline_refuses_white_schedulers_other_layouts_and_other_objects():
    class Rows(diffusers.DDPMPipeline):
        def __call__(self):
            return torch.randn(1, 64, 12)

    shaped = shape(stock())
    shaped.scheduler = diffusers.DDPMScheduler()
    with pytest.raises(ValueError, match="the scheduler of this ShapedDDPMPipeline is a DDPMScheduler"):
        images(shaped, steps=1)
    shaped.scheduler = shape_scheduler(diffusers.DDIMScheduler(), SHAPED)
    images(shaped, steps=1)
    with pytest.raises(ValueError, match=r"drew no noise of the shape \(batch, channels, height, width\)"):
        shape_pipeline(Rows(unet(), diffusers.DDPMScheduler()), SHAPED)()
    with pytest.raises(ValueError, match="UNet2DModel is not a diffusers pipeline"):
        shape_pipeline(unet(), SHAPED)
    with pytest.raises(AttributeError, match="ShapedUNet2DModel"):
        _ = pipelines.ShapedUNet2DModel
    with pytest.raises(ValueError, match="needs a scheduler with coloured noise, got DDPMScheduler"):
        pipelines.ShapedDDPMPipeline(unet(), diffusers.DDPMScheduler())


@pytest.mark.parametrize("name", NAMES)
def test_shaped_pipeline_is_saved_and_loaded_with_its_colour(tmp_path, name):
    shaped = shape(stock(name))
    shaped.save_pretrained(tmp_path)
    loaded = quiet(copy_weights(getattr(pipelines, f"Shaped{name}Pipeline").from_pretrained(tmp_path)))
    assert type(loaded) is type(shaped)
    assert torch.equal(images(shaped), images(loaded))


def test_stock_pipeline_loads_with_a_shaped_scheduler(tmp_path):
    diffusers.DDPMPipeline(unet(), shape_scheduler(diffusers.DDPMScheduler(), SHAPED)).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["multisagd.integrations.schedulers", "ShapedDDPMScheduler"]
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is diffusers.DDPMPipeline
    assert loaded.scheduler.shaped_noise.spectrum == SHAPED.spectrum


DRAW = """
import json, sys, torch
from multisagd.integrations.pipelines import ShapedDDPMPipeline
torch.set_num_threads(1)
pipeline, generator = ShapedDDPMPipeline.from_pretrained(sys.argv[1]), torch.Generator().manual_seed(0)
print(json.dumps(pipeline(generator=generator, num_inference_steps=3, output_type='pt').images.tolist()))
"""


@pytest.mark.slow
def test_shaped_pipeline_draws_the_same_bits_in_a_fresh_process(tmp_path):
    shape(stock()).save_pretrained(tmp_path)
    command = [sys.executable, "-c", DRAW, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    drawn = images(quiet(pipelines.ShapedDDPMPipeline.from_pretrained(tmp_path)), 1)
    assert torch.equal(torch.tensor(json.loads(output.splitlines()[-1])), drawn)


def test_shaped_pipeline_never_becomes_white_without_a_warning(tmp_path):
    shape(stock()).save_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="ShapedDDPMPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
    with pytest.warns(UserWarning, match="create the pipeline with shape_pipeline"):
        images(loaded, 4, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        images(shape(loaded, loaded.scheduler.shaped_noise), 4, steps=2)


EXAMPLES = Path(__file__).parents[2] / "examples"
WHITE, COLOURED = "diffusers_training_white.py", "diffusers_training.py"
SPECTRUM = ms.PowerLaw(exponent=-0.3)


def code(script: str) -> list[str]:
    """Return the lines of a script without its docstring, comments and empty lines."""
    tree = ast.parse((EXAMPLES / script).read_text(encoding="utf-8"))
    tree.body = tree.body[1:]
    return ast.unparse(tree).splitlines()


def test_training_scripts_differ_in_two_lines_and_what_these_need():
    changes = [line for line in difflib.ndiff(code(WHITE), code(COLOURED)) if line[0] in "+-" and line[2:].strip()]
    removed = [line[2:].strip() for line in changes if line[0] == "-"]
    added = [line[2:].strip() for line in changes if line[0] == "+"]
    assert added[:3] == [
        "import multisagd as ms",
        "from multisagd.integrations import ShapedNoise, shape_pipeline",
        "shaped = ShapedNoise(ms.PowerLaw(exponent=-0.3))",
    ]
    for lines in (removed, added[3:]):
        assert [line.split(" = ")[0] for line in lines] == ["noise", "pipeline"]


def run(script: str, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a script; return the noise that its training added, and what sampling began from."""
    scheduler, model = diffusers.DDPMScheduler, diffusers.UNet2DModel
    monkeypatch.setattr("sys.argv", [script, "--small"])
    with (
        patch.object(scheduler, "add_noise", autospec=True, side_effect=scheduler.add_noise) as add_noise,
        patch.object(model, "forward", autospec=True, side_effect=model.forward) as forward,
    ):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    steps = len(add_noise.call_args_list)
    return torch.cat([call.args[2] for call in add_noise.call_args_list]), forward.call_args_list[steps].args[1]


def test_training_scripts_train_and_sample_in_their_colour(tmp_path, monkeypatch, capsys):
    covariance = ms.SpectralCovariance(SPECTRUM, ms.Grid.of(height=8, width=8))
    monkeypatch.chdir(tmp_path)
    for script, spectrum, power in ((WHITE, ms.Flat(), torch.ones(8, 5)), (COLOURED, SPECTRUM, covariance.power())):
        noise, start = run(script, monkeypatch)
        assert "epoch 1 of 1: loss" in capsys.readouterr().out
        assert len(noise) == 256
        measured = torch.fft.rfft2(noise.double(), norm="ortho").abs().square().mean((0, 1))
        # Zero frequency, of one real coefficient in each of 256 pictures, has a standard error of 9 %.
        assert (measured / power - 1).abs().max() < 0.4, script
        assert torch.equal(start, ShapedNoise(spectrum).noise((4, 1, 8, 8), torch.Generator().manual_seed(0)))
    loaded = pipelines.ShapedDDPMPipeline.from_pretrained(tmp_path / "diffusers_model")
    assert loaded.scheduler.shaped_noise.spectrum == SPECTRUM
    assert (tmp_path / "diffusers_samples.png").stat().st_size > 100
