"""`multisagd list`: every choice with a line about it, and what is written to choose it."""

import json
import pkgutil
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from recipes.base.commands import COMMANDS, Command
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.groups import NAMES, groups, kinds
from recipes.evaluation.metric_table import METRICS, Metric
from recipes.list import find, listed, main

ROOT = Path(__file__).parents[2]


def test_every_group_is_introduced() -> None:
    assert NAMES.keys() == groups().keys()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_what_the_table_of_metrics_names_is_there(metric: Metric) -> None:
    assert all(callable(pkgutil.resolve_name(name)) for name in filter(None, [metric.compute, metric.lacking]))


@pytest.mark.parametrize(("name", "command"), COMMANDS.items(), ids=COMMANDS)
def test_what_the_table_of_commands_names_is_there(name: str, command: Command) -> None:
    assert callable(pkgutil.resolve_name(f"recipes.{name}:main"))
    assert not command.settings or is_dataclass(pkgutil.resolve_name(command.settings))


@pytest.mark.parametrize("kind", kinds())
def test_every_choice_has_a_line_of_its_own(kind: str) -> None:
    rows = listed(kind)
    assert rows
    for row in rows:
        assert len(row["about"]) > 8, row
        assert "Example" not in row["about"]
    assert len({row["about"] for row in rows}) == len(rows)


def test_the_first_comment_of_a_file_is_whole() -> None:
    """A file's comment goes over several lines, and ends with a full stop."""
    for group, names in groups().items():
        for row in listed(group):
            assert row["about"].endswith("."), row
        assert [row["choice"] for row in listed(group)] == names


def test_what_is_written_chooses() -> None:
    for row in listed("spectrum"):
        name, _, choice = row["override"].partition("=")
        (override,) = configuration.parse([row["override"]])
        assert (override.key_or_group, override.value()) == (name, choice)
    assert {row["override"] for row in listed("commands")} == {f"multisagd {name}" for name in COMMANDS}


@pytest.mark.parametrize(
    ("word", "kind"),
    [("spectra", "spectrum"), ("spectrum", "spectrum"), ("Spectrum=", "spectrum"), ("process", "process"),
     ("processes", "process"), ("data", "data"), ("datasets", "data"), ("dataset", "data"), ("losses", "loss"),
     ("loss", "loss"), ("modalities", "modality"), ("refinement", "refine"), ("clusters", "cluster"),
     ("commands", "commands"), ("command", "commands"), ("metric", "metrics"), ("experiments", "experiment")],
)  # fmt: skip
def test_singular_plural_and_the_name_of_the_group_are_one(word: str, kind: str) -> None:
    assert find(word) == kind


def test_a_slip_of_the_finger_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="no list of 'spctra'; did you mean 'spectra'"):
        find("spctra")
    assert main(["spctra"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no list of 'spctra'")


def test_json_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectra", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed("spectrum")
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {kind: listed(kind) for kind in kinds()}


def test_your_own_choices_and_groups_are_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for group, about in (("spectrum", "# Mine.\n"), ("dust", "")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"{about}_target_: multisagd.Flat\n")
    assert main(["spectra", f"--config-dir={tmp_path}"]) == 0
    assert "\n  spectrum=mine            Mine.\n" in capsys.readouterr().out
    assert main(["dust", f"--config-dir={tmp_path}"]) == 0
    assert "dust=mine" in capsys.readouterr().out
    assert main(["spectra", "--config-dir", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_lists_fit_the_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["everything"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= int(columns)


def test_without_a_word_it_says_what_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for kind, (plural, about) in kinds().items():
        assert f" {plural} {about} ({len(listed(kind))})" in told
