"""The core imports nothing above it, draws noise in one place, and states shapes and units."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import multisagd as ms

CORE = Path(ms.__file__).parent


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


SHAPE = re.compile(
    r"\((batch|\.\.\.|\*|channels|items|count|points|steps|levels|features|tokens|length|width|[a-z_]+,)[^()]*\)"
    r"|\bshape|for shapes and units|\b[Ss]calars?\b|one-dimensional|[Bb]roadcast|half spectrum|elementwise"
)
UNIT = re.compile(
    r"\b(units?|cycles|hertz|Hz|dB|nats?|bits?|seconds?|octaves?|log-SNRs?|variances?|power|probabilit(y|ies)"
    r"|amplitudes?|ind(ex|ices)|booleans?|integers?|dimensionless|deviations?|[Cc]ounts?|[Nn]umbers? of|times?"
    r"|timesteps?|fractions?|factors?|features|weights|seeds?|unchanged|[Ss]plit)\b|\[0, 1\]|\b0 or 1\b|\b1 .{1,60} 0\b"
)


def test_tensor_functions_state_shapes_and_units() -> None:
    """Public functions with tensors in their signatures; methods of one name are described once, in their base."""
    docs: dict[str, str] = {}
    for path in sources():
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for owner in (tree, *classes):
            for node in (node for node in owner.body if isinstance(node, ast.FunctionDef)):
                signature = f"{ast.unparse(node.args)} {ast.unparse(node.returns) if node.returns else ''}"
                if not node.name.startswith("_") and re.search(r"\bTensor\b", signature):
                    name = f"{path.relative_to(CORE)}: {node.name}" if owner is tree else node.name
                    docs[name] = docs.get(name, "") + (ast.get_docstring(node) or "")
    assert len(docs) > 150
    for pattern in (SHAPE, UNIT):
        assert [name for name, text in docs.items() if not pattern.search(text)] == []
