"""Help, lists and completion offer every key and choice with its default, and the examples in help work."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.cli.help import command_help
from recipes.cli.main import main, usage
from recipes.completion import complete, for_bash
from recipes.config import compose as configuration
from recipes.config import groups as configuration_groups
from recipes.config.groups import NAMES, KeyTable, choice_kinds, flatten, groups, offered
from recipes.launch import planned
from recipes.list import find, listed
from recipes.list import main as list_choices

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "command-line.md"


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_command_help_fits_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for commands that are meant to be copied, and words that cannot be broken."""
    monkeypatch.setenv("COLUMNS", columns)
    for line in "\n".join(map(command_help, CONFIGURED)).splitlines():
        copied = line.lstrip(" #").startswith(("multisagd ", "usage:", "Example: ", "engine=", "training."))
        assert len(line) <= int(columns) or copied or re.fullmatch(r" *(# )?\S+|.*: .*", line), line


@pytest.mark.parametrize("name", CONFIGURED)
def test_command_help_begins_with_required_keys_and_shows_examples_that_work(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = command_help(name)
    assert text.startswith(f"usage: multisagd {name}")
    assert "\x1b" not in text
    order = [text.index(part) for part in ("read more:", "options:", "keys, with their defaults:")]
    assert order == sorted(order)
    for key in re.findall(r"^  (\w+): \?\?\?", text, re.MULTILINE):
        assert f" {key}=…" in text.splitlines()[0]
        assert re.search(rf"^  {key}=… +\S", text, re.MULTILINE), f"{key} is needed and not explained at the top"
    for page in re.findall(r"docs/[\w/-]+\.md", text):
        assert (ROOT / page).exists(), page
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^  multisagd (\w+) ?(.*)$", text, re.MULTILINE)
    assert name in [command for command, _ in examples]
    for command, words in examples:
        settings = [word for word in shlex.split(words) if not word.startswith("--")]
        if command == "launch":
            assert planned(settings)[1]
        elif "--config-dir" not in words:
            assert configuration.load(command, settings)


def test_command_help_lists_every_setting_of_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name in CONFIGURED:
        plain = command_help(name)
        for group, choice in [(kind, choice) for kind in offered(name) for choice in groups()[kind]]:
            assert re.search(rf"^[ *]+{choice} +\S", plain, re.MULTILINE), f"{group}={choice} is not listed"
            text = command_help(name, [f"{group}={choice}"])
            values = KeyTable({group: choice}).keys(name).get(group) or {}
            for key in flatten(values, group):
                listed = re.search(rf"^  {re.escape(key)}=", text, re.MULTILINE)
                assert listed or key.split(".")[-1].startswith("_"), (name, key)
    for name in ("train", "launch"):
        assert "there is no such choice; did you mean" in command_help(name, ["network=unett"])
    assert command_help("train", ["run_dir=x"]) == command_help("train")


def test_command_help_of_launch_explains_the_launched_command_too() -> None:
    text = command_help("launch", ["cluster=slurm", "network=unet"])
    assert re.search(r"^  cluster.nodes=", text, re.MULTILINE)
    assert re.search(r"^  network.width=", text, re.MULTILINE)
    assert re.search(r"^  sampler.\w+=", command_help("launch", ["command=sample", "sampler=ddim"]), re.MULTILINE)
    assert command_help("launch", ["command=smaple"]) == command_help("launch")


def test_command_help_shows_comments_and_values_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = command_help("train", ["experiment=image_folder", "engine=gpu", "modality=latent_image"])
    for line in (
        r"data.root=… +required.*",
        r"engine.workers=2 +number of threads that prefetch data",
        r"modality.autoencoder.name=stabilityai/sd-vae-ft-mse +id on the Hugging Face Hub, or a local folder",
    ):
        assert re.search(rf"^  {line}$", text, re.MULTILINE), line
    assert "experiment=image_folder stands for:\n  modality=image data=folder" in text


@pytest.mark.parametrize("command", ["inspect", "train", "sample", "evaluate"])
def test_help_option_shows_every_key_once_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: multisagd {command} run_dir=…" in text
    assert "as in `multisagd train`: " not in text  # a heading, not part of the comment of the first key
    parts = text.split("keys, with their defaults:")[1].split("# as in `multisagd")
    shown: dict[str, Any] = {}
    for part in parts:
        keys = flatten(yaml.safe_load(part.partition("`:")[2] or part))
        assert not shown.keys() & keys.keys()
        shown |= keys
    composed = flatten(configuration.load(command, ["run_dir=r"])) | {"run_dir": "???"}
    for key, value in shown.items():
        assert composed[key] == value or str(value).startswith("${"), key
    missing = {key.split(".")[0] for key in composed} - {key.split(".")[0] for key in shown}
    assert all(f"  {group}: " in text for group in missing)


def test_usage_and_the_page_of_commands_list_every_command() -> None:
    assert all((ROOT / command.page).exists() for command in COMMANDS.values())
    text = PAGE.read_text()
    for name in COMMANDS:
        assert f"\n| `{name}` | " in text
        assert f"\n  {name} " in usage()


def test_page_of_commands_shows_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = PAGE.read_text()
    assert list_choices(["schedules"]) == 0
    assert capsys.readouterr().out in text
    shown = re.findall(r"^\$ multisagd (\w+) (.*)\n(error: .*)$", text, re.MULTILINE)
    assert len(shown) == 3
    for command, words, error in shown:
        with pytest.raises(configuration.RecipeError) as caught:
            configuration.load(command, shlex.split(words))
        assert error == f"error: {caught.value}"


def test_main_prints_usage_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == f"{usage()}\n"
    assert main(["help", "sample"]) == 0
    assert capsys.readouterr().out == f"{command_help('sample')}\n"
    for word in ("--version", "-V", "version"):
        assert main([word]) == 0
        assert re.fullmatch(r"multisagd \d[\w.]+ in .*, Python 3[\d.]+, torch 2[\w.+]+\n", capsys.readouterr().out)


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
    assert list_choices(["spctra"]) == 2
    assert "no list of 'spctra'; did you mean 'spectra'" in capsys.readouterr().err


def test_list_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_choices(["spectra", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed("spectrum")
    assert list_choices(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {kind: listed(kind) for kind in choice_kinds()}


def test_list_includes_choices_and_groups_of_config_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for group, description in (("spectrum", "# Mine.\n"), ("dust", "")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"{description}_target_: multisagd.Flat\n")
    assert list_choices(["spectra", f"--config-dir={tmp_path}"]) == 0
    assert "\n  spectrum=mine            Mine.\n" in capsys.readouterr().out
    assert list_choices(["dust", f"--config-dir={tmp_path}"]) == 0
    assert "dust=mine" in capsys.readouterr().out
    assert list_choices([f"--config-dir={tmp_path}"]) == 0
    assert f"({len(listed('spectrum', tmp_path))})" in capsys.readouterr().out
    assert list_choices(["spectra", "--config-dir", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err


BREAKS = " \t\n\"'@><=;|&(:"


def completions(*words: str) -> list[str]:
    return [each for each, _ in complete(words)]


def commands_with_choices() -> Iterator[tuple[str, dict[str, str]]]:
    """Every command without a choice, every experiment, and each choice of the other groups of train."""
    yield from ((command, {}) for command in CONFIGURED)
    apart = {"refine": "sample", "cluster": "launch", "experiment": "train"}
    yield from ((command, {group: choice}) for group, command in apart.items() for choice in groups()[group])
    others = {group: choices for group, choices in groups().items() if group not in apart}
    for number in range(max(map(len, others.values()))):
        yield "train", {group: choices[number % len(choices)] for group, choices in others.items()}
    yield "analyze", {"experiment": "audio_notes", "modality": "video", "network": "transformer"}


BUILT_ON_OTHERS = {"latent_image", "cached_video", "latent", "audio_notes", "ablation_sign_digits"}


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_key_table_has_the_keys_and_defaults_that_hydra_composes(quick: bool) -> None:
    """Interpolations are not resolved."""
    for name, choices in commands_with_choices():
        if quick == (name != "train" or not choices or not BUILT_ON_OTHERS.isdisjoint(choices.values())):
            composed = configuration._compose(name, [f"{group}={choice}" for group, choice in choices.items()])
            assert KeyTable(choices).keys(name) == OmegaConf.to_container(composed), (name, choices)


def test_complete_offers_choices_and_keys_of_config_dir(tmp_path: Path) -> None:
    (tmp_path / "spectrum").mkdir()
    (tmp_path / "spectrum" / "mine.yaml").write_text("# Mine.\n_target_: multisagd.Flat\nlevel: 2.0\n")
    own = f"--config-dir={tmp_path}"
    assert completions("train", own, "spectrum=m") == ["spectrum=mine", "spectrum=mixed"]
    assert completions("train", "--config-dir", str(tmp_path), "spectrum=mine", "spectrum.") == ["spectrum.level="]
    (tmp_path / "spectrum" / "mine.yaml").write_text("a: [1")  # while it is being written
    configuration_groups.read_file.cache_clear()
    assert completions("train", own, "spectrum=mine", "spectrum.") == []


CANDIDATES = {
    "tra": ["train"],
    "help samp": ["sample"],
    "train spectrum=power": ["spectrum=power_law"],
    "train spectrum=power_law spectrum.exp": ["spectrum.exponent="],
    "train experiment=audio_notes modality.representation.h": ["modality.representation.hop="],
    "train modality=audio modality=image modality.repr": [],
    "train train": ["training."],
    "train spec": ["spectrum=", "spectrum."],
    "train exper": ["experiment="],
    "sample exper": [],
    "launch cluster=slurm cluster.part": ["cluster.partition="],
    "launch command=sample prompts_": ["prompts_file="],
    "launch command=eval": ["command=evaluate"],
    "train engine.compile=": ["engine.compile=true", "engine.compile=false"],
    "train engine.device=": ["engine.device=auto", "engine.device=cpu", "engine.device=cuda"],
    "train training.betas=": ["training.betas=[0.9,0.99]"],
    "train +spectrum=whi": ["+spectrum=white"],
    "train --s": ["--show"],
    "evaluate metrics=[spe": ["metrics=[spectrum]"],
    "evaluate data.": ["data.root=", "data.urls="],
    "list spec": ["spectra"],
    "list spectra e": [],
    "doctor r": ["run_dir="],
    "doctor --": ["--json", "--deep", "--help"],
    "completion ": ["bash", "zsh", "fish"],
    "completion bash ": [],
    "nonsense a": [],
}


def test_complete_offers_commands_choices_keys_and_values() -> None:
    assert {line: completions(*line.split(" ")) for line in CANDIDATES} == CANDIDATES
    assert set(completions("")) == {*COMMANDS, "help", "--help", "--version"}
    assert ("data.", "keys of the run's data") in complete(["sample", "da"])


def test_complete_offers_files_where_text_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    (tmp_path / "my photos" / "a.png").touch()
    for name in (".hidden", "two\nlines"):
        (tmp_path / name).mkdir()
    assert completions("train", "run_dir=") == ["run_dir=my photos/"]
    assert completions("train", "data=folder", "data.root=my photos/") == ["data.root=my photos/a.png"]
    assert completions("train", "--config-dir=m") == ["--config-dir=my photos/"]
    assert completions("train", "seed=") == ["seed=0"]
    assert for_bash("multisagd train run_dir=m", BREAKS) == [r"my\ photos/"]
    assert for_bash(r"multisagd train run_dir=my\ ph", BREAKS) == [r"my\ photos/"]
    assert for_bash("multisagd train run_dir=m", "") == [r"run_dir=my\ photos/"]
    for quotation_mark in ("'", '"'):
        assert for_bash(f"multisagd train {quotation_mark}run_dir=m", BREAKS) == ["run_dir=my photos/"]


def test_complete_command_imports_nothing_slow_and_prints_no_errors() -> None:
    program = [sys.executable, "-X", "importtime", "-m", "recipes.cli", "__complete"]
    done = subprocess.run([*program, "zsh", "train", "spectrum=po"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("spectrum=power_law\t")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "hydra", "omegaconf", "numpy", "rich"}, "a press of a key would take too long"
    # A message would appear in the line that is being typed.
    program = [sys.executable, "-m", "recipes.cli", "__complete"]
    done = subprocess.run([*program, "tcsh", "train"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


# In zsh, a function stands in for the builtin that works only while a line is being edited.
COMPLETIONS = {
    "bash": (
        'eval "$(multisagd completion bash)"\n'
        "try() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=(multisagd); COMPREPLY=(x)\n"
        '_multisagd 2>/dev/null; echo "${#COMPREPLY[@]} ${COMPREPLY[*]}"; }\n'
        'try "multisagd tra"; try "multisagd train spectrum=p"; try "multisagd train spectrum=nothing"\n'
        "complete -p multisagd\n",
        "1 train\n4 per_channel pink power_law progressive\n0 \ncomplete -o nosort -F _multisagd multisagd\n",
    ),
    "zsh": (
        'compdef() { }; compadd() { print -l -- ${(P)@[-1]} }; eval "$(multisagd completion zsh)"\n'
        "words=(multisagd train spec); CURRENT=3; _multisagd\n"
        "words=(multisagd train spectrum=power_l); _multisagd\n",
        "spectrum=\nspectrum.\nspectrum=power_law\n",
    ),
    "fish": ('multisagd completion fish | source; complete -C "multisagd train spectrum=po"', "spectrum=power_law\t"),
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completion_script_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: apt-get install {shell}")
    program = tmp_path / "multisagd"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m recipes.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    lines, expected = COMPLETIONS[shell]
    done = subprocess.run([shell, "-c", lines], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith(expected)
    assert done.stdout == expected or shell == "fish"  # which adds the description
