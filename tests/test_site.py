"""The documentation site builds strictly and without network, and its pages work in a browser."""

import functools
import http.server
import importlib
import inspect
import posixpath
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import multisagd
from tests.helpers.blocks import ROOT
from tests.helpers.browser import browser, complaints, needs_browser, show_as

mkdocs = pytest.importorskip("mkdocs.commands.build", reason="needs the documentation's tools (.[docs])")
from mkdocs.config import load_config  # noqa: E402
from mkdocs.exceptions import Abort  # noqa: E402

CONFIG = ROOT / "mkdocs.yml"
INCLUDED = {"index.md", "contributing.md", "changelog.md", "examples.md"}
REFERENCE = {
    module: page.stem
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
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


def undocumented(pages: dict[str, str]) -> set[str]:
    """Return the public names whose module is on none of the pages, which map a module to its page."""
    names = [pair for module in PUBLIC for pair in public_names(module)]
    return {f"{where}.{name}" for name, where in names if where not in {*pages, *INTERNAL}}


def test_reference_has_every_public_name() -> None:
    assert not undocumented(REFERENCE), "put ::: and their module on a page of docs/reference"
    others = {module: page for module, page in REFERENCE.items() if module != "multisagd.radial"}
    assert "multisagd.radial.PowerLaw" in undocumented(others)
    assert set(multisagd.__all__) <= {name for name, _ in public_names("multisagd")}


def test_site_build_refuses_pages_outside_the_navigation_and_broken_links(tmp_path: Path) -> None:
    ours = yaml.safe_load(CONFIG.read_text())
    kept = {key: ours[key] for key in ("site_name", "strict", "validation")}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Here\n")
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**kept, "nav": ["index.md"]}))
    mkdocs.build(load_config(str(tmp_path / "mkdocs.yml")))
    for name, text in {"other.md": "# There\n", "index.md": "[there](none.md)\n"}.items():
        (tmp_path / "docs" / name).write_text(text)
        with pytest.raises(Abort):
            mkdocs.build(load_config(str(tmp_path / "mkdocs.yml")))
        (tmp_path / "docs" / "other.md").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every connection refused."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the build connects to {arguments[1:]}")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        mkdocs.build(load_config(str(CONFIG), site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_site_links_lead_to_pages_and_anchors(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        if page == "404.html":  # its links count from the root of whatever serves it
            continue
        for target in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"\w+:", target):
                continue
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            path = f"{path}/index.html".removeprefix("./") if (site / path).is_dir() else path
            if not (site / path).is_file() or (anchor and path in anchors and anchor not in anchors[path]):
                broken.append(f"{page}: {target}")
    assert not broken, "\n".join(broken[:20])
    names = pages["reference/index.html"]
    assert all(f">{name}</code>" in names for name in multisagd.__all__)
    assert "<!-- not run:" not in "".join(text for page, text in pages.items() if not page.startswith("source/"))
    assert "&lt;!-- not run: needs eight GPUs --&gt;" in pages["contributing.html"]


@pytest.mark.slow
def test_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for path in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|video|audio|source)\b[^>]*>", path.read_text(encoding="utf-8"))
        outside = [tag for tag in tags if re.search(r'\b(?:src|href)="?(?:https?:)?//', tag) and "canonical" not in tag]
        assert not outside, f"{path.relative_to(site)}: {outside}"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


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
