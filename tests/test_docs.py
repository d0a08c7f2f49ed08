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
from tests.helpers.blocks import PAGES, ROOT, RUNNABLE, Block, blocks_of

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
VERBS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
DESIGNED = "designed"
"""Stands for the folder where the commands look for what `multisagd design` and `adopt` wrote."""


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_exist(page: str) -> None:
    folder = (ROOT / page).parent
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    local = [target for target in targets if target and not re.match(r"\w+:", target)]
    missing = [target for target in local if not (folder / target).exists()]
    assert not missing, f"{page} links to what is not there: {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_not(page: str) -> None:
    silent = [block for block in blocks_of(page) if block.reason is None and block.language not in RUNNABLE]
    assert not silent, (
        f"{', '.join(map(str, silent))}: only {', '.join(RUNNABLE)} can be run; put the reason on the line before: "
        "<!-- not run: output of the command above -->"
    )


@pytest.mark.parametrize("page", PAGES)
def test_commands_compose(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not run are spelt as those that are."""
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.language == "yaml" and block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
    for group, target in (("spectrum", "Flat"), ("schedule", "CosineSchedule")):
        (tmp_path / DESIGNED / group).mkdir(parents=True)
        (tmp_path / DESIGNED / group / "designed.yaml").write_text(f"_target_: multisagd.{target}\n")
    (tmp_path / DESIGNED / "experiment").mkdir()
    (tmp_path / DESIGNED / "experiment" / "adopted.yaml").write_text("# @package _global_\n{}\n")
    for block in blocks_of(page):
        if block.language == "bash":
            for command in block.commands():
                check(command, block)


def check(line: str, block: Block) -> None:
    """Compose a command of this project without running it, and look for what other programs are given."""
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun" and "recipes.train" in words:
        assert configuration.load("train", words[words.index("recipes.train") + 1 :])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"{block}: there is no module {words[2]}"
    elif words[0] == "python" and words[1].endswith(".py"):
        written = {other.file for other in blocks_of(block.page)}
        assert words[1] in written or (ROOT / words[1]).exists(), f"{block}: there is no {words[1]}"
    elif words[0] == "make":
        wrong = [word for word in words[1:] if "=" not in word and word not in VERBS]
        assert not wrong, f"{block}: the Makefile has no {', '.join(wrong)}"
    elif words[0] == "pip":
        named = re.findall(r"\[([\w,]+)\]", " ".join(word for word in words if "multisagd" in word or "-e" in words))
        assert all(extra in EXTRAS for extras in named for extra in extras.split(",")), f"{block}: {line}"
    elif words[0] == "multisagd" and len(words) > 1:
        assert words[1] in COMMANDS or words[1].startswith("-"), f"{block}: there is no command {words[1]}"
        own = take_option(words, "--config-dir")
        folder = None if own is None else Path(own) if Path(own).exists() else Path(DESIGNED)
        settings = [word for word in words[2:] if not word.startswith("--")]
        if words[1] == "launch":
            assert planned(settings, None if folder is None else str(folder))[1]
        elif words[1] in CONFIGURED:
            assert configuration.load(words[1], settings, folder)


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_of_the_file_it_names(page: str) -> None:
    for block in blocks_of(page):
        if block.language == "yaml":
            shown = yaml.safe_load(block.text)
            assert shown, f"{block}: empty"
            if block.file is not None and (ROOT / block.file).exists():
                assert holds(yaml.safe_load((ROOT / block.file).read_text()), shown), f"{block}: the file differs"


def holds(whole: Any, part: Any) -> bool:
    """Tell whether every key of the part has its value in the whole."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    return bool(whole == part)


def test_blocks_are_found_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blocks.ROOT", tmp_path)
    text = "a\n<!-- not run: takes a day -->\n```bash\nmultisagd a \\\n    b\n# c\n```\n  ```python\n  # x.py\n    y\n"
    text += "  ```\n"
    (tmp_path / "good.md").write_text(text)
    first, second = blocks_of("good.md")
    assert (first.line, first.language, first.reason, first.file) == (3, "bash", "takes a day", None)
    assert first.commands() == ["multisagd a      b"]
    assert (second.line, second.text, second.reason, second.file) == (8, "# x.py\n  y\n", None, "x.py")
    for name, wrong in {"open": "```\n", "orphan": "<!-- not run: takes a day -->\n\n```\n```\n",
                        "silent": "<!-- not run: -->\n```\n```\n"}.items():  # fmt: skip
        (tmp_path / f"{name}.md").write_text(wrong)
        with pytest.raises(ValueError, match=f"{name}.md:1"):
            blocks_of(f"{name}.md")
