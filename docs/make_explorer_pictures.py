"""Take the screenshots of docs/explore.md from the page itself, in headless Chromium: about a minute on two CPU cores.

python docs/make_explorer_pictures.py       # docs/images/explore-image.png, explore-audio.png and explore-video.png
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import PIL.Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from recipes.explorer.media import Sizes

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WIDTH = 1280
PATIENCE = 60.0
SCALE = 0.7
COLOURS = 256
"""Number of colours of a screenshot: images of noise do not compress."""

sys.path.insert(0, str(ROOT / "tests"))
from browser import browser, show_as  # noqa: E402 - the tests' own browser


def wait(driver: Chrome, medium: str) -> None:
    """Wait until a tab is complete; the designed steps are shown last."""
    deadline = time.monotonic() + PATIENCE
    while not driver.find_elements(By.CSS_SELECTOR, f"#{medium}-design svg"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the {medium} was not shown within {PATIENCE:g} s")
        time.sleep(0.1)
    time.sleep(2)  # images are decoded and clips begin to play


def take(driver: Chrome, path: Path, height: int) -> None:
    """Save the page down to a height in points, downscaled, as a PNG with few colours."""
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(1)
    shot = PIL.Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    shot = shot.resize((round(shot.width * SCALE), round(shot.height * SCALE)), PIL.Image.Resampling.LANCZOS)
    shot.quantize(COLOURS, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Serve the page, and take the screenshots."""
    from recipes.explore import ExploreSettings, serve

    with TemporaryDirectory() as folder:
        settings = ExploreSettings("127.0.0.1", None, (), Sizes(), 100, None)
        page, address = serve(settings, Path(folder))
        with browser(Path(folder) / "profile", WIDTH) as driver:
            driver.get(address)
            for medium in ("image", "audio", "video"):
                if medium != "image":
                    tabs = driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
                    next(tab for tab in tabs if tab.text == medium.title()).click()
                wait(driver, medium)
                if medium == "video":
                    show_as(driver, "dark")
                take(driver, IMAGES / f"explore-{medium}.png", 1000 if medium == "audio" else 1290)
        page.close(verbose=False)


if __name__ == "__main__":
    main()
