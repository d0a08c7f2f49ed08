"""Check the environment: Python, required packages, data, folders, memory, and encodings."""

import locale
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement

from recipes.base.errors import foreign_modalities
from recipes.diagnosis.check import Finding, summary

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "torchvision", "torchaudio.functional", "PIL.Image", "av", "soundfile", "soxr", "librosa", "fsspec", "hydra",
    "jinja2", "matplotlib.pyplot", "rich", "scipy", "sklearn",
)  # fmt: skip
"""Modules of the required libraries other than PyTorch."""
EXTRAS = {
    "arrays": "HDF5, NetCDF, zarr and NIfTI files", "cluster": "cluster=slurm",
    "diffusers": "diffusers networks, schedulers and pipelines",
    "docs": "the documentation site", "explore": "multisagd explore", "hub": "data=hub and data=parquet",
    "latents": "modality=latent_image and others",
    "metrics": "metrics=[inception]", "remote": "shards in object storage and on the web", "text": "text=encoder",
    "tracking": "tracking=tensorboard and wandb", "wavelets": "loss.penalty.kind=wavelet",
}  # fmt: skip
"""The extras (sets of optional dependencies), and the features that need them."""


def packages(extra: str = "") -> Finding:
    """Compare the installed packages with the base requirements, or with the requirements of an extra."""
    description = (
        EXTRAS[extra] if extra else f"Python {platform.python_version()}, {sys.executable}, {platform.platform()}"
    )
    if problems := list(filter(None, map(unmet, requirements(extra)))):
        message, remedy = f"for {description}: {'; '.join(problems)}", f"pip install {source(extra)}"
        return Finding("absent" if extra else "broken", message, remedy)
    return Finding("ok", f"for {description}")


def foreign_package() -> Finding:
    """Check that the package `modalities` is multisagd's own: a package on PyPI has the same name."""
    if (location := foreign_modalities()) is None:
        return Finding("ok", f"multisagd's own, in {ROOT}")
    remedy = "install multisagd in its own environment, or start it in another folder"
    return Finding("broken", f"`modalities` is {location or 'missing'}, not the package in {ROOT}", remedy)


def console_command() -> Finding:
    """Check that the `multisagd` on PATH belongs to this checkout."""
    if (command := shutil.which("multisagd")) is None:
        return Finding("absent", "`multisagd` is not on PATH", f"export PATH='{sys.prefix}/bin':\"$PATH\"")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    if f" in {ROOT}, " in version:
        return Finding("ok", command)
    return Finding(
        "warning", f"{command} is another installation: {version or 'it prints no version'}", f"pip install {source()}"
    )


def pytorch() -> Finding:
    """Import PyTorch and return its version."""
    try:
        torch = import_module("torch")
    except Exception as error:  # a broken installation may raise any error
        return Finding("broken", summary(error), f"{sys.executable} -m pip install --force-reinstall {source()}")
    return Finding("ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")


def library(module: str) -> Finding:
    """Import a module of a required library; if that fails, the remedy installs a version that matches PyTorch."""
    import torch

    from multisagd.libraries import BrokenLibraryError, importing

    try:
        with importing(module, f"with torch {torch.__version__}"):
            imported = import_module(module)
            if module == "torchvision":  # only a call shows whether its compiled part fits PyTorch
                imported.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    except BrokenLibraryError as error:
        message, remedy = re.split(r"\. To (?:fix|install) it: ", str(error), maxsplit=1)
        return Finding("broken", message, remedy)
    return Finding("ok", getattr(import_module(module.partition(".")[0]), "__version__", "imported"))


def data_folder() -> Finding:
    """List the datasets, such as `images/mnist`, in the folder where the project's configurations expect them."""
    root = Path(os.environ.get("MULTISAGD_DATA", "data"))
    if datasets := sorted(path.relative_to(root).as_posix() for path in root.glob("*/*") if path.is_dir()):
        return Finding("ok", f"{root}: {', '.join(datasets[:20])}")
    message = f"no datasets in {root}/; data=digits needs no files, and data=folder reads your own"
    return Finding("absent", message, "export MULTISAGD_DATA=/path/to/data")


def writable(folder: str) -> Finding:
    """Check that a folder, or its nearest existing parent, is writable and has enough free space."""
    existing = next(each for each in (Path(folder).absolute(), *Path(folder).absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(
            "broken", f"cannot write to {existing}: {error}", f"make {existing} writable, or use another folder"
        )
    free = shutil.disk_usage(existing).free
    message = f"{existing}, {free / 2**30:,.1f} GiB free"
    if free < 5 * 2**30:
        return Finding(
            "warning", f"{message}, which checkpoints may soon fill", "set keep=1, or a run_dir on another disk"
        )
    return Finding("ok", message)


def memory() -> Finding:
    """Check the size of the memory, which a container may limit, and of the shared memory."""
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else total
    message = f"{total / 2**30:,.1f} GiB; /dev/shm has {shared / 2**30:,.1f} GiB"
    if shared < 2**28:  # NCCL, and processes that share tensors, need more
        return Finding("warning", message, "docker run --shm-size=8g, or in Kubernetes an in-memory emptyDir")
    return Finding("ok" if total >= 3 * 2**30 else "warning", message)


def encoding() -> Finding:
    """Check that file names and text are encoded in UTF-8."""
    encodings = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    if {name.lower().replace("-", "") for name in encodings} == {"utf8"}:
        return Finding("ok", "UTF-8")
    return Finding("warning", f"{', '.join(encodings)}: names beyond ASCII may fail", "export PYTHONUTF8=1")


def requirements(extra: str = "") -> list[Requirement]:
    """Return the requirements that apply here: the base requirements, or the requirements of an extra."""
    if (file := ROOT / "pyproject.toml").exists():  # metadata of a checkout may be outdated
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    else:
        every, mark = metadata.requires("multisagd") or [], f'extra == "{extra}"'
        lines = [line for line in every if (mark in line if extra else "extra ==" not in line)]
    return [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate({"extra": extra})]


def unmet(required: Requirement) -> str:
    """Return what is wrong with the package installed for a requirement, or "".

    The packages of a requirement's extras, as in `fsspec[http]`, are also checked.
    """
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required.name} is not installed"
    if not required.specifier.contains(version, prereleases=True):
        return f"{required.name} is {version}, but {required.specifier} is required"
    environments = [{"extra": extra} for extra in required.extras]
    below = map(Requirement, metadata.requires(required.name) or [])
    used = (each for each in below if each.marker and any(map(each.marker.evaluate, environments)))
    return next(filter(None, map(unmet, used)), "")


def source(extra: str = "") -> str:
    """Return pip's arguments for installing multisagd, optionally with an extra.

    A checkout is installed with its constraints if they match the installed PyTorch.
    """
    constraints, named = ROOT / "constraints.txt", f"[{extra}]" if extra else ""
    if not (ROOT / "pyproject.toml").exists():
        return f"'multisagd{named}'"
    pins = re.findall(r"^torch==[^\s;]+", constraints.read_text("utf-8") if constraints.exists() else "", re.M)
    fits = pins and unmet(Requirement(pins[0])) in ("", "torch is not installed")
    return (f"-c '{constraints}' " if fits else "") + f"-e '{ROOT}{named}'"
