"""Take the screenshots of docs/reports.md from reports of real runs, in a headless Chromium: a minute on two CPU cores.

python docs/make_report_pictures.py WHITE SHAPED SOUNDS CLIPS

names the folders of four runs, of which the last two have samples in `sampled`; nothing is written to them. The output
is docs/images/report-comparison.png, report-process.png, report-audio.png and report-video.png.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import PIL.Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from recipes.report import ReportSettings, write_report

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"

PATIENCE = 60.0

sys.path.insert(0, str(ROOT / "tests"))
from browser import browser, show_as  # noqa: E402 - the tests' own browser


def page(folder: Path, run_dir: str, others: Sequence[str] = (), names: tuple[str, ...] | None = None) -> Path:
    """Write the report of a run to another folder."""
    out = folder / f"{Path(run_dir).name}.html"
    settings = ReportSettings(
        Path(run_dir), tuple(map(Path, others)), names, out, media=6, allow_targets=("benchmarks",)
    )
    return write_report(settings)[0]


def take(driver: Chrome, name: str, section: str, height: int, width: int = 1280, scale: float = 0.8) -> None:
    """Write the page from the head of a section on, at most `width` × `height` points, as a PNG."""
    ready = "return [...document.querySelectorAll('audio, video')].every((each) => each.readyState)"
    WebDriverWait(driver, PATIENCE).until(lambda driver: driver.execute_script(ready))
    driver.set_script_timeout(PATIENCE)
    driver.execute_async_script("Promise.all([...document.images].map((each) => each.decode())).then(arguments[0])")
    time.sleep(2)  # media are decoded and painted
    top = 0 if section == "summary" else driver.find_element(By.ID, section).location["y"]
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    size = (round(width * scale), round(height * scale))
    few = picture.resize(size, PIL.Image.Resampling.LANCZOS).quantize(256, PIL.Image.Quantize.FASTOCTREE)
    few.save(IMAGES / name, optimize=True)
    print(IMAGES / name, f"{(IMAGES / name).stat().st_size / 1000:.0f} kB")


def main(white: str, shaped: str, sounds: str, clips: str) -> None:
    """Write the reports and take the screenshots."""
    with TemporaryDirectory() as folder, browser(Path(folder) / "profile") as driver:
        root = Path(folder)
        show_as(driver, "light")
        driver.get(page(root, white, [shaped], ("white", "power law")).as_uri())
        take(driver, "report-comparison.png", "summary", 1640)
        driver.get(page(root, shaped).as_uri())
        take(driver, "report-process.png", "process", 1500, scale=0.7)
        show_as(driver, "dark")
        driver.get(page(root, sounds).as_uri())
        take(driver, "report-audio.png", "samples", 1150)
        show_as(driver, "light", phone=True)
        driver.get(page(root, clips).as_uri())
        take(driver, "report-video.png", "samples", 1100, 390, 1.0)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
