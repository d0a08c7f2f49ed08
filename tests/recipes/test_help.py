"""Help as a new user meets it: as wide as the terminal, with examples that work, and the page that says more."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
@pytest.mark.parametrize("name", CONFIGURED)
def test_help_is_as_wide_as_the_terminal(name: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is meant to be copied, and words that cannot be broken."""
    monkeypatch.setenv("COLUMNS", columns)
    for line in command_help(name).splitlines():
        copied = line.lstrip(" #").startswith(("multisagd ", "usage:", "Example: ", "engine=", "training."))
        assert len(line) <= int(columns) or copied or re.fullmatch(r" *(# )?\S+|.*: .*", line), line


@pytest.mark.parametrize("name", CONFIGURED)
def test_help_begins_with_what_is_wanted_most(name: str) -> None:
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


@pytest.mark.parametrize("name", CONFIGURED)
def test_examples_work_as_written(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^  multisagd (\w+) ?(.*)$", command_help(name), re.MULTILINE)
    assert name in [command for command, _ in examples]
    for command, words in examples:
        settings = [word for word in shlex.split(words) if not word.startswith("--")]
        if command == "launch":
            assert planned(settings)[1]
        elif "--config-dir" not in words:
            assert configuration.load(command, settings)


@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "encode", "inspect", "launch", "pack", "design"])
def test_help_lists_every_setting_of_every_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for group in offered(name):
        for choice in groups()[group]:
            text = command_help(name, [f"{group}={choice}"])
            values = KeyTable({group: choice}).keys(name).get(group) or {}
            for key in flatten(values, group):
                assert re.search(rf"^  {re.escape(key)}=", text, re.MULTILINE) or key.split(".")[-1][:1] in "_", key
    assert "there is no such choice; did you mean" in command_help("train", ["network=unett"])
    assert command_help("train", ["run_dir=x"]) == command_help("train")


def test_help_of_launch_explains_the_launched_command_too() -> None:
    text = command_help("launch", ["cluster=slurm", "network=unet"])
    assert re.search(r"^  cluster.nodes=", text, re.MULTILINE)
    assert re.search(r"^  network.width=", text, re.MULTILINE)
    assert re.search(r"^  sampler.\w+=", command_help("launch", ["command=sample", "sampler=ddim"]), re.MULTILINE)
    assert "there is no such choice; did you mean" in command_help("launch", ["network=unett"])
    assert command_help("launch", ["command=smaple"]) == command_help("launch")


def test_help_says_what_is_said_in_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = command_help("train", ["experiment=image_folder", "engine=gpu", "modality=latent_image"])
    assert re.search(r"^  data.root=… +needed", text, re.MULTILINE)
    assert re.search(r"^  engine.workers=2 +number of threads that prefetch data$", text, re.MULTILINE)
    assert re.search(
        r"^  modality.autoencoder.name=stabilityai/sd-vae-ft-mse +id on the Hugging Face Hub, or a local folder$",
        text,
        re.MULTILINE,
    )
    assert "experiment=image_folder stands for:\n  modality=image data=folder" in text
    composed = configuration.load("train", ["network=unet", "run_dir=x"])["network"]
    shown = re.findall(r"^  network\.(\w+)=", command_help("train", ["network=unet"]), re.MULTILINE)
    assert set(shown) == composed.keys() - {"_target_"}


def test_every_command_has_a_page_and_is_on_the_page_of_all() -> None:
    assert all((ROOT / command.page).exists() for command in COMMANDS.values())
    text = PAGE.read_text()
    for name in COMMANDS:
        assert f"\n| `{name}` | " in text
        assert f"\n  {name} " in usage()


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_help_and_version_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == f"{usage()}\n"
    assert main(["help", "sample"]) == 0
    assert capsys.readouterr().out == f"{command_help('sample')}\n"
    for word in ("--version", "-V", "version"):
        assert main([word]) == 0
        assert re.fullmatch(r"multisagd \d[\w.]+ in .*, Python 3[\d.]+, torch 2[\w.+]+\n", capsys.readouterr().out)


def test_help_may_be_piped_into_what_stops_reading() -> None:
    command = f"{shlex.quote(sys.executable)} -m recipes.cli train --help | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: multisagd train run_dir=")
