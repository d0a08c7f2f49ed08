"""The blocks of README, CONTRIBUTING and docs, run in the order of their page in an empty folder.

Python shares one namespace per page; commands get the words of `quick.py`, which make them small, and the files of
`given.py`, which readers have or download. A block that begins with the name of a file is written to that file; if it
is Python, it is run as well.
"""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import main as cli
from tests.helpers.blocks import PAGES, ROOT, Block, blocks_of
from tests.helpers.given import GIVEN
from tests.helpers.quick import quick

ON_DATA = ("docs/tutorials/schedule-design.md", "docs/tutorials/conditioning.md")
"""These read MNIST and spoken digits."""
QUOTED = "the output of the block above"
"""The reason that marks a block as the output of the Python block before it."""
RUN = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]
FAST = ("README.md", "docs/faq.md", "docs/first-model.md", "docs/tutorials/your-own-modality.md")
"""The pages that everybody starts with are run by `make test`, the others by `make test-slow`."""


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", text)]


def alike(shown: str, printed: str) -> bool:
    """Whether the words are the same, and the numbers too except for the last digits, which differ by machine."""
    number = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
    left, right = ([float(word) for word in re.findall(number, text)] for text in (shown, printed))
    same = re.sub(number, "#", shown).split() == re.sub(number, "#", printed).split()
    return same and left == pytest.approx(right, rel=0.1, abs=0.01)


def check_results(page: str, names: dict[str, Any], printed: list[str]) -> None:
    """Check what a page says of its results, from its variables and the output of each of its Python blocks."""
    if page == "README.md":
        assert names["images"].shape == (4, 3, 32, 32)
        assert bool(names["images"].isfinite().all())
    elif page == "docs/tutorials/inverse-problems.md":
        error, left = numbers(next(text for text in printed if text.startswith("mean of guided samples")))
        assert error < 0.2 * left
    elif page == "docs/tutorials/schedule-design.md":
        designed, cosine = (numbers(line)[0] for line in printed[-1].splitlines())
        assert designed < cosine
    elif page == "docs/tutorials/selective-omission.md":
        before, after = numbers(printed[-1])
        assert after < before / 5
    elif page == "docs/tutorials/your-own-modality.md":
        assert len(list(Path("runs/ecg/sampled").glob("*/samples/*.txt"))) == 4
        assert len(list(Path("runs/volumes/sampled").glob("*/samples/*.npy"))) == 4
        assert len(list(Path("runs").glob("*/samples/*.png"))) == 2


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("page", [page if page in FAST else pytest.param(page, marks=pytest.mark.slow) for page in RUN])
def test_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page in ON_DATA and not os.environ.get("MULTISAGD_DATA"):
        pytest.skip("set MULTISAGD_DATA to run the pages on MNIST and spoken digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for make in GIVEN.get(page, ()):
        make(tmp_path)
    modules, names, printed = set(sys.modules), {"__name__": page}, []
    try:
        for block in blocks_of(page):
            if block.reason == QUOTED:
                assert alike(block.text, printed[-1]), f"{block}: the block above printed\n{printed[-1]}"
            elif block.reason is None:
                capsys.readouterr()
                run(block, names)
                output = capsys.readouterr().out
                if block.language == "python":
                    assert not re.search(r"\b(nan|inf)\b", output), f"{block}: {output}"
                    printed.append(output)
    finally:
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
    check_results(page, names, printed)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run one block in the working directory."""
    if block.file is not None:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            runpy.run_path(block.file, run_name="__main__")
    elif block.language == "python":
        exec(compile("\n" * block.line + block.text, str(ROOT / block.page), "exec"), names)
    elif block.language == "bash":
        for command in block.commands():
            words = shlex.split(command, comments=True)
            if words[0] == "python" and words[1].endswith(".py"):
                path = Path(words[1]) if Path(words[1]).exists() else ROOT / words[1]
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", words[1:])
                    patch.syspath_prepend(str(path.parent))
                    runpy.run_path(str(path), run_name="__main__")
            else:
                assert words[0] == "multisagd", f"{block}: this cannot be run here: {command}"
                assert cli.main([*words[1:], *quick(words[1], words[2:])]) == 0, f"{block}: {command}"


def test_alike_compares_words_and_numbers() -> None:
    assert alike("error 0.12, 3 of 4\n", "error 0.121, 3 of 4\n")
    assert not alike("error 0.12, 3 of 4\n", "error 0.22, 3 of 4\n")
    assert not alike("error 0.12, 3 of 4\n", "loss 0.12, 3 of 4\n")


def test_tutorial_adapters_take_fewer_than_sixty_lines() -> None:
    files = {block.file: block.text for block in blocks_of("docs/tutorials/your-own-modality.md") if block.file}
    scripts = ["ecg.py", "make_recordings.py", "check_ecg.py", "volume.py", "make_volumes.py", "check_volume.py"]
    assert list(files) == scripts
    assert all(len(files[name].splitlines()) < 60 for name in ("ecg.py", "volume.py"))
