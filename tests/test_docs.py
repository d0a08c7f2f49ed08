"""Links and blocks of README, CONTRIBUTING and docs are right, and what readers can run does what its page says.

The documentation site builds strictly and without network, and its pages work in a browser.

Blocks run in the order of their page, in an empty folder. Python shares one namespace per page; commands get the words
of `quick`, which make them small, and the files of `GIVEN`, which readers have or download. A block that begins
with the name of a file is written to that file; if it is Python, it is run as well.
"""

import importlib
import importlib.util
import inspect
import os
import posixpath
import re
import runpy
import shlex
import socket
import sys
import tomllib
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import multisagd
from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.cli import main as cli
from recipes.cli.command import take_option
from recipes.config import compose as configuration
from recipes.launch import planned
from tests.helpers.browser import browser, complaints, needs_browser, show_as
from tests.helpers.pages import GIVEN, PAGES, ROOT, RUNNABLE, Block, blocks_of, quick
from tests.helpers.web_server import serving

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


ON_DATA = ("docs/tutorials/schedule-design.md", "docs/tutorials/conditioning.md")
"""These read MNIST and spoken digits."""
QUOTED = "the output of the block above"
"""The reason that marks a block as the output of the Python block before it."""
RUN = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]
FAST = ("README.md", "docs/faq.md", "docs/first-model.md", "docs/tutorials/your-own-modality.md")
"""The pages that everybody starts with are run by `make test`, the others by `make test-slow`."""


def numbers(text: str, pattern: str = r"-?\d+\.\d+") -> list[float]:
    return [float(word) for word in re.findall(pattern, text)]


def alike(shown: str, printed: str) -> bool:
    """Whether the words are the same, and the numbers too except for the last digits, which differ by machine."""
    number = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
    same = re.sub(number, "#", shown).split() == re.sub(number, "#", printed).split()
    return same and numbers(shown, number) == pytest.approx(numbers(printed, number), rel=0.1, abs=0.01)


