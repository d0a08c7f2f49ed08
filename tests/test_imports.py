"""Imports have no cycle and run one way; the versions that are installed, pinned and declared agree."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
BELOW = {
    "multisagd": (),
    "modalities": ("multisagd",),
    "configs": (),
    "recipes": ("multisagd", "modalities", "configs"),
}
"""What each package may import of the others."""


def modules_of(root: Path, *packages: str) -> dict[str, Path]:
    """Return every module of some packages by its dotted name."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return which of the modules each one imports, also within its functions."""
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # A name may be a module of the package, or something in it.
                each = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[name] |= each & modules.keys() or {node.module}
        imports[name] = imports[name] & modules.keys() - {name}
    return imports


def folder_of(name: str) -> str:
    """Return the folder of a module of recipes; the files of the commands count as one folder."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or MODULES[name].name == "__init__.py" else "commands"


MODULES = modules_of(ROOT, *BELOW)
IMPORTS = imports_of(MODULES)


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' → '.join(error.args[1])}")


def test_imports_run_one_way_between_packages() -> None:
    wrong = []
    for name, others in IMPORTS.items():
        own = name.split(".")[0]
        wrong += [f"{name} imports {other}" for other in others if other.split(".")[0] not in (own, *BELOW[own])]
    assert not wrong, "\n".join(wrong)
    assert sum(map(len, IMPORTS.values())) > 500, "imports are not found"


def test_imports_run_one_way_between_folders_of_recipes() -> None:
    between: dict[tuple[str, str], str] = {}
    for name, others in IMPORTS.items():
        for other in others if name.startswith("recipes.") else ():
            if other.startswith("recipes."):
                between[folder_of(name), folder_of(other)] = f"{name} imports {other}"
    wrong = [line for (one, other), line in between.items() if one != other and (other, one) in between]
    assert not wrong, "\n".join(sorted(wrong))


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = list(map(Requirement, chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())))
LINES = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
PINNED = [Requirement(line) for line in LINES]


def pins(name: str) -> list[Version]:
    """Return the versions that constraints.txt names for a package: several where they differ among Pythons."""
    return [Version(str(pin.specifier)[2:]) for pin in PINNED if pin.name == name]


def test_constraints_pin_every_declared_dependency_within_its_range() -> None:
    unpinned = [wanted.name for wanted in DECLARED if not pins(wanted.name)]
    assert not unpinned, "run make update"
    assert not [str(wanted) for wanted in DECLARED if not all(pin in wanted.specifier for pin in pins(wanted.name))]


def test_constraints_are_exact_versions_without_an_index() -> None:
    assert not [str(pin) for pin in PINNED if pin.url or not re.fullmatch(r"==[^,*]+", str(pin.specifier))]
    assert not [line for line in LINES if "://" in line or line.startswith("-")]


def test_torch_and_its_companions_are_capped_after_the_pinned_minor_version() -> None:
    for name in ("torch", "torchvision", "torchaudio"):
        (wanted,) = {str(wanted.specifier) for wanted in DECLARED if wanted.name == name}
        (pin,) = pins(name)
        assert f"<{pin.major}.{pin.minor + 1}" in wanted, name


def test_installed_packages_agree_with_one_another() -> None:
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
