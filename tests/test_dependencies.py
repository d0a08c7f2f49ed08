"""The versions that are installed, pinned and promised agree with one another."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = sorted({*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())})
LINES = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
PINNED = [Requirement(line) for line in LINES]


def pins(name: str) -> list[Version]:
    """Return the versions that constraints.txt names for a package: several where they differ among Pythons."""
    return [Version(str(pin.specifier)[2:]) for pin in PINNED if pin.name == name]


@pytest.mark.parametrize("line", DECLARED)
def test_every_declared_dependency_is_pinned_within_its_range(line):
    wanted = Requirement(line)
    assert pins(wanted.name), f"{wanted.name} is not in constraints.txt: run make update"
    assert all(version in wanted.specifier for version in pins(wanted.name))


def test_constraints_are_exact_versions_and_name_no_index():
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) and not pin.url for pin in PINNED)
    assert not [line for line in LINES if "://" in line or line.startswith("-")]


@pytest.mark.parametrize("name", ["torch", "torchvision", "torchaudio"])
def test_torch_and_its_companions_are_capped_after_the_minor_version_that_was_tried(name):
    (wanted,) = (Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == name)
    (tried,) = pins(name)
    assert f"<{tried.major}.{tried.minor + 1}" in str(wanted.specifier)


def test_installed_packages_agree_with_one_another():
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
