"""The report of an image, an audio and a video run works in a browser: by keyboard, in dark mode and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from recipes.config import compose as configuration
from recipes.report import report
from recipes.train import train
from tests.helpers.browser import browser, complaints, needs_browser, show_as
from tests.helpers.every_modality import MODALITIES
from tests.helpers.tiny import TINY

pytestmark = needs_browser
RUNS = {
    "image": [*MODALITIES["image"], "spectrum=power_law"],
    "audio": [*MODALITIES["spectrogram"], "modality.seconds=0.256", "modality.representation.hop=8"],
    "video": MODALITIES["video"],
}
QUICK = [word for word in TINY if word != "modality.size=8"]  # that of images
QUICK += ["validation.holdout=2", "training.samples=32", "training.warmup=0", "sampling.count=2"]
QUICK += ["every.samples=16", "every.validation=16", "every.checkpoint=0"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train, sample and report runs of three media."""
    root = tmp_path_factory.mktemp("pages")
    paths = {}
    for name, words in RUNS.items():
        train(configuration.load("train", [*words, *QUICK, f"run_dir={root / name}"]))
        arguments = [f"run_dir={root / name}", "samples=2", "steps=2", "examples=1"]
        paths[name] = report(configuration.load("report", arguments))
    return paths


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def image(driver: Chrome, pages: dict[str, Path]) -> Chrome:
    """The browser with the report of images."""
    driver.get(pages["image"].as_uri())
    return driver


@pytest.mark.parametrize("name", RUNS)
def test_report_page_opens_without_errors_and_fits_a_phone(driver: Chrome, pages: dict[str, Path], name: str) -> None:
    for scheme, phone in (("light", False), ("dark", True)):
        show_as(driver, scheme, phone)  # type: ignore[arg-type]
        driver.get(pages[name].as_uri())
        assert complaints(driver) == []
        wide, window = driver.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
        assert wide <= window
        assert driver.execute_script("return [...document.images].every((each) => each.naturalWidth)")
        assert "This could not be shown" not in driver.find_element(By.TAG_NAME, "main").text
        dark = driver.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
    show_as(driver)
    if name == "image":
        return
    driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    script = """return [...document.querySelectorAll(arguments[0])].map(
        (each) => [each.readyState, each.error, each.duration])"""
    WebDriverWait(driver, 10).until(lambda driver: all(state for state, *_ in driver.execute_script(script, name)))
    media = driver.execute_script(script, name)
    # Two pictures of training, the set as a whole, its two samples, and an example at seven levels of noise.
    assert len(media) >= 12
    assert all(error is None and duration > 0 for _, error, duration in media)


def test_report_page_skips_to_the_content_and_moves_the_slider_by_keys(image: Chrome) -> None:
    image.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    image.switch_to.active_element.send_keys(Keys.ENTER)
    assert image.switch_to.active_element.get_attribute("id") == "main"
    slider = image.find_element(By.CSS_SELECTOR, ".slider input")
    shown = """return [...document.querySelectorAll('.frame img')].filter(
        (each) => each.offsetParent).map((each) => each.src)"""
    (last,) = image.execute_script(shown)
    assert slider.get_attribute("aria-valuetext") == "32 samples seen"
    slider.send_keys(Keys.ARROW_LEFT)
    (first,) = image.execute_script(shown)
    assert first != last
    assert image.find_element(By.CSS_SELECTOR, ".slider output").text == "16 samples seen"


def test_report_page_reads_charts_by_keys_and_hides_curves(image: Chrome) -> None:
    chart = image.find_element(By.ID, "chart-loss")
    drawing, read = (chart.find_element(By.CLASS_NAME, name) for name in ("drawing", "read"))
    drawing.send_keys(Keys.END)
    last = read.text
    assert last.startswith("samples seen 32: training 0.")
    assert "validation 0." in last
    drawing.send_keys(Keys.HOME)
    assert read.text != last
    curve = image.find_element(By.ID, "loss-0")
    assert curve.is_displayed()
    chart.find_element(By.CSS_SELECTOR, "[data-curve='loss-0']").click()
    assert curve.get_attribute("display") == "none"
    drawing.send_keys(Keys.END)
    assert "training" not in read.text
    chart.find_element(By.CSS_SELECTOR, "[data-curve='loss-1']").click()
    drawing.send_keys(Keys.HOME)
    assert read.text == "No visible curve has a point here."


def test_report_page_searches_the_configuration(image: Chrome) -> None:
    settings = image.find_element(By.CLASS_NAME, "settings")

    def keys() -> list[str]:
        shown = "[...arguments[0].querySelectorAll('tbody th')].filter((each) => each.offsetParent)"
        return image.execute_script(f"return {shown}.map((each) => each.textContent)", settings)

    everything = keys()
    settings.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("spectrum exp")
    assert keys() == ["spectrum.exponent"]
    settings.find_element(By.CSS_SELECTOR, "input[type=search]").clear()
    settings.find_element(By.CLASS_NAME, "changed").click()
    assert "network.width" in keys()
    assert len(keys()) < len(everything)


def test_report_page_is_complete_without_scripts(driver: Chrome, pages: dict[str, Path]) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(pages["image"].as_uri())
        frames = driver.find_elements(By.CLASS_NAME, "frame")
        assert [frame.is_displayed() for frame in frames] == [True, True]
        assert not driver.find_element(By.ID, "scheme").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
