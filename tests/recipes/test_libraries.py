"""A library that cannot be imported is named with its reason and an install command, and no file is blamed for it."""

import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fsspec.registry import _registry
from packaging.requirements import Requirement
from PIL import Image as PILImage

from modalities.audio import Audio
from modalities.byte_ranges import find
from modalities.files import Folder
from modalities.hub_data import HubData
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.parquet import ParquetFiles
from modalities.representation import ConstantQ, LogMel
from modalities.text import TextEncoder
from modalities.video import Video
from multisagd import SpectralPenalty, remedies
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
    """Return a function that puts a library that fails on import in front of the installed one."""

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
def test_check_names_a_broken_library_with_its_reason_and_a_command(
    broken: Callable[..., Path], source: str, reason: str
) -> None:
    file = broken("soxr", source)
    with pytest.raises(BrokenLibraryError) as caught:
        check("soxr", "resampling")
    message = str(caught.value)
    assert message.startswith("resampling: soxr ")
    assert f"cannot be imported ({reason}" in message
    assert "SyntaxError" in reason or f", in {file})" in message
    assert "To fix it: " in message
    assert "pip install" in message
    assert ("--force-reinstall --no-deps" in message) is ("part_that_is_missing" not in source)
    assert caught.value.name == "soxr"


def test_check_names_a_missing_library_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    message = r"^resampling: soxr is not installed\. To install it: .*pip install .*soxr"
    with pytest.raises(BrokenLibraryError, match=message):
        check("soxr", "resampling")


NEEDS = {
    "PIL": lambda folder: Image(8),
    "torchvision": lambda folder: Image(8),
    "av": lambda folder: Video(2, size=8),
    "soundfile": lambda folder: Audio(),
    "librosa": lambda folder: ConstantQ(),
    "torchaudio": lambda folder: LogMel(),
    "sklearn": lambda folder: (components(torch.zeros(2, 1, 8, 8)), Digits(Image(8))),
    "diffusers": lambda folder: DiffusersNetwork(1, 2),
    "transformers": lambda folder: TextEncoder("any"),
    "pyarrow": lambda folder: ParquetFiles(Image(8), str(folder / "0.parquet")),
    "datasets": lambda folder: HubData(Image(8), "someone/photos"),
    "ptwt": lambda folder: SpectralPenalty("wavelet"),
    "huggingface_hub": lambda folder: local_folder("someone/model", ["config.json"]),
    "submitit": lambda folder: _submitit(),
    "tensorboard": lambda folder: Tracker(folder, TrackingSettings(tensorboard=True), {}),
    "wandb": lambda folder: Tracker(folder, TrackingSettings(wandb=True), {}),
    "s3fs": lambda folder: find("s3://bucket/0.tar", ".tar"),
    "aiohttp": lambda folder: find("http://127.0.0.1:9/0.tar", ".tar"),
}


