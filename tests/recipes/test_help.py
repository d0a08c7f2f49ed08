"""The help of every command fits the terminal, explains every setting of every choice, and its examples work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.cli.help import command_help
from recipes.cli.main import main, usage
from recipes.config import compose as configuration
from recipes.config.groups import KeyTable, flatten, groups, offered
from recipes.launch import planned
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
    for name in ("train", "sample", "evaluate", "encode", "inspect", "launch", "pack", "design"):
        for group, choice in [(kind, choice) for kind in offered(name) for choice in groups()[kind]]:
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
    composed = configuration.load("train", ["network=unet", "run_dir=x"])["network"]
    shown = re.findall(r"^  network\.(\w+)=", command_help("train", ["network=unet"]), re.MULTILINE)
    assert set(shown) == composed.keys() - {"_target_"}


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


def test_main_survives_a_pipe_that_stops_reading() -> None:
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m recipes.cli train --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: multisagd train run_dir=")