def check_results(page: str, names: dict[str, Any], printed: list[str]) -> None:
    """Check what a page says of its results, from its variables and the output of each of its Python blocks."""
    if page == "README.md":
        assert names["images"].shape == (4, 3, 32, 32)
        assert bool(names["images"].isfinite().all())
    elif page == "docs/tutorials/inverse-problems.md":
        error, left = numbers(next(text for text in printed if text.startswith("mean of guided samples")))
        assert error < 0.2 * left
    elif page == "docs/tutorials/schedule-design.md":
        designed, cosine = (numbers(line)[0] for line in printed[-1].splitlines())
        assert designed < cosine
    elif page == "docs/tutorials/selective-omission.md":
        before, after = numbers(printed[-1])
        assert after < before / 5
    elif page == "docs/tutorials/your-own-modality.md":
        assert len(list(Path("runs/ecg/sampled").glob("*/samples/*.txt"))) == 4
        assert len(list(Path("runs/volumes/sampled").glob("*/samples/*.npy"))) == 4
        assert len(list(Path("runs").glob("*/samples/*.png"))) == 2
    elif page == "docs/tutorials/fields.md":
        assert len(printed[-1].splitlines()) == 3


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("page", [page if page in FAST else pytest.param(page, marks=pytest.mark.slow) for page in RUN])
def test_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page in ON_DATA and not os.environ.get("MULTISAGD_DATA"):
        pytest.skip("set MULTISAGD_DATA to run the pages on MNIST and spoken digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for make in GIVEN.get(page, ()):
        make(tmp_path)
    modules, names, printed = set(sys.modules), {"__name__": page}, []
    try:
        for block in blocks_of(page):
            if block.reason == QUOTED:
                assert alike(block.text, printed[-1]), f"{block}: the block above printed\n{printed[-1]}"
            elif block.reason is None:
                capsys.readouterr()
                run(block, names)
                output = capsys.readouterr().out
                if block.language == "python":
                    assert not re.search(r"\b(nan|inf)\b", output), f"{block}: {output}"
                    printed.append(output)
    finally:
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
    check_results(page, names, printed)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run one block in the working directory."""
    if block.file is not None:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            runpy.run_path(block.file, run_name="__main__")
    elif block.language == "python":
        exec(compile("\n" * block.line + block.text, str(ROOT / block.page), "exec"), names)
    elif block.language == "bash":
        for command in block.commands():
            words = shlex.split(command, comments=True)
            if words[0] == "python" and words[1].endswith(".py"):
                path = Path(words[1]) if Path(words[1]).exists() else ROOT / words[1]
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", words[1:])
                    patch.syspath_prepend(str(path.parent))
                    runpy.run_path(str(path), run_name="__main__")
            else:
                assert words[0] == "multisagd", f"{block}: this cannot be run here: {command}"
                assert cli.main([*words[1:], *quick(words[1], words[2:])]) == 0, f"{block}: {command}"


EXAMPLES = {
    "audio_from_scratch.py": (r"2 audio clips of 0\.26 s", "strings.wav"),
    "image_from_scratch.py": (r"step 0: loss 0\.6\d+", "digits.png"),
    "inverse_problem.py": (r"Gaussian posterior: error 0\.\d+ on the missing", "restored.png"),
    "schedule_design.py": (r"│ 4 +│ 0\.1\d+ +│ 1\.1\d+ +│ 1\.4\d+ +│", "steps.json"),
    "shaped_vs_white.py": (r"│ 0\.00 +│( [+-]\d+\.\d+ +│){3}", None),
}
"""What an example prints, and the file that it writes."""


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_example_runs_and_writes_its_files(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [script, "--small"])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    printed, (expected, file) = capsys.readouterr().out, EXAMPLES.get(script, (r"\S", None))
    assert re.search(expected, printed), printed
    assert not re.search(r"\b(nan|inf)\b", printed), printed
    assert file is None or (tmp_path / file).stat().st_size > 100
    assert f"]({script})" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


CONFIG = ROOT / "mkdocs.yml"
INCLUDED = {"index.md", "contributing.md", "changelog.md", "examples.md"}
REFERENCE = {
    module
    for page in (ROOT / "docs" / "reference").glob("*.md")
    for module in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
PUBLIC = [
    *("multisagd", "multisagd.networks", "multisagd.analysis", "multisagd.integrations", "multisagd.testing"),
    *(f"multisagd.metrics.{path.stem}" for path in sorted((ROOT / "multisagd" / "metrics").glob("[a-z]*.py"))),
    *("modalities.base", "modalities.latent", "recipes.export", "recipes.sharing.pipeline"),
]
"""Modules and packages whose public names the reference has."""
INTERNAL = {"multisagd.analysis.search", "multisagd.integrations.architectures"}
"""Modules of these that are not public."""


def pages_of(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_navigation_has_every_page_once() -> None:
    named = list(pages_of(yaml.safe_load(CONFIG.read_text())["nav"]))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(named) == there | INCLUDED
    assert len(named) == len(set(named))


def public_names(module: str) -> Iterator[tuple[str, str]]:
    """Return the public names of a module or of a package's modules, and the modules that define them."""
    namespace = importlib.import_module(module)
    if hasattr(namespace, "__path__") and not hasattr(namespace, "__all__"):
        for path in sorted(Path(namespace.__path__[0]).glob("[a-z]*.py")):
            yield from public_names(f"{module}.{path.stem}")
        return
    for name, value in vars(namespace).items():
        own = getattr(value, "__module__", None) == module and (inspect.isclass(value) or inspect.isfunction(value))
        if name in getattr(namespace, "__all__", ()) or (own and not name.startswith("_")):
            yield name, value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", module)


def test_reference_has_every_public_name() -> None:
    names = {pair for module in PUBLIC for pair in public_names(module)}
    missing = {f"{where}.{name}" for name, where in names if where not in {*REFERENCE, *INTERNAL}}
    assert not missing, "put ::: and their module on a page of docs/reference"
    assert set(multisagd.__all__) <= {name for name, _ in names}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every connection refused."""
    reason = "needs the documentation's tools (.[docs])"
    build, config = (pytest.importorskip(f"mkdocs.{name}", reason=reason) for name in ("commands.build", "config"))
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", Mock(side_effect=AssertionError("the build opens a connection")))
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build.build(config.load_config(str(CONFIG), site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_site_links_lead_to_its_own_pages_and_anchors(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        tags = re.findall(r"<(?:script|link|img|iframe|video|audio|source)\b[^>]*>", text)
        outside = [tag for tag in tags if re.search(r'\b(?:src|href)="?(?:https?:)?//', tag) and "canonical" not in tag]
        assert not outside, f"{page}: {outside}"
        # Links of the error page count from the root of whatever serves it.
        targets = re.findall(r'\b(?:href|src)="([^"]+)"', text) if page != "404.html" else []
        for target in (target for target in targets if not re.match(r"\w+:", target)):
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            path = f"{path}/index.html".removeprefix("./") if (site / path).is_dir() else path
            if not (site / path).is_file() or (anchor and path in anchors and anchor not in anchors[path]):
                broken.append(f"{page}: {target}")
    assert not broken, "\n".join(broken[:20])
    assert all(f">{name}</code>" in pages["reference/index.html"] for name in multisagd.__all__)
    assert "<!-- not run:" not in "".join(text for page, text in pages.items() if not page.startswith("source/"))


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with serving(site, parts=False) as address:
        yield address


SHOWN = [
    ("index.html", "light", False), ("index.html", "dark", True), ("tutorials/your-own-modality.html", "light", True),
    ("reference/spectra.html", "dark", False), ("reference/index.html", "light", True), ("results.html", "dark", True),
    ("source/multisagd/grid.py.html", "light", False), ("theory.html", "light", True),
]  # fmt: skip
"""Page, colour scheme and whether it is shown on a phone."""


@pytest.mark.slow
@needs_browser
def test_site_pages_work_in_a_browser(address: str, tmp_path: Path) -> None:
    with browser(tmp_path) as driver:
        for page, scheme, phone in SHOWN:
            show_as(driver, scheme, phone)  # type: ignore[arg-type]
            driver.get(f"{address}/{page}")
            where = f"{page}, {scheme}, {'phone' if phone else 'desktop'}"
            assert complaints(driver) == [], where
            loaded = driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
            assert loaded, where
            assert all(each.startswith(address) for each in loaded), where
            width, window = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert width <= window, f"{where}: {width} points wide"
            broken = "[...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src)"
            assert driver.execute_script(f"return {broken}") == [], where
            colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", colour)[:3])) < 100) == (scheme == "dark"), where
        show_as(driver)
        driver.get(f"{address}/index.html")
        box = driver.find_element(By.CSS_SELECTOR, "input.md-search__input")
        box.click()
        box.send_keys("SpectralCovariance")
        links = WebDriverWait(driver, 20).until(
            lambda page: page.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        )
        assert any("reference/covariance" in (link.get_attribute("href") or "") for link in links)
        assert complaints(driver) == []
