"""What the project promises about the core as a whole: the first program, and its borders."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def test_first_program_runs_as_written() -> None:
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


def test_core_imports_nothing_above_it_and_no_media_readers() -> None:
    foreign = ("modalities", "recipes", "configs", "hydra", "av", "librosa", "PIL", "torchvision", "torchaudio",
               "sklearn", "matplotlib", "diffusers", "rich")  # fmt: skip
    code = (
        f"import sys, multisagd, multisagd.integrations; print(*[name for name in {foreign!r} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def sources() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def test_core_draws_noise_in_the_covariance_only() -> None:
    """Weights are initialised through nn.init, strata shuffled from a seed; nothing else may draw noise.

    `ShapedNoise` draws once too: the white noise of other libraries' generators, which it colours. What metrics draw
    is not the noise of a process: projections, bootstrap samples, and the levels within a quantisation step.
    """
    noise = ("covariance.py", "integrations/shaped_noise.py")
    metrics = ("likelihood.py", "metrics/bootstrap.py", "metrics/sliced.py")
    draws = re.compile(r"\b(randn?(_like)?|normal_?|uniform_|randint|standard_normal)$")
    drawing = {}
    for path in sources():
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        drawn = [name for name in calls if draws.search(name) and not name.startswith("nn.init.")]
        drawing |= {str(path.relative_to(CORE)): len(drawn)} if drawn else {}
    assert drawing == dict.fromkeys((*noise, *metrics), 1)


def test_public_names_exist_and_are_documented() -> None:
    for name in ms.__all__:
        thing = getattr(ms, name)
        assert thing.__doc__, name
        if isinstance(thing, type):
            for method, function in vars(thing).items():
                if callable(function) and not method.startswith("_"):
                    assert function.__doc__, f"{name}.{method}"


SHAPE = re.compile(
    r"\((batch|\.\.\.|\*|channels|items|count|points|steps|levels|features|tokens|length|width|[a-z_]+,)[^()]*\)"
    r"|\bshape|for shapes and units|\b[Ss]calars?\b|one-dimensional|[Bb]roadcast|half spectrum|elementwise"
)
UNIT = re.compile(
    r"\b(units?|cycles|hertz|Hz|dB|nats?|bits?|seconds?|octaves?|log-SNRs?|variances?|power|probabilit(y|ies)|amplitudes?"
    r"|ind(ex|ices)|booleans?|integers?|dimensionless|deviations?|variances?|[Cc]ounts?|times?|timesteps?|fractions?|factors?|features"
    r"|weights|seeds?)\b|\[0, 1\]|\b0 or 1\b|\b1 .{1,60} 0\b"
)


def tensor_functions() -> dict[str, list[str]]:
    """Return the docstrings of every public function of the core with tensors in its signature, by qualified name.

    A method has those of the methods that it overrides too: a sampler's `step` is described once, in `Sampler`.
    """
    found = {}
    for path in sources():
        parts = path.relative_to(CORE).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = importlib.import_module(".".join(("multisagd", *(part for part in parts if part != "__init__"))))
        own = {
            name: thing for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
        }
        for name, thing in own.items():
            if name.startswith("_"):
                continue
            if inspect.isfunction(thing) and takes_tensors(thing):
                found[f"{module.__name__}.{name}"] = [inspect.cleandoc(thing.__doc__ or "")]
            elif inspect.isclass(thing):
                for method, function in vars(thing).items():
                    function = getattr(function, "__func__", getattr(function, "fget", function))
                    if inspect.isfunction(function) and not method.startswith("_") and takes_tensors(function):
                        bases = [vars(base)[method] for base in thing.__mro__ if method in vars(base)]
                        found[f"{module.__name__}.{name}.{method}"] = [inspect.cleandoc(b.__doc__ or "") for b in bases]
    return found


def takes_tensors(function: Callable[..., object]) -> bool:
    """Whether the function takes or returns a tensor, or a container of tensors."""
    return any(re.search(r"\bTensor\b", str(note)) for note in function.__annotations__.values())


def test_tensor_functions_state_shapes_and_units() -> None:
    functions = tensor_functions()
    assert len(functions) > 250
    without_shape = [name for name, docs in functions.items() if not SHAPE.search("\n".join(docs))]
    without_unit = [name for name, docs in functions.items() if not UNIT.search("\n".join(docs))]
    assert (without_shape, without_unit) == ([], [])
