"""Links, images and blocks of README, CONTRIBUTING and docs, without running them: that is `test_pages_run.py`."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.cli.command import take_option
from recipes.config import compose as configuration
from recipes.launch import planned
from tests.helpers.blocks import PAGES, ROOT, RUNNABLE, blocks_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
DESIGNED = "designed"
"""Stands for the folder where the commands look for what `multisagd design` and `adopt` wrote."""


def test_pages_link_to_existing_files() -> None:
    missing = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
        local = [target for target in targets if target and not re.match(r"\w+:", target)]
        missing += [f"{page}: {target}" for target in local if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing, "\n".join(missing)


def test_guarantees_name_existing_tests() -> None:
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(\S+)\)", (ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 15
    missing = [f"{file}::{name}" for name, file in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert not missing, "\n".join(missing)


def test_blocks_run_or_give_a_reason() -> None:
    silent = [str(block) for block in BLOCKS if block.reason is None and block.language not in RUNNABLE]
    assert not silent, (
        f"{silent}: only {RUNNABLE} can be run; put the reason on the line before: "
        "<!-- not run: output of the command above -->"
    )


def test_yaml_blocks_agree_with_the_files_they_name() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            shown = yaml.safe_load(block.text)
            assert shown, f"{block}: empty"
            if block.file is not None and (ROOT / block.file).exists():
                assert contains(yaml.safe_load((ROOT / block.file).read_text()), shown), f"{block}: the file differs"


def contains(whole: Any, part: Any) -> bool:
    """Whether every key of the part has its value in the whole."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    return bool(whole == part)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "bash"}))
def test_commands_of_page_compose(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are not run must be correct as well."""
    monkeypatch.chdir(tmp_path)
    written = {
        f"{DESIGNED}/spectrum/designed.yaml": "_target_: multisagd.Flat\n",
        f"{DESIGNED}/schedule/designed.yaml": "_target_: multisagd.CosineSchedule\n",
        f"{DESIGNED}/experiment/adopted.yaml": "# @package _global_\n{}\n",
        **{block.file: block.text for block in blocks_of(page) if block.language == "yaml" and block.file},
    }
    for name, text in written.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    scripts = {block.file for block in blocks_of(page)}
    for block in blocks_of(page):
        for command in block.commands() if block.language == "bash" else ():
            check_command(shlex.split(command, comments=True), scripts)


def check_command(words: list[str], scripts: set[str | None]) -> None:
    """Compose a command of this project without running it, and check the words that other programs are given."""
    if words[0] == "torchrun" and "recipes.train" in words:
        configuration.load("train", words[words.index("recipes.train") + 1 :])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
    elif words[0] == "python" and words[1].endswith(".py"):
        assert words[1] in scripts or (ROOT / words[1]).exists(), f"there is no {words[1]}"
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= MAKE_TARGETS, "not in the Makefile"
    elif words[0] == "pip":
        named = re.findall(r"\[([\w,]+)\]", " ".join(word for word in words if "multisagd" in word or "-e" in words))
        assert {extra for extras in named for extra in extras.split(",")} <= EXTRAS.keys(), "there is no such extra"
    elif words[0] == "multisagd" and len(words) > 1:
        assert words[1] in COMMANDS or words[1].startswith("-"), f"there is no command {words[1]}"
        own = take_option(words, "--config-dir")
        folder = None if own is None else Path(own) if Path(own).exists() else Path(DESIGNED)
        settings = [word for word in words[2:] if not word.startswith("--")]
        if words[1] == "launch":
            assert planned(settings, None if folder is None else str(folder))[1]
        elif words[1] in CONFIGURED:
            configuration.load(words[1], settings, folder)


def test_blocks_of_finds_blocks_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.blocks.ROOT", tmp_path)
    text = "a\n<!-- not run: takes a day -->\n```bash\nmultisagd a \\\n    b\n# c\n```\n  ```python\n  # x.py\n    y\n"
    (tmp_path / "good.md").write_text(text + "  ```\n")
    first, second = blocks_of("good.md")
    assert (first.line, first.language, first.reason, first.file) == (3, "bash", "takes a day", None)
    assert first.commands() == ["multisagd a      b"]
    assert (second.line, second.text, second.reason, second.file) == (8, "# x.py\n  y\n", None, "x.py")
    for number, wrong in enumerate(("```\n", "<!-- not run: a day -->\n\n```\n```\n", "<!-- not run: -->\n```\n```\n")):
        (tmp_path / f"{number}.md").write_text(wrong)
        with pytest.raises(ValueError, match=f"{number}.md:1"):
            blocks_of(f"{number}.md")
