"""Find the command that installs or repairs a library."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
"""File of exact versions that were tested together; only a checkout contains it."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "aiohttp": "aiohttp",
    "av": "av",
    "datasets": "datasets",
    "diffusers": "diffusers",
    "fsspec": "fsspec",
    "gcsfs": "gcsfs",
    "gradio": "gradio",
    "h5netcdf": "h5netcdf",
    "h5py": "h5py",
    "huggingface_hub": "huggingface_hub",
    "hydra": "hydra-core",
    "jinja2": "jinja2",
    "librosa": "librosa",
    "matplotlib": "matplotlib",
    "nibabel": "nibabel",
    "numpy": "numpy",
    "packaging": "packaging",
    "ptwt": "ptwt",
    "pyarrow": "pyarrow",
    "pywt": "PyWavelets",
    "rich": "rich",
    "s3fs": "s3fs",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "submitit": "submitit",
    "tensorboard": "tensorboard",
    "torch": "torch",
    "torch_fidelity": "torch-fidelity",
    "torchaudio": "torchaudio",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "wandb": "wandb",
    "xarray": "xarray",
    "xformers": "xformers",
    "yaml": "pyyaml",
    "zarr": "zarr",
}
"""Names of the project's libraries on PyPI, by import name."""

TORCH_INDEX = "https://download.pytorch.org/whl"


def remedy(library: str, broken: Iterable[str] = ()) -> str:
    """Return the command that installs a library, or reinstalls it if it or its dependencies are `broken`.

    Versions are taken from the checkout's constraints if these match the installed PyTorch. Otherwise libraries built
    for PyTorch get the matching version, and others the version required by the project.
    """
    name, torch, pinned = installed(library) or DISTRIBUTIONS.get(library, library), version("torch"), _pinned()
    fits = torch != "" and pinned.get("torch") == torch.partition("+")[0]
    names = dict.fromkeys([name, *filter(None, map(installed, broken))])
    requirements = [each if fits and each.lower() in pinned else _requirement(each, torch) for each in names]
    words = [*_pip(), "install"]
    # pip replaces a different version without options, but reinstalls the same version only with --force-reinstall.
    pin = requirements[0].partition("==")[2].removesuffix(".*")
    if broken and (len(requirements) > 1 or f"{version(name)}.".startswith(f"{pin}.") or not pin):
        words += ["--force-reinstall", "--no-deps"]
    if fits:
        words += ["-c", str(CONSTRAINTS)]
    if "+" in torch and any(each.startswith("torch") for each in names):
        words += ["--index-url", f"{TORCH_INDEX}/{torch.partition('+')[2]}"]
    return " ".join(f"'{each}'" if set(each) & set("=<>*") else shlex.quote(each) for each in [*words, *requirements])


def _requirement(name: str, torch: str) -> str:
    """Return the requirement for pip: the name, with the versions that match PyTorch or that the project supports."""
    if name == "torchaudio":
        return "torchaudio==2.11.0"  # tested with PyTorch 2.11 to 2.14; 2.11.1 needs 2.13
    if name == "torchvision" and (release := re.match(r"2\.(\d+)", torch)):
        return f"torchvision==0.{int(release[1]) + 15}.*"
    try:
        lines = metadata.requires("multisagd") or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines if name != "torch" or not torch else ():
        if (declared := re.match(r"([\w.-]+)[^;<>=!~\s]*\s*([^;]*)", line)) and _same(declared[1], name):
            return f"{name}{declared[2].strip()}"
    installed = version(name)
    return f"{name}=={installed}" if installed else name


def _same(one: str, other: str) -> bool:
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()


def _pinned() -> dict[str, str]:
    if not CONSTRAINTS.is_file():
        return {}
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in CONSTRAINTS.read_text("utf-8").splitlines())
    return {name.lower(): pin for name, equal, pin in (line.partition("==") for line in lines) if equal}


def _pip() -> list[str]:
    """Return the pip command of this interpreter: just `pip` if the shell finds the same pip."""
    executable = shutil.which("pip")
    own = executable is not None and Path(executable).parent == Path(sys.executable).parent
    return ["pip"] if own else [sys.executable, "-m", "pip"]


def version(distribution: str) -> str:
    """Return the installed version of a distribution, or "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def installed(package: str) -> str:
    """Return the distribution of an installed package, or "" if it has none."""
    if (known := DISTRIBUTIONS.get(package)) is not None:
        return known if version(known) else ""
    return (_distributions().get(package) or [""])[0]


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()  # takes seconds
