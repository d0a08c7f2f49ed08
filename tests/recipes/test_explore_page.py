"""The page of `multisagd explore` in a browser, in one test, because starting it takes longer than all of its steps."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from recipes.config import compose as configuration
from tests.helpers.browser import addresses, browser, complaints, needs_browser, show_as

pytest.importorskip("gradio", reason="needs gradio: pip install 'multisagd[explore]'")
PATIENCE = 60.0


class Served:
    """The running command: its process, the address it printed, and its folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-u", "-m", "recipes.explore", "sizes.image=32", "sizes.clip=32", "threads=1"]
        # A proxy, as many networks require, does not know this machine: here there is none at its address.
        environment = {**os.environ, "TMPDIR": str(folder), "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("exploring at http://127.0.0.1:"), first + self.process.stdout.read()
        assert self.process.stdout.readline() == "Press Ctrl-C to stop and to remove uploaded files\n"
        self.address = first.split()[-1]


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a value is true and return it; elements may be replaced meanwhile."""
    return WebDriverWait(None, PATIENCE, 0.05, [Exception]).until(lambda _: condition())


def pictures(driver: Chrome, place: str) -> list[str]:
    """Return the pictures of a place as their data, white and shaped in turn."""
    return [str(each.get_attribute("src")) for each in driver.find_elements(By.CSS_SELECTOR, f"#{place} img")]


def text(driver: Chrome, place: str) -> str:
    lines = driver.find_elements(By.CSS_SELECTOR, f"#{place} .cm-line")
    return "\n".join(line.text for line in lines)


def number(driver: Chrome, name: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, f"#{name} input[type=number]")


def open_tab(driver: Chrome, title: str) -> None:
    next(each for each in driver.find_elements(By.CSS_SELECTOR, "button[role=tab]") if each.text == title).click()


def check_slider_changes_shaped_noise_and_keeps_white(driver: Chrome) -> None:
    before = until(lambda: pictures(driver, "image-now"))
    until(lambda: "exponent: -0.5" in text(driver, "image-config"))
    start = time.monotonic()
    driver.find_element(By.CSS_SELECTOR, "#image-exponent input[type=range]").send_keys(Keys.ARROW_LEFT)
    until(lambda: "exponent: -0.51" in text(driver, "image-config"))
    after = until(lambda: (now := pictures(driver, "image-now"))[1] != before[1] and now)
    assert time.monotonic() - start < 10  # a second where the machine does nothing else
    assert after[0] == before[0]  # white noise, from the same seed
    assert after[2] == before[2]


def check_numbers_are_limited_to_their_range(driver: Chrome) -> None:
    field = number(driver, "image-exponent")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("50")
    until(lambda: "exponent: 1" in text(driver, "image-config"))
    field.send_keys(Keys.TAB)
    assert until(lambda: field.get_attribute("value") == "1")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("-50", Keys.TAB)
    until(lambda: "exponent: -2" in text(driver, "image-config"))


def check_export_composes(driver: Chrome, tmp_path: Path) -> None:
    field = number(driver, "image-exponent")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("-1.2", Keys.ENTER)
    until(lambda: "exponent: -1.2" in text(driver, "image-config"))
    (tmp_path / "spectrum").mkdir()
    exported = text(driver, "image-config")
    (tmp_path / "spectrum" / "explored.yaml").write_text(exported, encoding="utf-8")
    words = text(driver, "image-command").replace("\\\n", " ").split()
    config = configuration.load("train", words[3:], tmp_path)
    assert config["spectrum"] == yaml.safe_load(exported)
    link = until(lambda: driver.find_element(By.CSS_SELECTOR, "#image-download a"))
    assert link.get_attribute("download") == "explored.zip"


def check_own_image_is_shown_or_refused(driver: Chrome, tmp_path: Path) -> None:
    before = pictures(driver, "image-forward")
    PIL.Image.linear_gradient("L").resize((32, 32)).save(tmp_path / "own.png")
    driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "own.png"))
    until(lambda: (now := pictures(driver, "image-forward")) and now[0] != before[0])
    assert "data=folder" in text(driver, "image-command")
    driver.find_element(By.CSS_SELECTOR, "button[aria-label^='Remove'], button[aria-label='Clear']").click()
    until(lambda: pictures(driver, "image-forward")[0] == before[0])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "broken.png"))
    message = until(lambda: driver.find_element(By.CSS_SELECTOR, "#image-message [role=alert]").text)
    assert message.startswith("broken.png cannot be used: its content is in none of the formats")
    assert pictures(driver, "image-forward")[0] == before[0]


def check_sounds_and_clips_play(driver: Chrome) -> None:
    open_tab(driver, "Audio")
    until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#audio-forward audio")) == 12)
    seconds = driver.execute_async_script(
        """const done = arguments[0], sound = document.querySelector('#audio-now audio');
        sound.onloadedmetadata = () => done(sound.duration); sound.onerror = () => done(-1); sound.load();"""
    )
    assert seconds == pytest.approx(2.0)
    assert "data=plucked_strings" in text(driver, "audio-command")
    open_tab(driver, "Video")
    until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#video-forward video")) == 12)
    until(lambda: driver.execute_script("return document.querySelector('#video-now video').readyState") >= 2)
    clip = driver.execute_script(
        "const clip = document.querySelector('#video-now video'); return [clip.duration, clip.videoWidth, clip.paused]"
    )
    assert clip == [pytest.approx(2.0, abs=0.01), 32, False]
    until(lambda: "multisagd.Autoregressive" in text(driver, "video-config"))


def check_dark_phone_needs_no_sideways_scrolling(driver: Chrome) -> None:
    try:
        show_as(driver, "dark", phone=True)
        width = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert width[0] <= width[1] == 390
        axes = until(lambda: driver.find_element(By.CSS_SELECTOR, "#video-spectra svg text"))
        light = driver.execute_script("return getComputedStyle(arguments[0]).fill.match(/\\d+/g).map(Number)", axes)
        assert min(light) > 180  # text of curves as of the page: light on dark
    finally:
        show_as(driver, "light")


def check_nothing_leaves_this_machine(driver: Chrome, served: Served) -> None:
    until(lambda: driver.find_elements(By.CSS_SELECTOR, "#video-design svg"))
    requested = addresses(driver)
    assert len(requested) > 10
    assert [address for address in requested if not address.startswith(served.address)] == []
    # gradio's own client logs this warning whenever an answer is complete.
    assert [each for each in complaints(driver) if not each.endswith('"Method not implemented."')] == []
    for path in ("/etc/hostname", str(Path(__file__)), "pyproject.toml", str(served.folder)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served.address}gradio_api/file={path}")
        assert refused.value.code in (403, 404)


def check_ctrl_c_waits_for_computations_and_removes_uploads(driver: Chrome, served: Served) -> None:
    assert list(served.folder.rglob("own.png"))
    driver.find_element(By.CSS_SELECTOR, "#video-time input[type=range]").send_keys(*[Keys.ARROW_LEFT] * 5)
    time.sleep(0.3)  # rendering the videos takes longer
    served.process.send_signal(signal.SIGINT)
    output, _ = served.process.communicate(timeout=PATIENCE)
    assert served.process.returncode == 0
    assert output.endswith("the explorer has stopped\n")
    assert "Traceback" not in output
    # Importing torchvision makes PyTorch leave a folder of its own there.
    assert [each for each in served.folder.iterdir() if not each.name.startswith("torchinductor_")] == []


@needs_browser
@pytest.mark.slow
def test_explore_page_works_from_the_first_drag_to_its_end(tmp_path: Path) -> None:
    for name in ("served", "profile"):
        (tmp_path / name).mkdir()
    served = Served(tmp_path / "served")
    try:
        with browser(tmp_path / "profile") as driver:
            driver.get(served.address)
            check_slider_changes_shaped_noise_and_keeps_white(driver)
            check_numbers_are_limited_to_their_range(driver)
            check_export_composes(driver, tmp_path)
            check_own_image_is_shown_or_refused(driver, tmp_path)
            check_sounds_and_clips_play(driver)
            check_dark_phone_needs_no_sideways_scrolling(driver)
            check_nothing_leaves_this_machine(driver, served)
            check_ctrl_c_waits_for_computations_and_removes_uploads(driver, served)
    finally:
        served.process.kill()
        served.process.wait()
