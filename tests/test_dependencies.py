"""The versions that are installed, pinned and declared agree with one another."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
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
