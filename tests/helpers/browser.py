"""A headless Chromium for tests of pages: no access to other machines, and the messages of the console."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Chromium and chromedriver (Debian: chromium chromium-driver)"
)


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[webdriver.Chrome]:
    """Start Chromium with a new profile in the folder `profile`, and stop it."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show_as(driver: webdriver.Chrome, scheme: Literal["light", "dark"] = "light", phone: bool = False) -> None:
    """Show pages in light or dark mode, and on a phone of 390 points' width or not."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if phone:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    else:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def complaints(driver: webdriver.Chrome) -> list[str]:
    """Return and clear the warnings and errors of the console; none if the page is in order."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def addresses(driver: webdriver.Chrome) -> list[str]:
    """Return and clear the addresses that pages have requested from the network, answered or not."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    # Not embedded content (data:, blob:), nor the browser's own first page (chrome:).
    return [url for url in urls if url.startswith(("http", "ws", "ftp"))]
