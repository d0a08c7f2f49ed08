"""Pipelines of diffusers in colour: what they start from and inject, and that saving keeps it."""

import inspect
import json
import subprocess
import sys
import warnings

import diffusers
import pytest
import torch

import multisagd as ms
from benchmarks import diffusers_schedulers as law
from multisagd.integrations import ScheduledDenoiser, ShapedNoise, pipelines, shape_pipeline, shape_scheduler

SHAPED = ShapedNoise(ms.PowerLaw(-0.5))


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


def ddpm(**options):
    return quiet(diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(**options)))


def copy_weights(pipeline):
    """Let a pipeline's weights begin where PyTorch begins its tensors, and not where they happen to lie in the file.

    By the address of what it multiplies MKL orders its sums, which are otherwise equal: the last bits differ.
    """
    for parameter in pipeline.unet.parameters():
        parameter.data = parameter.data.clone()
    return pipeline


def starts(model: torch.nn.Module) -> list[torch.Tensor]:
    """Record what a model is given first."""
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
                                    with_kwargs=True)  # fmt: skip
    return seen


def tensors(pipeline, **options):
    """Return what a pipeline draws, channels first; some versions of diffusers give arrays, channels last."""
    images = pipeline(**options, output_type="pt").images
    return images if isinstance(images, torch.Tensor) else torch.from_numpy(images).movedim(-1, 1)


class TestCalls:
    @pytest.mark.parametrize("name", ["DDPM", "DDIM"])
    def test_it_starts_from_the_covariances_noise(self, name):
        pipeline = getattr(diffusers, f"{name}Pipeline")(unet(), getattr(diffusers, f"{name}Scheduler")())
        shaped = quiet(shape_pipeline(pipeline, SHAPED))
        seen = starts(shaped.unet)
        shaped(batch_size=2, generator=seeded(), num_inference_steps=2, output_type="pt")
        assert torch.equal(seen[0], SHAPED.noise((2, 1, 8, 8), seeded()))

    def test_it_is_of_its_class_with_its_signature_and_leaves_the_first_one_alone(self):
        pipeline = ddpm()
        shaped = shape_pipeline(pipeline, SHAPED)
        assert isinstance(shaped, diffusers.DDPMPipeline)
        assert type(shaped) is pipelines.ShapedDDPMPipeline
        assert inspect.signature(shaped.__call__) == inspect.signature(pipeline.__call__)
        assert shaped.unet is pipeline.unet
        assert type(pipeline) is diffusers.DDPMPipeline
        assert type(pipeline.scheduler) is diffusers.DDPMScheduler
        assert pipeline.config["scheduler"] == ("diffusers", "DDPMScheduler")

    def test_a_flat_spectrum_changes_no_bit(self):
        pipeline = ddpm()
        images = [
            tensors(p, batch_size=2, generator=seeded(), num_inference_steps=3)
            for p in (pipeline, shape_pipeline(pipeline, ShapedNoise(ms.Flat())))
        ]
        assert torch.equal(*images)

    def test_generators_one_per_item(self):
        shaped = quiet(shape_pipeline(ddpm(), SHAPED))
        together = tensors(shaped, batch_size=2, generator=[seeded(1), seeded(2)], num_inference_steps=3)
        alone = tensors(shaped, batch_size=1, generator=[seeded(2)], num_inference_steps=3)
        assert torch.allclose(together[1:], alone, atol=1e-5)

    def test_it_is_a_loop_over_the_shaped_scheduler(self):
        """Whose law `test_schedulers.py` proves; the model is the exact denoiser of Gaussian data."""
        scheduler = shape_scheduler(diffusers.DDPMScheduler(clip_sample=False), SHAPED)
        model = ScheduledDenoiser(law.oracle(law.NOISE, law.DATA, law.GRID), scheduler, channels=1)
        shaped = quiet(shape_pipeline(diffusers.DDPMPipeline(model, scheduler), SHAPED))
        images = tensors(shaped, batch_size=2, generator=seeded(), num_inference_steps=5)
        generator = seeded()
        x = SHAPED.noise((2, 1, 16, 16), generator)
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x, generator=generator).prev_sample
        assert torch.equal(images, (x / 2 + 0.5).clamp(0, 1))

    def test_latents_of_stable_diffusion(self):
        torch.manual_seed(0)
        network = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(4, 8),
            norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        pipeline = diffusers.StableDiffusionPipeline(
            None, None, None, network, diffusers.EulerDiscreteScheduler(), None, None, requires_safety_checker=False
        )
        shaped = quiet(shape_pipeline(pipeline, SHAPED))
        seen = starts(shaped.unet)
        options = {"prompt_embeds": torch.zeros(1, 3, 8), "guidance_scale": 1.0, "num_inference_steps": 2}
        shaped(**options, output_type="latent", height=64, width=64, generator=seeded())
        start = SHAPED.noise((1, 4, 8, 8), seeded()) * shaped.scheduler.init_noise_sigma
        shaped.scheduler.set_timesteps(2)
        expected = shaped.scheduler.scale_model_input(start, shaped.scheduler.timesteps[0])
        assert torch.allclose(seen[0], expected, atol=1e-6)
        # Latents that the caller gives are the caller's.
        seen.clear()
        white = torch.randn(1, 4, 8, 8, generator=seeded())
        with pytest.warns(UserWarning, match="started from white noise"):
            shaped(**options, output_type="latent", height=64, width=64, latents=white)
        assert torch.allclose(seen[0], expected / start * white * shaped.scheduler.init_noise_sigma, atol=1e-5)

    def test_latents_that_flux_packs(self):
        torch.manual_seed(0)
        network = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            axes_dims_rope=[2, 2, 4], num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
        )  # fmt: skip
        pipeline = diffusers.FluxPipeline(
            diffusers.FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, network
        )
        shaped = quiet(shape_pipeline(pipeline, SHAPED))
        seen = starts(shaped.transformer)
        options = {"prompt_embeds": torch.zeros(1, 3, 8), "pooled_prompt_embeds": torch.zeros(1, 8)}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            shaped(**options, height=128, width=128, num_inference_steps=2, output_type="latent", generator=seeded())
        noise = SHAPED.noise((1, 4, 16, 16), seeded())
        patches = noise.view(1, 4, 8, 2, 8, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 64, 16)
        assert torch.equal(seen[0], patches)


