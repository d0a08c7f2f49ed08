"""Python and the packages: versions against those asked for, and clashes of names."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from recipes.health.findings import Finding, Wishes, needed

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
    """Return what pip is to install for an extra: the checkout, or the package by its name."""
    named = f"[{extra}]" if extra else ""
    return f"-e '{ROOT}{named}'" if (ROOT / "pyproject.toml").exists() else f"'multisagd{named}'"


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
    others = [each for each in ("modalities", "recipes", "configs") if _installed(each)]
    if others:
        told = f"ours are found first, but there are distributions called {', '.join(others)} too"
        yield Finding("warning", "names", told, f"pip uninstall {' '.join(others)}")
    else:
        yield Finding("ok", "names", f"{', '.join(OURS)} are those in {ROOT}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def torch_itself(wishes: Wishes) -> Iterator[Finding]:
    """Import PyTorch."""
    torch = importlib.import_module("torch")
    yield Finding("ok", "PyTorch", f"{torch.__version__}, {_built_for(torch)}")


def torch_family(wishes: Wishes) -> Iterator[Finding]:
    """Import what must have been built for the very PyTorch that is here."""
    torch = needed("torch")
    for name in ("torchvision", "torchaudio"):
        try:
            module = importlib.import_module(name)
            if name == "torchvision":
                # Compiled code, which is not found with another torch than it was built for.
                module.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
            yield Finding("ok", name, str(module.__version__))
        except Exception as error:
            told = f"does not fit torch {torch.__version__}: {' '.join(str(error).split()):.300}"
            yield Finding("broken", name, told, f"pip install --force-reinstall {source('')}  (all from one index)")


def _built_for(torch: Any) -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for CPUs alone"
