"""Libraries that cannot be imported: each is named with a command, whatever it raises, and no file is blamed."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fsspec.registry import _registry

from modalities.audio import Audio
from modalities.base import Modality
from modalities.byte_ranges import find
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.representation import LogMel
from modalities.text import TextEncoder
from modalities.video import Video
from multisagd import SpectralPenalty, remedies
from multisagd.grid import Grid
from multisagd.integrations.networks import DiffusersNetwork
from multisagd.libraries import BrokenLibraryError, check, failed_import
from multisagd.metrics.components import components
from multisagd.remedies import DISTRIBUTIONS, remedy
from recipes.clusters.slurm import _submitit
from recipes.diagnosis import environment
from recipes.runs.settings import TrackingSettings
from recipes.sharing.hub import local_folder
from recipes.training.tracking import Tracker
from tests.helpers.tiny import TINY

ROOT = Path(__file__).parents[2]
SYMBOL = "raise OSError('libpart.so: undefined symbol: wonderful')"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a library that raises when it is imported in front of the one that is installed."""

    def put(library: str, source: str = SYMBOL) -> Path:
        for name in [each for each in sys.modules if each.partition(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        file = tmp_path / "broken" / library / "__init__.py"
        file.parent.mkdir(parents=True)
        file.write_text(source + "\n")
        monkeypatch.syspath_prepend(tmp_path / "broken")
        return file

    return put


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (SYMBOL, "OSError: libpart.so: undefined symbol: wonderful"),
        ("raise ImportError('numpy.core.multiarray failed to import')", "ImportError: numpy.core.multiarray failed"),
        ("import torch\ntorch.no_such_part", "AttributeError: module 'torch' has no attribute 'no_such_part'"),
        ("raise RuntimeError('operator soxr::nms does not exist')", "RuntimeError: operator soxr::nms does not exist"),
        ("import part_that_is_missing", "ModuleNotFoundError: No module named 'part_that_is_missing'"),
        ("try:\n 1 / 0\nexcept Exception as e:\n raise OSError('no') from e", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_whatever_a_library_raises_it_is_named_with_the_reason_and_a_command(
    broken: Callable[..., Path], source: str, reason: str
) -> None:
    file = broken("soxr", source)
    with pytest.raises(BrokenLibraryError) as told:
        check("soxr", "resampling")
    message = str(told.value)
    assert message.startswith("resampling: soxr ")
    assert f"cannot be imported ({reason}" in message
    assert "SyntaxError" in reason or f", in {file})" in message
    assert "To fix it: " in message
    assert "pip install" in message
    assert ("--force-reinstall --no-deps" in message) is ("part_that_is_missing" not in source)
    assert told.value.name == "soxr"


def test_a_library_that_is_not_there_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(
        BrokenLibraryError, match=r"^resampling: soxr is not installed\. To install it: .*pip install .*soxr"
    ):
        check("soxr", "resampling")


NEEDS = {
    "PIL": lambda folder: Image(8),
    "torchvision": lambda folder: Image(8),
    "av": lambda folder: Video(2, size=8),
    "soundfile": lambda folder: Audio(),
    "torchaudio": lambda folder: LogMel(),
    "sklearn": lambda folder: (components(torch.zeros(2, 1, 8, 8)), Digits(Image(8))),
    "diffusers": lambda folder: DiffusersNetwork(1, 2),
    "transformers": lambda folder: TextEncoder("any"),
    "ptwt": lambda folder: SpectralPenalty("wavelet"),
    "huggingface_hub": lambda folder: local_folder("someone/model", ["config.json"]),
    "submitit": lambda folder: _submitit(),
    "tensorboard": lambda folder: Tracker(folder, TrackingSettings(tensorboard=True), {}),
    "wandb": lambda folder: Tracker(folder, TrackingSettings(wandb=True), {}),
    "s3fs": lambda folder: find("s3://bucket/0.tar", ".tar"),
    "aiohttp": lambda folder: find("http://127.0.0.1:9/0.tar", ".tar"),
}


@pytest.mark.parametrize("library", NEEDS)
def test_what_needs_a_library_names_it_at_once(
    broken: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    broken(library)
    for module in ("torch.utils.tensorboard", "fsspec.implementations.http", "submitit.slurm"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for protocol in ("s3", "http"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(BrokenLibraryError) as told:
        NEEDS[library](tmp_path)
    assert f"{DISTRIBUTIONS[library]} " in str(told.value)
    assert "(OSError: libpart.so: undefined symbol: wonderful" in str(told.value)
    assert "pip install" in str(told.value)


class Stumbling(Modality):
    """Reads files by a library that a test breaks, as an adapter of a user's own might."""

    channels, suffixes = 1, (".txt",)

    def __init__(self, module: str) -> None:
        self.module = module

    def grid(self) -> Grid:
        return Grid.of(time=1)

    def load(self, path: Path, seed: int | None = None) -> torch.Tensor:
        __import__(self.module)
        return torch.zeros(1, 1)

    encode = decode = lambda self, x: x

    def save(self, media: torch.Tensor, path: Path) -> None: ...

    def save_grid(self, media: object, path: Path) -> None: ...


@pytest.mark.parametrize("module", ["soxr", "library_of_nobody"])
@pytest.mark.parametrize("threads", [1, 4])
def test_no_file_is_blamed_for_a_library(
    broken: Callable[..., Path], tmp_path: Path, module: str, threads: int
) -> None:
    broken("soxr")
    for number in range(8):
        (tmp_path / f"{number}.txt").touch()
    data = Folder(Stumbling(module), tmp_path, labels="none", max_unreadable=1.0, threads=threads)
    with pytest.raises(BrokenLibraryError, match=module):
        data.batch(range(8))
    assert not data.unreadable


def test_errors_of_files_and_of_modules_of_ones_own_are_none_of_a_library(
    broken: Callable[..., Path], tmp_path: Path
) -> None:
    broken("module_of_ones_own", "1 / 0")
    for action in (lambda: __import__("module_of_ones_own"), lambda: (tmp_path / "missing").read_bytes()):
        with pytest.raises((OSError, ArithmeticError)) as error:
            action()
        assert failed_import(error.value) is None


@pytest.mark.parametrize(
    ("library", "versions", "broken", "command"),
    [
        ("torchaudio", {"torch": "2.11.0", "torchaudio": "2.11.1"}, True, "pip install 'torchaudio==2.11.0'"),
        (
            "torchaudio",
            {"torch": "2.11.0", "torchaudio": "2.11.0"},
            True,
            "pip install --force-reinstall --no-deps 'torchaudio==2.11.0'",
        ),
        ("torchaudio", {"torch": "2.11.0"}, False, "pip install 'torchaudio==2.11.0'"),
        (
            "torchaudio",
            {"torch": "2.12.0+cpu"},
            False,
            "pip install --index-url INDEX/cpu 'torchaudio==2.11.0'",
        ),
        ("torchvision", {"torch": "2.11.0", "torchvision": "0.29.1"}, True, "pip install 'torchvision==0.26.*'"),
        (
            "torchvision",
            {"torch": "2.13.0", "torchvision": "0.28.1"},
            True,
            "pip install --force-reinstall --no-deps 'torchvision==0.28.*'",
        ),
        (
            "torchvision",
            {"torch": "2.14.1+cu130", "torchvision": "0.26.0"},
            True,
            "pip install --force-reinstall --no-deps -c PINS --index-url INDEX/cu130 torchvision",
        ),
        ("sklearn", {"torch": "2.11.0"}, False, "pip install 'scikit-learn>=1.5'"),
        ("sklearn", {"torch": "2.14.1"}, False, "pip install -c PINS scikit-learn"),
        ("sklearn", {}, False, "pip install 'scikit-learn>=1.5'"),
        ("wandb", {"torch": "2.11.0"}, True, "pip install --force-reinstall --no-deps 'wandb>=0.18'"),
        ("part_of_one", {"part-of-one": "3"}, True, "pip install --force-reinstall --no-deps 'part-of-one==3'"),
    ],
)
def test_the_command_installs_what_works_with_the_installed_pytorch(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    library: str,
    versions: dict[str, str],
    broken: bool,
    command: str,
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# made\ntorch==2.14.1\ntorchvision==0.29.1 ; python_version > '3'\nscikit-learn==1.7\n")
    asked = ["torch>=2.11,<2.15", "scikit-learn>=1.5", "wandb>=0.18; extra == 'tracking'"]
    monkeypatch.setattr(remedies, "CONSTRAINTS", pins)
    monkeypatch.setattr(remedies, "_pip", lambda: ["pip"])
    monkeypatch.setattr(remedies, "version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(remedies, "installed", lambda package: remedies.DISTRIBUTIONS.get(package, "part-of-one"))
    monkeypatch.setattr(remedies.metadata, "requires", lambda name: asked)
    assert remedy(library, (library,) if broken else ()) == command.replace("PINS", str(pins)).replace(
        "INDEX", "https://download.pytorch.org/whl"
    )


def test_the_doctor_reports_a_pair_that_does_not_work(broken: Callable[..., Path]) -> None:
    assert environment.library("torchvision").state == environment.library("torchaudio.functional").state == "ok"
    broken("torchaudio")
    found = environment.library("torchaudio.functional")
    assert found.state == "broken"
    assert f"with torch {torch.__version__}" in found.message
    assert "undefined symbol: wonderful" in found.message
    assert "pip install" in found.remedy
    assert "torchaudio" in found.remedy
    assert "pip install" not in found.message


@pytest.mark.parametrize("module", environment.LIBRARIES)
def test_the_doctor_imports_every_library(broken: Callable[..., Path], module: str) -> None:
    broken(module.partition(".")[0])
    found = environment.library(module)
    assert found.state == "broken"
    assert "pip install" in found.remedy


def test_every_library_that_is_asked_for_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    asked = project["dependencies"] + [line for name, lines in extras if name not in ("docs", "dev") for line in lines]
    names = {line.split(";")[0].split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip() for line in asked}
    assert names <= set(DISTRIBUTIONS.values())


ONE_KIND = [
    "av",
    "diffusers",
    "gradio",
    "librosa",
    "ptwt",
    "s3fs",
    "sklearn",
    "soundfile",
    "soxr",
    "submitit",
    "tensorboard",
    "torch_fidelity",
    "torchaudio",
    "transformers",
    "wandb",
    "xformers",
]
"""Libraries that a model of images from files can do without."""

WITHOUT = """
import importlib
from recipes.cli import main as cli
from recipes.base.commands import COMMANDS
for command in COMMANDS:
    if command != "explore":  # shows sounds and clips as well
        importlib.import_module(f"recipes.{command}")
for words in (["--help"], ["train", "--help"], TRAIN, ["sample", "run_dir=run", "count=2", "steps=2", "engine=cpu"],
              ["evaluate", "run_dir=run", "samples=8", "metrics=[spectrum,sliced]", "steps=2", "engine=cpu"],
              ["report", "run_dir=run"], ["export", "run_dir=run", "out=model"]):
    assert cli.main(words) == 0, words
assert cli.main(["evaluate", "run_dir=run", "samples=8", "metrics=[components]", "steps=2", "engine=cpu"]) == 2
"""


def test_imports_that_take_seconds_wait_until_they_are_needed() -> None:
    """With `import torch` they would take twice as long: the compiler, sharded tensors, statistics, other networks."""
    slow = ["torch._dynamo", "torch.distributed.tensor", "scipy.stats", "scipy.optimize", "diffusers", "transformers",
            "matplotlib", "sklearn", "pandas"]  # fmt: skip
    code = f"import sys, recipes.sample, recipes.train; print(*[name for name in {slow!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_images_need_no_library_of_other_kinds(broken: Callable[..., Path], tmp_path: Path) -> None:
    """All in one process, for each takes seconds to begin."""
    for library in ONE_KIND:
        path = broken(library).parents[1]
    (tmp_path / "images").mkdir()
    for number in range(24):
        Image(8).save(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / "images" / f"{number}.png")
    train = [
        "data=folder",
        "data.root=images",
        "data.labels=none",
        "training.samples=16",
        "training.batch=8",
        "run_dir=run",
        "training.statistics=16",
        "validation.holdout=4",
        "validation.items=4",
        "sampling.count=2",
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"TRAIN = {['train', *TINY, *train]!r}\n{WITHOUT}"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "components cannot be computed" in done.stderr
    assert "scikit-learn" in done.stderr
