"""An ordinary training script of diffusers, in white noise and in colour: two lines differ, and both run."""

import ast
import difflib
import runpy
from pathlib import Path

import diffusers
import pytest
import torch

import multisagd as ms
from multisagd.integrations import pipelines

EXAMPLES = Path(__file__).parents[2] / "examples"
WHITE, SHAPED = "diffusers_training_white.py", "diffusers_training.py"


def code(script: str) -> list[str]:
    """Return the lines of a script without its docstring, comments and empty lines."""
    tree = ast.parse((EXAMPLES / script).read_text(encoding="utf-8"))
    tree.body = tree.body[1:]
    return ast.unparse(tree).splitlines()


def test_the_scripts_differ_in_two_lines_and_what_these_need():
    changes = [line for line in difflib.ndiff(code(WHITE), code(SHAPED)) if line[0] in "+-" and line[2:].strip()]
    removed = [line[2:].strip() for line in changes if line[0] == "-"]
    added = [line[2:].strip() for line in changes if line[0] == "+"]
    definition = [
        "import multisagd as ms",
        "from multisagd.integrations import ShapedNoise, shape_pipeline",
        "shaped = ShapedNoise(ms.PowerLaw(exponent=-0.3))",
    ]
    assert added[:3] == definition
    assert [line.split(" = ")[0] for line in removed] == ["noise", "pipeline"]
    assert [line.split(" = ")[0] for line in added[3:]] == ["noise", "pipeline"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Run a script; return the noise that its training added, and what the model was given while sampling."""

    def run(script: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        added, drawn = [], []
        add_noise, forward = diffusers.DDPMScheduler.add_noise, diffusers.UNet2DModel.forward

        def recorded(self, sample, *args, **kwargs):
            if not self.training:
                drawn.append(sample)
            return forward(self, sample, *args, **kwargs)

        monkeypatch.setattr(
            diffusers.DDPMScheduler, "add_noise", lambda self, x, n, t: added.append(n) or add_noise(self, x, n, t)
        )
        monkeypatch.setattr(diffusers.UNet2DModel, "forward", recorded)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [script, "--small"])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return added, drawn

    return run


def power_law_power(noise: torch.Tensor) -> torch.Tensor:
    """Power of noise over that of the power law, whitened: 1 everywhere if it is of that law."""
    covariance = ms.SpectralCovariance(ms.PowerLaw(exponent=-0.3), ms.Grid.of(height=8, width=8))
    return torch.fft.rfft2(noise.double(), norm="ortho").abs().square().mean((0, 1)) / covariance.power()


def test_in_colour_it_trains_and_samples_in_colour(trained, tmp_path, capsys):
    added, drawn = trained(SHAPED)
    assert "epoch 1 of 1: loss" in capsys.readouterr().out
    noise = torch.cat(added)
    assert len(noise) == 256
    # Zero frequency, of one real coefficient in each of 256 pictures, has a standard error of 9 %.
    assert (power_law_power(noise) - 1).abs().max() < 0.4
    expected = ms.integrations.ShapedNoise(ms.PowerLaw(exponent=-0.3)).noise(
        (4, 1, 8, 8), torch.Generator().manual_seed(0)
    )
    assert torch.equal(drawn[0], expected)
    loaded = pipelines.ShapedDDPMPipeline.from_pretrained(tmp_path / "diffusers_model")
    assert loaded.scheduler.shaped_noise.spectrum == ms.PowerLaw(exponent=-0.3)
    assert (tmp_path / "diffusers_samples.png").stat().st_size > 100


def test_in_white_it_trains_and_samples_in_white(trained, capsys):
    added, drawn = trained(WHITE)
    assert "epoch 1 of 1: loss" in capsys.readouterr().out
    power = torch.fft.rfft2(torch.cat(added).double(), norm="ortho").abs().square().mean((0, 1))
    assert (power - 1).abs().max() < 0.4
    assert torch.equal(drawn[0], torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0)))
