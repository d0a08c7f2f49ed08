"""`multisagd list` shows every choice with a line about it, and what to write to choose it."""

import json
from pathlib import Path

import pytest

from recipes.config.groups import NAMES, choice_kinds, groups
from recipes.list import find, listed, main


def test_list_describes_every_choice_by_a_line_of_its_own() -> None:
    """That of a choice in a file is the first comment of the file, over several lines up to its full stop."""
    assert NAMES.keys() == groups().keys()
    for kind in choice_kinds():
        lines = [row["description"] for row in listed(kind)]
        assert lines, kind
        assert len(set(lines)) == len(lines), kind
        assert all(len(line) > 8 and "Example" not in line for line in lines), lines
    for group, names in groups().items():
        assert all(row["description"].endswith(".") for row in listed(group)), group
        assert [(row["choice"], row["override"]) for row in listed(group)] == [(n, f"{group}={n}") for n in names]


def test_find_accepts_singular_plural_and_group(capsys: pytest.CaptureFixture[str]) -> None:
    kinds_of_words = {
        "spectra": "spectrum", "Spectrum=": "spectrum", "processes": "process", "datasets": "data", "dataset": "data",
        "losses": "loss", "modalities": "modality", "refinement": "refine", "command": "commands",
    }  # fmt: skip
    assert {word: find(word) for word in kinds_of_words} == kinds_of_words
    assert main(["spctra"]) == 2
    assert "no list of 'spctra'; did you mean 'spectra'" in capsys.readouterr().err


def test_list_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectra", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed("spectrum")
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {kind: listed(kind) for kind in choice_kinds()}


def test_list_includes_choices_and_groups_of_config_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for group, description in (("spectrum", "# Mine.\n"), ("dust", "")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"{description}_target_: multisagd.Flat\n")
    assert main(["spectra", f"--config-dir={tmp_path}"]) == 0
    assert "\n  spectrum=mine            Mine.\n" in capsys.readouterr().out
    assert main(["dust", f"--config-dir={tmp_path}"]) == 0
    assert "dust=mine" in capsys.readouterr().out
    assert main([f"--config-dir={tmp_path}"]) == 0
    assert f"({len(listed('spectrum', tmp_path))})" in capsys.readouterr().out
    assert main(["spectra", "--config-dir", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
