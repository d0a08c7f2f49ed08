"""The report of an image, an audio and a video run in a browser: it works by keyboard, in the dark and on a phone."""

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
SMALL = [word for word in TINY if word != "modality.size=8"]  # that of images
QUICK = ["validation.holdout=2", "training.samples=32", "training.warmup=0", "every.samples=16", "every.validation=16",
         "every.checkpoint=0", "sampling.count=2"]  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train, sample and report runs of three media."""
    root = tmp_path_factory.mktemp("pages")
    found = {}
    for name, words in RUNS.items():
        train(configuration.load("train", [*words, *SMALL, *QUICK, f"run_dir={root / name}"]))
        arguments = [f"run_dir={root / name}", "samples=2", "steps=2", "examples=1"]
        found[name] = report(configuration.load("report", arguments))
    return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def opened(driver: Chrome, page: Path) -> Chrome:
    driver.get(page.as_uri())
    return driver


def colour(driver: Chrome, name: str, selector: str = "body") -> str:
    return driver.execute_script(
        "return getComputedStyle(document.querySelector(arguments[1]))[arguments[0]]", name, selector
    )


@pytest.mark.parametrize("name", RUNS)
def test_it_opens_without_complaints_and_fits_a_phone(driver: Chrome, pages: dict[str, Path], name: str) -> None:
    for scheme, phone in (("light", False), ("dark", True)):
        show_as(driver, scheme, phone)  # type: ignore[arg-type]
        opened(driver, pages[name])
        assert complaints(driver) == []
        wide, window = driver.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
        assert wide <= window
        broken = driver.execute_script("return [...document.images].filter((each) => !each.naturalWidth).length")
        assert broken == 0
        assert "This could not be shown" not in driver.find_element(By.TAG_NAME, "main").text
    show_as(driver)


@pytest.mark.parametrize(("name", "tag"), [("audio", "audio"), ("video", "video")])
def test_media_play(driver: Chrome, pages: dict[str, Path], name: str, tag: str) -> None:
    opened(driver, pages[name])
    script = """return [...document.querySelectorAll(arguments[0])].map(
        (each) => [each.readyState, each.error, each.duration])"""
    for part in driver.find_elements(By.CSS_SELECTOR, "details"):
        driver.execute_script("arguments[0].open = true", part)
    WebDriverWait(driver, 10).until(lambda driver: all(state for state, *_ in driver.execute_script(script, tag)))
    found = driver.execute_script(script, tag)
    # Two pictures of training, the set as a whole, its two samples, and an example at seven levels of noise.
    assert len(found) >= 12
    for _, error, duration in found:
        assert error is None
        assert duration > 0


def test_the_slider_is_moved_by_keys(driver: Chrome, pages: dict[str, Path]) -> None:
    opened(driver, pages["image"])
    slider = driver.find_element(By.CSS_SELECTOR, ".slider input")
    shown = """return [...document.querySelectorAll('.frame img')].filter(
        (each) => each.offsetParent).map((each) => each.src)"""
    (last,) = driver.execute_script(shown)
    assert slider.get_attribute("aria-valuetext") == "32 samples seen"
    slider.send_keys(Keys.ARROW_LEFT)
    (first,) = driver.execute_script(shown)
    assert first != last
    assert slider.get_attribute("aria-valuetext") == "16 samples seen"
    assert driver.find_element(By.CSS_SELECTOR, ".slider output").text == "16 samples seen"


def test_charts_are_read_by_keys_and_pointer_and_hide_curves(driver: Chrome, pages: dict[str, Path]) -> None:
    opened(driver, pages["image"])
    chart = driver.find_element(By.ID, "chart-loss")
    drawing, read = (chart.find_element(By.CLASS_NAME, name) for name in ("drawing", "read"))
    drawing.send_keys(Keys.END)
    last = read.text
    assert last.startswith("samples seen 32: training 0.")
    assert "validation 0." in last
    drawing.send_keys(Keys.HOME)
    assert read.text != last
    curve = driver.find_element(By.ID, "loss-0")
    assert curve.is_displayed()
    chart.find_element(By.CSS_SELECTOR, "[data-curve='loss-0']").click()
    assert curve.get_attribute("display") == "none"
    drawing.send_keys(Keys.END)
    assert "training" not in read.text
    chart.find_element(By.CSS_SELECTOR, "[data-curve='loss-1']").click()
    drawing.send_keys(Keys.HOME)
    assert read.text == "No curve that is shown has a point here."
    # Whoever moves by keys sees what is read, and not only the chart.
    driver.execute_script("arguments[0].scrollIntoView({block: 'end'})", drawing)
    below = "return arguments[0].getBoundingClientRect().bottom > innerHeight + 1"
    assert driver.execute_script(below, read)
    drawing.send_keys(Keys.END)
    assert not driver.execute_script(below, read)


def test_colours_follow_the_system_and_the_switch(driver: Chrome, pages: dict[str, Path]) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        show_as(driver, scheme)  # type: ignore[arg-type]
        opened(driver, pages["image"])
        seen[scheme] = [colour(driver, "backgroundColor"), colour(driver, "color")]
        seen[scheme] += [colour(driver, "stroke", "#loss-0 path"), colour(driver, "fill", "#chart-loss text")]
    assert not set(seen["light"]) & set(seen["dark"])
    assert "rgb(255, 255, 255)" in seen["light"]
    show_as(driver, "light")
    opened(driver, pages["image"])
    driver.find_element(By.ID, "scheme").send_keys("dark")
    assert colour(driver, "backgroundColor") == seen["dark"][0]
    driver.find_element(By.ID, "scheme").send_keys("of")


def test_the_configuration_is_searched(driver: Chrome, pages: dict[str, Path]) -> None:
    opened(driver, pages["image"])
    settings = driver.find_element(By.CLASS_NAME, "settings")

    def keys() -> list[str]:
        shown = "[...arguments[0].querySelectorAll('tbody th')].filter((each) => each.offsetParent)"
        return driver.execute_script(f"return {shown}.map((each) => each.textContent)", settings)

    everything = keys()
    settings.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("spectrum exp")
    assert keys() == ["spectrum.exponent"]
    settings.find_element(By.CSS_SELECTOR, "input[type=search]").clear()
    settings.find_element(By.CLASS_NAME, "changed").click()
    assert "network.width" in keys()
    assert len(keys()) < len(everything)


def test_the_first_key_leads_to_the_content(driver: Chrome, pages: dict[str, Path]) -> None:
    opened(driver, pages["image"])
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = driver.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert colour(driver, "outlineStyle", ".skip") == "solid"
    skip.send_keys(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("id") == "main"


def test_without_scripts_all_is_there(driver: Chrome, pages: dict[str, Path]) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(driver, pages["image"])
        frames = driver.find_elements(By.CLASS_NAME, "frame")
        assert [frame.is_displayed() for frame in frames] == [True, True]
        assert not driver.find_element(By.ID, "scheme").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