@pytest.mark.parametrize("library", NEEDS)
def test_every_user_of_a_library_names_it_when_it_is_broken(
    broken: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    broken(library)
    for module in ("torch.utils.tensorboard", "fsspec.implementations.http", "submitit.slurm"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for protocol in ("s3", "http"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(BrokenLibraryError) as caught:
        NEEDS[library](tmp_path)
    for part in (f"{DISTRIBUTIONS[library]} ", "(OSError: libpart.so: undefined symbol: wonderful", "pip install"):
        assert part in str(caught.value)


@pytest.mark.parametrize("module", ["soxr", "library_of_nobody"])
def test_folder_blames_no_file_for_a_library(
    broken: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    broken("soxr")
    for number in range(8):
        PILImage.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    lock = threading.Lock()  # Python itself may return a module to one thread while its import fails in another

    def load(*_: object) -> object:  # as an adapter of a user's own might
        with lock:
            return __import__(module)

    monkeypatch.setattr(Image, "load", load)
    for threads in (1, 4):
        data = Folder(Image(8), tmp_path, labels="none", max_unreadable=1.0, threads=threads)
        with pytest.raises(BrokenLibraryError, match=module):
            data.batch(range(8))
        assert not data.unreadable, threads


def test_failed_import_ignores_errors_of_files_and_of_own_modules(broken: Callable[..., Path], tmp_path: Path) -> None:
    broken("own_module", "1 / 0")
    for action in (lambda: __import__("own_module"), lambda: (tmp_path / "missing").read_bytes()):
        with pytest.raises((OSError, ArithmeticError)) as error:
            action()
        assert failed_import(error.value) is None


REINSTALL = "pip install --force-reinstall --no-deps"


@pytest.mark.parametrize(
    ("library", "versions", "broken", "command"),
    [
        ("torchaudio", "torch==2.11.0 torchaudio==2.11.1", True, "pip install 'torchaudio==2.11.0'"),
        ("torchaudio", "torch==2.11.0 torchaudio==2.11.0", True, f"{REINSTALL} 'torchaudio==2.11.0'"),
        ("torchaudio", "torch==2.11.0", False, "pip install 'torchaudio==2.11.0'"),
        ("torchaudio", "torch==2.12.0+cpu", False, "pip install --index-url INDEX/cpu 'torchaudio==2.11.0'"),
        ("torchvision", "torch==2.11.0 torchvision==0.29.1", True, "pip install 'torchvision==0.26.*'"),
        ("torchvision", "torch==2.13.0 torchvision==0.28.1", True, f"{REINSTALL} 'torchvision==0.28.*'"),
        (
            "torchvision",
            "torch==2.14.1+cu130 torchvision==0.26.0",
            True,
            f"{REINSTALL} -c PINS --index-url INDEX/cu130 torchvision",
        ),
        ("sklearn", "torch==2.11.0", False, "pip install 'scikit-learn>=1.5'"),
        ("sklearn", "torch==2.14.1", False, "pip install -c PINS scikit-learn"),
        ("sklearn", "", False, "pip install 'scikit-learn>=1.5'"),
        ("wandb", "torch==2.11.0", True, f"{REINSTALL} 'wandb>=0.18'"),
        ("part_of_one", "part-of-one==3", True, f"{REINSTALL} 'part-of-one==3'"),
    ],
)
def test_remedy_installs_what_works_with_the_installed_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, versions: str, broken: bool, command: str
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# made\ntorch==2.14.1\ntorchvision==0.29.1 ; python_version > '3'\nscikit-learn==1.7\n")
    requirements = ["torch>=2.11,<2.15", "scikit-learn>=1.5", "wandb>=0.18; extra == 'tracking'"]
    installed = dict(each.split("==") for each in versions.split())
    monkeypatch.setattr(remedies, "CONSTRAINTS", pins)
    monkeypatch.setattr(remedies, "_pip", lambda: ["pip"])
    monkeypatch.setattr(remedies, "version", lambda name: installed.get(name, ""))
    monkeypatch.setattr(remedies, "installed", lambda package: remedies.DISTRIBUTIONS.get(package, "part-of-one"))
    monkeypatch.setattr(remedies.metadata, "requires", lambda name: requirements)
    expected = command.replace("PINS", str(pins)).replace("INDEX", "https://download.pytorch.org/whl")
    assert remedy(library, (library,) if broken else ()) == expected


def test_environment_reports_broken_libraries_with_a_remedy(
    broken: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.library("torchvision").state == environment.library("torchaudio.functional").state == "ok"
    for module in environment.LIBRARIES:
        file = broken(module.partition(".")[0])
        finding = environment.library(module)
        assert finding.state == "broken", module
        assert "pip install" in finding.remedy, module
        if module == "torchaudio.functional":
            assert f"with torch {torch.__version__}" in finding.message
            assert "undefined symbol: wonderful" in finding.message
            assert "pip install" not in finding.message
            assert "torchaudio" in finding.remedy
        monkeypatch.undo()
        shutil.rmtree(file.parent)


def test_distributions_name_every_required_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in ("docs", "dev")]
    names = {Requirement(line).name for line in sum(extras, project["dependencies"])}
    assert names <= set(DISTRIBUTIONS.values())


OTHER_MEDIA = (
    "av datasets diffusers gradio librosa ptwt pyarrow s3fs sklearn soundfile soxr submitit tensorboard torch_fidelity "
    "torchaudio transformers wandb xformers"
)
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


def test_recipes_defer_imports_that_take_seconds() -> None:
    """With `import torch` they would take twice as long: the compiler, sharded tensors, statistics, other networks."""
    slow = "torch._dynamo torch.distributed.tensor scipy.stats scipy.optimize diffusers transformers matplotlib sklearn"
    # A job of Slurm must handle signals before anything that takes long.
    for modules, forbidden in (("recipes.sample, recipes.train", f"{slow} pandas"),
                               ("recipes.clusters.slurm", "torch numpy hydra rich")):  # fmt: skip
        code = f"import sys, {modules}; print(*{{*'{forbidden}'.split()}} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [], modules


def test_commands_on_images_need_no_library_of_other_media(broken: Callable[..., Path], tmp_path: Path) -> None:
    """All in one process, because each takes seconds to begin."""
    for library in OTHER_MEDIA.split():
        path = broken(library).parents[1]
    (tmp_path / "images").mkdir()
    for number in range(24):
        Image(8).save(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / "images" / f"{number}.png")
    words = ["train", *TINY, "data=folder", "data.root=images", "data.labels=none", "training.samples=16"]
    words += ["training.batch=8", "training.statistics=16", "validation.holdout=4", "validation.items=4"]
    code = f"TRAIN = {[*words, 'sampling.count=2', 'run_dir=run']!r}\n{WITHOUT}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "components cannot be computed" in done.stderr
    assert "scikit-learn" in done.stderr
