"""Every script of `examples` runs with `--small`, prints its results and writes its files."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.blocks import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
FILES = {
    "audio_from_scratch.py": "strings.wav",
    "image_from_scratch.py": "digits.png",
    "inverse_problem.py": "restored.png",
    "schedule_design.py": "steps.json",
}
OUTPUT = {
    "audio_from_scratch.py": r"2 sounds of 0\.26 s",
    "image_from_scratch.py": r"step 0: loss 0\.6\d+",
    "inverse_problem.py": r"Gaussian posterior: 0\.\d+ from the truth",
    "schedule_design.py": r"│ 4 +│ 0\.1\d+ +│ 1\.1\d+ +│ 1\.4\d+ +│",
    "shaped_vs_white.py": r"│ 0\.00 +│( [+-]\d+\.\d+ +│){3}",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs_and_writes_its_files(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [script, "--small"])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    output = capsys.readouterr().out
    assert re.search(OUTPUT.get(script, r"\S"), output), output
    assert not re.search(r"\b(nan|inf)\b", output), output
    if script in FILES:
        assert (tmp_path / FILES[script]).stat().st_size > 100


def test_examples_readme_lists_every_script() -> None:
    listed = re.findall(r"\]\((\w+\.py)\)", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == SCRIPTS