class TestRefusals:
    def test_a_scheduler_put_in_its_place_afterwards_is_not_taken_silently(self):
        shaped = quiet(shape_pipeline(ddpm(), SHAPED))
        shaped.scheduler = diffusers.DDPMScheduler()
        with pytest.raises(ValueError, match="the scheduler of this ShapedDDPMPipeline is a DDPMScheduler"):
            shaped(num_inference_steps=1)
        shaped.scheduler = shape_scheduler(diffusers.DDIMScheduler(), SHAPED)
        shaped(num_inference_steps=1, output_type="pt")

    def test_noise_of_another_layout_is_not_left_white_silently(self):
        class Rows(diffusers.DDPMPipeline):
            def __call__(self):
                return torch.randn(1, 64, 12)

        pipeline = Rows(unet(), diffusers.DDPMScheduler())
        with pytest.raises(ValueError, match=r"drew no noise of the shape \(batch, channels, height, width\)"):
            shape_pipeline(pipeline, SHAPED)()

    def test_what_is_no_pipeline_is_refused(self):
        with pytest.raises(ValueError, match="UNet2DModel is not a diffusers pipeline"):
            shape_pipeline(unet(), SHAPED)
        with pytest.raises(AttributeError, match="ShapedUNet2DModel"):
            _ = pipelines.ShapedUNet2DModel
        with pytest.raises(ValueError, match="needs a scheduler with coloured noise, got DDPMScheduler"):
            pipelines.ShapedDDPMPipeline(unet(), diffusers.DDPMScheduler())


class TestSaving:
    @pytest.mark.parametrize("name", ["DDPM", "DDIM"])
    def test_it_is_loaded_with_its_colour(self, tmp_path, name):
        pipeline = getattr(diffusers, f"{name}Pipeline")(unet(), getattr(diffusers, f"{name}Scheduler")())
        shaped = quiet(shape_pipeline(pipeline, SHAPED))
        shaped.save_pretrained(tmp_path)
        loaded = quiet(copy_weights(getattr(pipelines, f"Shaped{name}Pipeline").from_pretrained(tmp_path)))
        assert type(loaded) is type(shaped)
        images = [tensors(p, batch_size=2, generator=seeded(), num_inference_steps=3) for p in (shaped, loaded)]
        assert torch.equal(*images)

    def test_a_stock_pipeline_with_a_shaped_scheduler_is_loaded_by_diffusers(self, tmp_path):
        diffusers.DDPMPipeline(unet(), shape_scheduler(diffusers.DDPMScheduler(), SHAPED)).save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["scheduler"] == ["multisagd.integrations.schedulers", "ShapedDDPMScheduler"]
        loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
        assert type(loaded) is diffusers.DDPMPipeline
        assert loaded.scheduler.shaped_noise.spectrum == SHAPED.spectrum

    @pytest.mark.slow
    def test_it_draws_the_same_bits_in_a_fresh_process(self, tmp_path):
        shaped = quiet(shape_pipeline(ddpm(), SHAPED))
        shaped.save_pretrained(tmp_path)
        code = (
            "import json, torch\nfrom multisagd.integrations.pipelines import ShapedDDPMPipeline\n"
            "torch.set_num_threads(1)\n"
            f"pipeline = ShapedDDPMPipeline.from_pretrained({str(tmp_path)!r})\n"
            "def draw():\n"
            "    generator = torch.Generator().manual_seed(0)\n"
            "    return pipeline(generator=generator, num_inference_steps=3, output_type='pt').images.tolist()\n"
            "as_loaded = draw()\n"
            "for parameter in pipeline.unet.parameters():\n"
            "    parameter.data = parameter.data.clone()\n"
            "print(json.dumps([as_loaded, draw()]))"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        as_loaded, copied = (torch.tensor(images) for images in json.loads(said.splitlines()[-1]))
        loaded = quiet(pipelines.ShapedDDPMPipeline.from_pretrained(tmp_path))
        here = [tensors(p, generator=seeded(), num_inference_steps=3) for p in (loaded, shaped)]
        assert torch.equal(as_loaded, here[0])
        assert torch.equal(copied, here[1])
        assert torch.allclose(as_loaded, copied, atol=1e-5)

    def test_it_never_becomes_white_unnoticed(self, tmp_path):
        shape_pipeline(ddpm(), SHAPED).save_pretrained(tmp_path)
        with pytest.raises(AttributeError, match="ShapedDDPMPipeline"):
            diffusers.DiffusionPipeline.from_pretrained(tmp_path)
        stock = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
        with pytest.warns(UserWarning, match="make the pipeline by shape_pipeline"):
            stock(num_inference_steps=2, output_type="pt", batch_size=4, generator=seeded())
        again = shape_pipeline(stock, stock.scheduler.shaped_noise)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again(num_inference_steps=2, output_type="pt", batch_size=4, generator=seeded())
