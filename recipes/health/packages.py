"""Python and the packages: versions against those asked for, and clashes of names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from recipes.health.findings import Finding, State, Wishes, needed

ROOT = Path(__file__).resolve().parents[2]
OURS = ("multisagd", "modalities", "recipes", "configs")
FEATURES = {
    "cluster": "cluster=slurm of `multisagd launch`",
    "diffusers": "networks, schedulers and pipelines of the diffusers library",
    "docs": "the site of the documentation",
    "explore": "`multisagd explore`",
    "latents": "modality=latent_image, latent_audio and latent_video: their autoencoders",
    "metrics": "metrics=[inception] of `multisagd evaluate`",
    "remote": "shards in object storage and on the web, data=webdataset",
    "text": "text=encoder: captions as the condition",
    "tracking": "tracking=tensorboard and tracking=wandb",
    "wavelets": "loss=spectral loss.penalty.kind=wavelet",
}
"""What each optional dependency is for."""
USES = {
    "PIL": "images",
    "av": "videos, and sounds in MP4",
    "matplotlib": "pictures",
    "sklearn": "data=digits and some metrics",
    "soundfile": "sounds",
    "soxr": "sounds of another rate",
    "torchaudio": "log-mel spectrograms",
    "torchvision": "images and videos",
}
"""What each library that everyone has is for, where not all work needs it."""
OPTIONAL = {
    "aiohttp": "shards on the web",
    "diffusers": "what comes from the diffusers library",
    "gcsfs": "shards in Google's storage",
    "gradio": "multisagd explore",
    "ptwt": "the wavelet penalty",
    "s3fs": "shards in S3",
    "submitit": "cluster=slurm",
    "tensorboard": "tracking=tensorboard",
    "torch_fidelity": "metrics=[inception]",
    "transformers": "text=encoder",
    "wandb": "tracking=wandb",
}
"""The same of optional libraries."""


def project() -> tuple[str, dict[str, list[str]]]:
    """Return the Python that the project asks for, and its requirements by extra, "" for those of everyone.

    A checkout's own file comes first: what was installed may be of an earlier state of it.
    """
    file = ROOT / "pyproject.toml"
    if file.exists():
        table = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return table["requires-python"], {"": table["dependencies"], **table.get("optional-dependencies", {})}
    found = metadata.metadata("multisagd")
    asked: dict[str, list[str]] = {"": []}
    for line in metadata.requires("multisagd") or []:
        requirement, _, extra = line.partition("extra == ")
        asked.setdefault(extra.strip("\"' )"), []).append(requirement.rstrip("; (").removesuffix(" and"))
    return found["Requires-Python"], asked


def python(wishes: Wishes) -> Iterator[Finding]:
    """Look at the interpreter."""
    told = f"{platform.python_version()}, {sys.executable}, {platform.platform()}"
    wanted, _ = project()
    if platform.python_version() not in needed("packaging.specifiers").SpecifierSet(wanted, prereleases=True):
        yield Finding("broken", "Python", told, f"make an environment with Python {wanted}")
    elif sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        yield Finding("warning", "Python", f"{told}, outside of any environment", "python3 -m venv .venv")
    else:
        yield Finding("ok", "Python", told)


def requirements(wishes: Wishes) -> Iterator[Finding]:
    """Compare the installed packages with what the project needs."""
    _, asked = project()
    if lacking := [problem for line in asked[""] if (problem := unmet(line))]:
        yield Finding("broken", "packages", "; ".join(lacking), f"pip install {source('')}")
    else:
        yield Finding("ok", "packages", f"all {len(asked[''])} that multisagd needs, in versions that fit")


def extras(wishes: Wishes) -> Iterator[Finding]:
    """Tell which optional packages are there, and what the others would be good for."""
    _, asked = project()
    for extra, use in FEATURES.items():
        if lacking := [problem for line in asked.get(extra, []) if (problem := unmet(line))]:
            yield Finding("absent", extra, f"for {use}: {'; '.join(lacking)}", f"pip install {source(extra)}")
        else:
            yield Finding("ok", extra, f"for {use}")


def unmet(line: str) -> str:
    """Return what is wrong with an installed package, or "": `line` is a requirement such as `fsspec[http]>=2024.6`."""
    Requirement = needed("packaging.requirements").Requirement
    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return ""
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(found, prereleases=True):
        return f"{wanted.name} is {found}, and {wanted.specifier} is needed"
    for below in (Requirement(each) for each in metadata.requires(wanted.name) or [] if wanted.extras):
        if below.marker is not None and any(below.marker.evaluate({"extra": extra}) for extra in wanted.extras):
            below.marker = None
            if problem := unmet(str(below)):
                return problem
    return ""


def source(extra: str) -> str:
    """Return what pip is to install for an extra: the checkout, or the package by its name.

    The checkout's constraints are for the PyTorch that they name: another that is installed would be replaced.
    """
    named = f"[{extra}]" if extra else ""
    if not (ROOT / "pyproject.toml").exists():
        return f"'multisagd{named}'"
    constraints, torch = ROOT / "constraints.txt", _version("torch").partition("+")[0]
    lines = constraints.read_text(encoding="utf-8").splitlines() if constraints.exists() else []
    pins = [line.partition(";")[0].strip() for line in lines if line.startswith("torch==")]
    pinned = f"-c '{constraints}' " if pins and (not torch or f"torch=={torch}" in pins) else ""
    return f"{pinned}-e '{ROOT}{named}'"


def names(wishes: Wishes) -> Iterator[Finding]:
    """Look for other packages that go by the names of the project's own."""
    clashes = []
    for name in OURS:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != ROOT:
            clashes.append(f"`{name}` is {None if spec is None else spec.origin or spec.submodule_search_locations}")
    if clashes:
        remedy = "install multisagd in an environment of its own, or start it in another folder"
        yield Finding("broken", "names", f"{'; '.join(clashes)}, and not that in {ROOT}", remedy)
        return
    others = [each for each in ("modalities", "recipes", "configs") if _version(each)]
    if others:
        told = f"ours are found first, but there are distributions called {', '.join(others)} too"
        yield Finding("warning", "names", told, f"pip uninstall {' '.join(others)}")
    else:
        yield Finding("ok", "names", f"{', '.join(OURS)} are those in {ROOT}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def torch_itself(wishes: Wishes) -> Iterator[Finding]:
    """Import PyTorch."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        yield Finding("broken", "PyTorch", told, f"{sys.executable} -m pip install --force-reinstall {source('')}")
        return
    yield Finding("ok", "PyTorch", f"{torch.__version__}, {_built_for(torch)}")


def torch_family(wishes: Wishes) -> Iterator[Finding]:
    """Import what must have been built for the very PyTorch that is here."""
    torch, libraries = needed("torch"), needed("multisagd.libraries")
    for name in ("torchvision", "torchaudio"):
        try:
            with libraries.importing(name, USES[name]):
                module = importlib.import_module(name)
                if name == "torchvision":
                    # Compiled code, which is not found with another torch than it was built for.
                    module.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
                else:
                    importlib.import_module("torchaudio.functional")
            yield Finding("ok", name, str(module.__version__))
        except libraries.BrokenLibraryError as error:
            reason, remedy = told(error)
            yield Finding("broken", name, f"does not fit torch {torch.__version__}: {reason}", remedy)


def imports(wishes: Wishes) -> Iterator[Finding]:
    """Import each library that everyone has, beside those that are built for PyTorch."""
    yield from _importable(USES.items(), "broken")


def extra_imports(wishes: Wishes) -> Iterator[Finding]:
    """Import each optional library that is installed."""
    here = {name: use for name, use in OPTIONAL.items() if importlib.util.find_spec(name) is not None}
    yield from _importable(here.items(), "warning")


def _importable(uses: Iterable[tuple[str, str]], failing: State) -> Iterator[Finding]:
    libraries = needed("multisagd.libraries")
    fine = []
    for name, use in uses:
        if name in ("torchvision", "torchaudio"):
            continue
        try:
            libraries.check(name, use)
            fine.append(name)
        except libraries.BrokenLibraryError as error:
            reason, remedy = told(error)
            yield Finding(failing, name, reason, remedy)
    if fine:
        yield Finding("ok", "imports", ", ".join(fine))


def told(error: Exception) -> tuple[str, str]:
    """Return what the error of a library says, and its command by itself."""
    reason, _, remedy = re.sub(r"\. To (mend|install) it: ", "\n", str(error), count=1).partition("\n")
    return reason, remedy


def _built_for(torch: Any) -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for CPUs alone"
