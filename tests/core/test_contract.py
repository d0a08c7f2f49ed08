"""What the project promises about the core as a whole: the first program, and its borders."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import multisagd as ms

CORE = Path(ms.__file__).parent

FIRST_PROGRAM = """
import torch, multisagd as ms
grid = ms.Grid.of(height=32, width=32)
covariance = ms.SpectralCovariance(ms.PowerLaw(exponent=-0.5), grid)
noise = covariance.sample(channels=3, seeds=[0, 1, 2, 3])               # (4, 3, 32, 32), unit mean power
process = ms.Process(ms.CosineSchedule(), covariance)
x_t = process.add_noise(torch.randn(4, 3, 32, 32), torch.rand(4), noise)
network = ms.networks.UNet(channels=3, dimensions=2, width=32)
denoiser = ms.Denoiser(network, process, prediction="v")
x0, t = torch.randn(4, 3, 32, 32), torch.rand(4)
denoiser.loss(x0, t, seeds=[0, 1, 2, 3]).mean().backward()
images = ms.sample(denoiser, ms.DDIM(), shape=(4, 3, 32, 32), steps=10, seeds=range(4))
"""


def test_the_first_program_runs_as_written():
    names: dict[str, object] = {}
    exec(FIRST_PROGRAM, names)
    for name in ("noise", "x_t", "images"):
        tensor = names[name]
        assert isinstance(tensor, torch.Tensor)
        assert tensor.shape == (4, 3, 32, 32)
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    network = names["network"]
    assert isinstance(network, torch.nn.Module)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_core_imports_nothing_above_it_and_no_media_readers():
    foreign = ("modalities", "recipes", "configs", "hydra", "av", "librosa", "PIL", "torchvision", "torchaudio",
               "sklearn", "matplotlib", "diffusers", "rich")  # fmt: skip
    code = (
        f"import sys, multisagd, multisagd.integrations; print(*[name for name in {foreign!r} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def sources() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CORE)))
class TestFiles:
    def test_one_idea_each(self, path):
        """One idea may take 400 lines; a lower bound splits what is read together into files that call each other."""
        assert len(path.read_text().splitlines()) <= 400

    def test_imports_no_other_part_of_the_project(self, path):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("modalities", "recipes", "configs")]

    def test_noise_comes_from_the_covariance_alone(self, path):
        """Weights are initialised through nn.init, strata shuffled from a seed; nothing else may draw noise.

        `ShapedNoise` draws once too: the white noise of other libraries' generators, which it colours. What metrics
        draw is no noise of a process: lines to project on, resamples, and the levels within a quantisation step.
        """
        draws = re.compile(r"\b(randn?(_like)?|normal_?|uniform_|randint|standard_normal)$")
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        drawn = [name for name in calls if draws.search(name) and not name.startswith("nn.init.")]
        noise = ("covariance.py", "integrations/shaped_noise.py")
        metrics = ("likelihood.py", "metrics/bootstrap.py", "metrics/sliced.py")
        assert len(drawn) == (str(path.relative_to(CORE)) in (*noise, *metrics)), drawn


def test_all_that_is_public_is_documented_and_exists():
    for name in ms.__all__:
        thing = getattr(ms, name)
        assert thing.__doc__, name
        if isinstance(thing, type):
            for method, function in vars(thing).items():
                if callable(function) and not method.startswith("_"):
                    assert function.__doc__, f"{name}.{method}"
