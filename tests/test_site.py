"""The documentation site builds strictly and without network, and its pages work in a browser."""

import importlib
import inspect
import posixpath
import re
import socket
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
from tests.helpers.blocks import ROOT
from tests.helpers.browser import browser, complaints, needs_browser, show_as
from tests.helpers.web_server import serving

mkdocs = pytest.importorskip("mkdocs.commands.build", reason="needs the documentation's tools (.[docs])")
from mkdocs.config import load_config  # noqa: E402

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
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", Mock(side_effect=AssertionError("the build opens a connection")))
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        mkdocs.build(load_config(str(CONFIG), site_dir=str(folder)))
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
