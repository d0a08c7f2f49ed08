"""`multisagd list` shows every choice with a line about it, and what to write to choose it."""

import json
import pkgutil
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from recipes.base.commands import COMMANDS
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.groups import NAMES, choice_kinds, groups
from recipes.evaluation.metric_table import METRICS
from recipes.list import find, listed, main


def test_tables_of_commands_and_metrics_name_what_exists() -> None:
    for metric in METRICS.values():
        for name in filter(None, [metric.compute, metric.unavailable_reason]):
            assert callable(pkgutil.resolve_name(name)), name
    for name, command in COMMANDS.items():
        assert callable(pkgutil.resolve_name(f"recipes.{name}:main")), name
        assert not command.settings or is_dataclass(pkgutil.resolve_name(command.settings)), name


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
        assert [row["choice"] for row in listed(group)] == names


def test_list_shows_overrides_that_choose() -> None:
    for row in listed("spectrum"):
        name, _, choice = row["override"].partition("=")
        (override,) = configuration.parse([row["override"]])
        assert (override.key_or_group, override.value()) == (name, choice)
    assert {row["override"] for row in listed("commands")} == {f"multisagd {name}" for name in COMMANDS}


def test_find_accepts_singular_plural_and_group(capsys: pytest.CaptureFixture[str]) -> None:
    kinds_of_words = {
        "spectra": "spectrum", "spectrum": "spectrum", "Spectrum=": "spectrum", "process": "process",
        "processes": "process", "data": "data", "datasets": "data", "dataset": "data", "losses": "loss", "loss": "loss",
        "modalities": "modality", "refinement": "refine", "clusters": "cluster", "commands": "commands",
        "command": "commands", "metric": "metrics", "experiments": "experiment",
    }  # fmt: skip
    assert {word: find(word) for word in kinds_of_words} == kinds_of_words
    with pytest.raises(RecipeError, match="no list of 'spctra'; did you mean 'spectra'"):
        find("spctra")
    assert main(["spctra"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no list of 'spctra'")


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
    assert main(["spectra", "--config-dir", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_list_fits_the_terminal_and_counts_each_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["everything"]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= columns
    assert main([]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for kind, (plural, description) in choice_kinds().items():
        assert f" {plural} {description} ({len(listed(kind))})" in printed
