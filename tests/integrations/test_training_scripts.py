"""An ordinary training script of diffusers, in white noise and in colour: two lines differ, and both run."""

import ast
import difflib
import runpy
from pathlib import Path

import diffusers
import torch

import multisagd as ms
from multisagd.integrations import ShapedNoise, pipelines

EXAMPLES = Path(__file__).parents[2] / "examples"
WHITE, SHAPED = "diffusers_training_white.py", "diffusers_training.py"
SPECTRUM = ms.PowerLaw(exponent=-0.3)


def code(script: str) -> list[str]:
    """Return the lines of a script without its docstring, comments and empty lines."""
    tree = ast.parse((EXAMPLES / script).read_text(encoding="utf-8"))
    tree.body = tree.body[1:]
    return ast.unparse(tree).splitlines()


def test_training_scripts_differ_in_two_lines_and_what_these_need():
    changes = [line for line in difflib.ndiff(code(WHITE), code(SHAPED)) if line[0] in "+-" and line[2:].strip()]
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
    added, drawn = [], []
    add_noise, forward = diffusers.DDPMScheduler.add_noise, diffusers.UNet2DModel.forward

    def recorded_noise(self, x, noise, t):
        added.append(noise)
        return add_noise(self, x, noise, t)

    def recorded_forward(self, sample, *args, **kwargs):
        if not self.training:
            drawn.append(sample)
        return forward(self, sample, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(diffusers.DDPMScheduler, "add_noise", recorded_noise)
        patch.setattr(diffusers.UNet2DModel, "forward", recorded_forward)
        patch.setattr("sys.argv", [script, "--small"])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return torch.cat(added), drawn[0]


def test_training_scripts_train_and_sample_in_their_colour(tmp_path, monkeypatch, capsys):
    covariance = ms.SpectralCovariance(SPECTRUM, ms.Grid.of(height=8, width=8))
    monkeypatch.chdir(tmp_path)
    for script, spectrum, power in ((WHITE, ms.Flat(), torch.ones(8, 5)), (SHAPED, SPECTRUM, covariance.power())):
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
