import re
import shlex
from pathlib import Path

import pytest
import torch

from recipes.engine import config as configuration
from recipes.launch import planned

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_images_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    local = [target for target in targets if target and not re.match(r"\w+:", target)]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to what is not there: {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_compose(page: Path, tmp_path: Path) -> None:
    for group, target in (("spectrum", "Flat"), ("schedule", "CosineSchedule")):
        (tmp_path / group).mkdir()  # where the commands look for what `multisagd design` wrote
        (tmp_path / group / "designed.yaml").write_text(f"_target_: multisagd.{target}\n")
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    for command, words in re.findall(r"^multisagd (\w+)(.*)$", text, re.MULTILINE):
        settings = [word for word in shlex.split(words, comments=True) if not word.startswith("--")]
        folder = tmp_path if "--config-dir=" in words else None
        if command == "launch":
            assert planned(settings, None if folder is None else str(folder))[1]
        else:
            assert configuration.load(command, settings, folder)


def test_python_of_the_readme_runs() -> None:
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(ROOT / "README.md", "python")):
        exec(compile(block, f"README.md, Python block {number + 1}", "exec"), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (4, 3, 32, 32)
    assert bool(images.isfinite().all())


def test_python_of_the_tutorial_on_design_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(ROOT / "docs" / "tutorials" / "schedule-design.md", "python"):
        exec(compile(block, "schedule-design.md", "exec"), {})
    designed, cosine = (float(line.split(": ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines())
    assert designed < cosine


def test_python_of_the_tutorial_on_corruption_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(ROOT / "docs" / "tutorials" / "selective-omission.md", "python"):
        exec(compile(block, "selective-omission.md", "exec"), {})
    before, after = (float(word) for word in re.findall(r"\d+\.\d+", capsys.readouterr().out))
    assert after < before / 5
