"""The tutorials' code, run as it stands."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from recipes import cli

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorials" / "your-own-modality.md"
SMALL = [
    "training.samples=16", "training.batch=8", "training.statistics=20", "every.log=8", "every.validation=16",
    "every.samples=16", "every.checkpoint=16", "validation.holdout=4", "validation.items=4", "validation.levels=2",
    "sampling.count=2", "sampling.steps=2", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip


def page_blocks(pattern: str) -> list:
    return re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def python_files() -> dict[str, str]:
    """The page's Python blocks by the file name in their first line, in order."""
    return dict(page_blocks(r"^```python\n# (\w+\.py)\n(.*?)^```"))


def commands() -> list[list[str]]:
    text = "".join(page_blocks(r"^```bash\n(.*?)^```"))
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("multisagd ")]


@pytest.mark.parametrize("name", ["ecg.py", "volume.py"])
def test_an_adapter_takes_fewer_than_sixty_lines(name: str) -> None:
    assert len(python_files()[name].splitlines()) < 60


@pytest.mark.filterwarnings("ignore:loadtxt")
def test_your_own_modality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = python_files()
    assert list(files) == [
        "ecg.py", "make_recordings.py", "check_ecg.py", "volume.py", "make_volumes.py", "check_volume.py"
    ]  # fmt: skip
    for name, code in files.items():
        Path(name).write_text(code, encoding="utf-8")
    try:
        for name in files:
            if name.startswith(("make", "check")):
                runpy.run_path(name, run_name="__main__")
        for command in commands():
            quick = SMALL if command[1] == "train" else ["steps=2", "engine.threads=1"]
            assert cli.main([*command[1:], *quick]) == 0, " ".join(command)
    finally:
        for name in files:
            sys.modules.pop(name.removesuffix(".py"), None)
    signals = list(Path("runs/ecg/sampled").glob("*/*.txt"))
    volumes = list(Path("runs/volumes/sampled").glob("*/*.npy"))
    assert len(signals) == 8
    assert len(volumes) == 4
    assert len(list(Path("runs").glob("*/samples/*.png"))) == 2
