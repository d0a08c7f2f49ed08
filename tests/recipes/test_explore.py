"""The explorer shows noise and spectra as defined, exports what trains, explains errors, and refuses other sites."""

import base64
import http.client
import io
import itertools
import math
import re
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
import yaml

import multisagd as ms
from modalities.audio import write_wav
from modalities.audio_figures import spectrogram_pixels
from modalities.base import Dataset, Modality
from modalities.browser_media import file_content, png
from multisagd.analysis.design import DesignedSteps
from multisagd.analysis.profiles import axis_profile
from multisagd.multitaper import statistics_of_one
from recipes.base.errors import RecipeError
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.explore import ExploreSettings, OwnAddress, serve
from recipes.explorer.configuration import (
    ALL,
    Settings,
    archive,
    axes_choices,
    first_values,
    kind,
    spectrum_group,
    spectrum_yaml,
)  # fmt: skip
from recipes.explorer.media import MEDIA, Example, Sizes, built_in, own_file
from recipes.explorer.process import SCHEDULES, Pair, build_process, design_steps
from recipes.explorer.rendering import POINTS, media_table, spectra_charts, steps_chart, thinned
from recipes.runs.schedules import build_schedule

SMALL = Sizes(image=32, rate=4000, seconds=0.25, frames=8, clip=16)
SHOWN = [(name, written_as) for name, medium in MEDIA.items() for written_as in medium.representations]


def shown(name: str, representation: str | None = None, example: str | None = None) -> Example:
    medium = MEDIA[name]
    example, representation = example or list(medium.examples)[-1], representation or next(iter(medium.representations))
    return built_in(medium, example, representation, SMALL)


def chosen(subject: Example, name: str, axes: str | None = None, **more: Any) -> Settings:
    axes = axes_choices(subject.grid)[0] if axes is None else axes
    return Settings(name, axes, first_values(name, subject.grid, axes) | more.pop("values", {}), **more)


def pair_of(subject: Example, settings: Settings) -> Pair:
    return Pair.of(subject, settings, spectrum_group(settings, subject))


def spectrum_of(group: Any, **context: Any) -> ms.Spectrum:
    return Builder().build(group, ms.Spectrum, "spectrum", **context)


def test_pair_filters_one_white_noise_by_the_chosen_power_law() -> None:
    subject = shown("image")
    pair = pair_of(subject, chosen(subject, "power_law", values={"exponent": -0.8, "corner": 0.06}, seed=5))
    radius = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32))
    power = np.maximum(radius, 0.06) ** -1.6
    counted = np.full(17, 2.0)
    counted[[0, -1]] = 1
    power /= (power * counted).sum() / 32**2
    white = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(ms.seeds.derive(5, "explore")))
    assert torch.equal(pair.noises["white"], white)
    expected = np.fft.irfft2(np.sqrt(power) * np.fft.rfft2(white[0].numpy()), s=(32, 32))
    np.testing.assert_allclose(pair.noises["shaped"][0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("medium", "representation"), SHOWN)
def test_pair_noises_and_decodes_as_the_process_defines(medium: str, representation: str) -> None:
    subject = shown(medium, representation)
    pair = pair_of(subject, chosen(subject, "power_law", schedule="flow", shift=2.0))
    for name, noise in pair.noises.items():
        sigma = 2 * 0.4 / (1 + 0.4)  # flow matching, shifted: sσ/(1 + (s-1)σ)
        expected = ((1 - sigma) * subject.x0 + sigma * noise) / math.hypot(1 - sigma, sigma)
        torch.testing.assert_close(pair.noisy_example(name, 0.4), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pair.media_at(0.4)[name], subject.modality.decode(expected), atol=1, rtol=0)
    noise_media = subject.modality.decode(subject.statistics.sigma_data * pair.noises["white"])
    torch.testing.assert_close(pair.noise_media()["white"], noise_media)


@pytest.mark.parametrize(("medium", "representation"), SHOWN)
def test_spectrum_yaml_builds_the_covariance_that_is_shown(medium: str, representation: str) -> None:
    subject = shown(medium, representation)
    for name, axes in itertools.product(MEDIA[medium].kinds, axes_choices(subject.grid)):
        if name == "hum_free" and representation == "spectrogram":
            continue  # there are no frequencies of sound along the time of a spectrogram
        values = {"corner": 0.1, "width": 8.0} if kind(name).controls.keys() & {"corner", "width"} else {}
        settings = chosen(subject, name, axes, values=values, offset=0.3)
        group = spectrum_group(settings, subject)
        spectrum = spectrum_of(yaml.safe_load(spectrum_yaml(group)), statistics=subject.statistics)
        power = ms.SpectralCovariance(spectrum, subject.grid).power()
        assert torch.equal(power, build_process(settings, subject, group).covariance.power()), (name, axes)
        assert bool((power > 0).any())


@pytest.mark.parametrize(("medium", "representation"), SHOWN)
def test_archive_and_its_command_compose_what_is_shown(medium: str, representation: str, tmp_path: Path) -> None:
    subject = shown(medium, representation)
    nyquist = subject.grid.select(axes_choices(subject.grid)[0].split(", "))[0].nyquist
    band = {"band": (nyquist / 4, nyquist / 2), "band_weight": 3.0}
    settings = chosen(subject, "power_law", **band, schedule="linear", shift=1.5, steps=3)
    group = spectrum_group(settings, subject)
    process = Pair.of(subject, settings, group).processes["shaped"]
    designed = design_steps(subject, process, settings.steps)
    with zipfile.ZipFile(io.BytesIO(archive(settings, subject, group, designed.steps))) as zipped:
        zipped.extractall(tmp_path)
    assert DesignedSteps.load(tmp_path / "explored" / "steps.json") == designed.steps
    line = (tmp_path / "explored" / "train.sh").read_text(encoding="utf-8").replace("\\\n", " ").split()
    assert line[:3] == ["multisagd", "train", "--config-dir=explored"]
    config = configuration.load("train", line[3:], tmp_path / "explored")
    modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    assert modality.grid() == subject.grid
    dataset = Builder().build(config["data"], Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    torch.testing.assert_close(dataset.example(3).x0, subject.x0)
    schedule = build_schedule(config["schedule"], Builder(), subject.statistics, process.covariance)
    assert schedule == process.schedule
    power = ms.SpectralCovariance(spectrum_of(config["spectrum"]), modality.grid()).power()
    assert torch.equal(power, process.covariance.power())


def test_spectrum_group_multiplies_a_band_and_adds_an_offset_of_that_deviation() -> None:
    subject = shown("image")
    grid = subject.grid

    def power(**more: Any) -> torch.Tensor:
        return spectrum_of(spectrum_group(chosen(subject, "gaussian", **more), subject)).power(grid)

    plain, radius = power(), grid.radius()
    inside = (radius >= 0.2) & (radius <= 0.3)
    for weight in (0.0, 4.0):
        banded = power(band=(0.2, 0.3), band_weight=weight)
        torch.testing.assert_close(banded, torch.where(inside, weight * plain, plain))
    added = power(offset=0.5) - plain
    # One number of deviation 0.5 added everywhere, in units of the noise: 0.25 of its variance, all at frequency zero.
    assert float(added[0, 0]) == pytest.approx(0.25 * 32**2 * float(grid.mean(plain)))
    assert int((added.abs() > 1e-12).sum()) == 1


def test_spectrum_group_combines_axes_of_different_units_in_cycles_per_sample() -> None:
    subject = shown("video")
    assert axes_choices(subject.grid) == ("height, width", "frame", "height", "width", ALL)
    group = spectrum_group(chosen(subject, "power_law", ALL, values={"corner": 0.1}), subject)
    frame, height, width = (torch.fft.fftfreq(8)[:, None, None], torch.fft.fftfreq(16)[:, None], torch.fft.rfftfreq(16))
    expected = (frame**2 + height**2 + width**2).sqrt().clamp(min=0.1).double() ** -1
    torch.testing.assert_close(spectrum_of(group).power(subject.grid), expected, rtol=1e-5, atol=0)


def test_statistics_of_one_estimate_mean_deviation_and_spectrum() -> None:
    grid = ms.Grid.of(height=48, width=40)
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.5, corner=0.1), grid)
    x0 = 0.3 * covariance.sample([1], 40)[0] + 0.2
    statistics = statistics_of_one(x0, grid)
    torch.testing.assert_close(statistics.mean, x0.double().mean((1, 2), keepdim=True).expand(-1, 48, 40))
    assert statistics.sigma_data == pytest.approx(float((x0 - statistics.mean).square().mean().sqrt()), rel=1e-6)
    for name in grid.names:
        true = 0.09 * axis_profile(covariance.power(), grid, name).power
        ratio = axis_profile(statistics.power, grid, name).power / true
        assert 0.9 < float(ratio[1:].min()) < float(ratio[1:].max()) < 1.1
    # Edges of a ramp do not leak into high frequencies.
    ramp, grid = torch.linspace(-1, 1, 256)[None], ms.Grid.of(time=256)
    periodogram = torch.fft.rfft(ramp, norm="ortho").abs().square()
    assert float(statistics_of_one(ramp, grid).power[0, 64:].mean()) < 0.05 * float(periodogram[0, 64:].mean())
    # A periodic axis has no edges: the periodogram of a wave has no power at other frequencies, next to a tapered axis.
    grid = ms.Grid((ms.Axis("latitude", 24), ms.Axis("longitude", 32, periodic=True)))
    wave = torch.sin(2 * torch.pi * 3 * torch.arange(32) / 32).expand(1, 24, 32)
    along = axis_profile(statistics_of_one(wave, grid).power, grid, "longitude").power
    assert float(along[3]) == pytest.approx(float(along.sum()), rel=1e-9)
    white = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    exact = torch.fft.rfft((white - white.mean()).double(), norm="ortho").abs().square()
    torch.testing.assert_close(statistics_of_one(white, ms.Grid(grid.axes[1:])).power, exact)
    # Channels with different masks keep their own variances.
    mask = torch.ones(2, 32, dtype=torch.bool)
    mask[1, 5:] = False
    power = statistics_of_one(white.repeat(2, 1), ms.Grid(grid.axes[1:]), mask).power
    variances = [float(each.double().var(correction=0)) for each in (white[0], white[0, :5])]
    assert ms.Grid(grid.axes[1:]).mean(power).tolist() == pytest.approx(variances)
    with pytest.raises(ValueError, match="the example is constant"):
        statistics_of_one(torch.zeros(1, 256), grid)


def test_own_file_takes_the_middle_of_pictures_and_sounds(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    PIL.Image.fromarray(pixels).save(tmp_path / "wide.png")
    subject = own_file(MEDIA["image"], tmp_path / "wide.png", "pixels", Sizes(image=64))
    assert torch.equal(subject.modality.decode(subject.x0), torch.from_numpy(pixels[:, 32:96]).permute(2, 0, 1))
    assert subject.choices == ("image", None)
    tone = np.sin(np.arange(8000))
    soundfile.write(tmp_path / "long.wav", np.pad(tone, 4000), 4000)
    sound = own_file(MEDIA["audio"], tmp_path / "long.wav", "waveform", Sizes(rate=4000, seconds=2.0))
    np.testing.assert_allclose(sound.modality.decode(sound.x0)[0].numpy(), tone * 10 ** (-1 / 20), atol=2e-3)


def test_own_file_explains_in_one_sentence_why_a_file_is_refused(tmp_path: Path) -> None:
    for medium, name, content, message in (
        (
            "image",
            "a.txt",
            b"text",
            r"a.txt does not have a supported suffix for image files; supported suffixes: .png, .jpg",
        ),
        ("image", "a.png", b"text", r"a.png cannot be used: its content is in none of the formats PNG"),
        ("image", "a.png", b"", r"a.png cannot be used: the file is empty"),
        ("audio", "a.wav", b"RIFF", r"a.wav cannot be used: "),
        ("video", "a.mp4", b"\0" * 100, r"a.mp4 cannot be used: the file is damaged or not a video"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            own_file(MEDIA[medium], tmp_path / name, next(iter(MEDIA[medium].representations)), SMALL)
        assert str(tmp_path) not in str(caught.value)
    PIL.Image.new("L", (40, 40), 7).save(tmp_path / "grey.png")
    PIL.Image.new("1", (10_000, 6_000)).save(tmp_path / "huge.png")
    for name, message in (
        ("grey", "the example is constant"),
        ("huge", "10000×6000 pixels exceed max_pixels=50000000"),
    ):
        with pytest.raises(ValueError, match=message):
            own_file(MEDIA["image"], tmp_path / f"{name}.png", "pixels", SMALL)


def test_browser_media_and_tables_hold_the_media_themselves() -> None:
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(png(picture)))), picture.permute(1, 2, 0))
    sound = 0.5 * torch.sin(torch.arange(1000) / 3)[None]
    samples, rate = soundfile.read(io.BytesIO(file_content("it.wav", lambda path: write_wav(sound, 8000, path))))
    assert rate == 8000
    np.testing.assert_allclose(samples, sound[0].numpy(), atol=1 / 32768)
    subject = shown("video")
    truth = subject.modality.decode(subject.x0)
    (clip,) = re.findall(r'src="data:video/mp4;base64,([^"]*)"', media_table([("", {"it": truth})], subject))
    with av.open(io.BytesIO(base64.b64decode(clip))) as file:
        frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
    assert np.abs(np.stack(frames) - truth[0].numpy().astype(float)).mean() < 4
    # A tone is the brightest row of its picture, which has low frequencies at the bottom.
    tone = png(spectrogram_pixels(torch.sin(torch.arange(8000) * (2 * math.pi * 1000 / 8000))[None], 8000))
    rows = np.asarray(PIL.Image.open(io.BytesIO(tone))).astype(float).sum((1, 2))
    assert rows.argmax() == pytest.approx(0.75 * len(rows), abs=1.5)


def test_thinned_curves_keep_their_values() -> None:
    grid = ms.Grid((ms.Axis("time", 4000, 1 / 4000, "s"),))
    curve = thinned(axis_profile(ms.PowerLaw(-0.5, corner=5.0).power(grid), grid, "time"))
    assert len(curve.frequency) <= POINTS
    assert bool((curve.frequency.diff() > 0).all())
    torch.testing.assert_close(curve.power, 1 / curve.frequency.clamp(min=5.0), rtol=0.01, atol=0)


def test_spectra_charts_show_noise_at_the_chosen_level() -> None:
    subject = shown("audio")
    (chart,) = spectra_charts(pair_of(subject, chosen(subject, "white")), 0.25)
    expected = math.tan(math.pi / 8) ** 2  # (σ/α)² of the cosine schedule
    (noise,) = [each for each in chart.points["series"] if each["name"] == "white noise"]
    assert [float(value) for value in noise["values"]] == pytest.approx([expected] * len(noise["values"]), rel=1e-3)


def test_explore_refuses_impossible_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for word, message in {
        "sizes.image=4": "sizes: the side of an image must be from 16 to 512 pixels, got 4",
        "sizes.seconds=60": "up to 480,000 samples, got 60 s at 16000",
        "sizes.clip=512": "up to 1,048,576 pixels in total",
        "port=0": "port must be a number from 1 to 65535, got 0",
        "upload_megabytes=0": "upload_megabytes must be at least 1",
        "threads=0": "threads must be at least 1, got 0",
    }.items():
        assert cli.main(["explore", word]) == 2
        assert message in capsys.readouterr().err, word


def test_explore_names_a_missing_gradio_and_checks_the_address_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["explore"]) == 2
    assert "gradio is not installed. To install it: " in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert cli.main(["explore", f"port={taken}"]) == 2
    assert f"cannot serve at 127.0.0.1, port {taken}: in use, or not on this machine" in capsys.readouterr().err
    for host in ("192.0.2.1", "a..b"):  # an address reserved for documentation, and an invalid name
        assert cli.main(["explore", f"host={host}"]) == 2
        assert f"cannot serve at {host}, with ports from 7860 on" in capsys.readouterr().err


def test_spectrum_group_refuses_settings_without_noise() -> None:
    subject = shown("image")
    with pytest.raises(ValueError, match=r"no frequency lies between 0.101 and 0.102: widen the band"):
        spectrum_group(chosen(subject, "white", "height", band=(0.101, 0.102), band_weight=2.0), subject)
    with pytest.raises(RecipeError, match="low <= high"):
        pair_of(subject, chosen(subject, "band", values={"low": 0.4, "high": 0.2}))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_design_steps_beat_every_schedule_and_are_charted(schedule: str) -> None:
    subject = shown("image", example="photograph")
    for shift in (0.1, 1.0, 10.0):
        settings = chosen(subject, "power_law", schedule=schedule, shift=shift)
        process = build_process(settings, subject, spectrum_group(settings, subject))
        designed = design_steps(subject, process, 4)
        chosen_one = "cosine" if (schedule, shift) == ("cosine", 1.0) else "chosen schedule"
        assert set(designed.errors) == {"designed", "cosine", chosen_one}
        assert designed.errors["designed"] <= 1.001 * designed.errors[chosen_one]
        chart = steps_chart(designed, "steps")
        assert chart is not None
        expected = [f"{name} ({error:.1%})" for name, error in designed.errors.items()]
        assert [curve.name for curve in chart.curves] == expected
    process = build_process(chosen(subject, "white", schedule=schedule), subject, {"_target_": "multisagd.Flat"})
    designed = design_steps(subject, process, 8)
    assert designed.errors["designed"] < 0.97 * designed.errors["cosine"]
    assert "DPMSolver" in designed.steps.sampler, "noise is recommended for it, too"
    assert all(a < b for each in designed.log_snrs.values() for a, b in itertools.pairwise(each))
    assert designed.log_snrs["designed"] == pytest.approx(list(designed.steps.log_snrs))


def panel(medium: str, **more: Any) -> tuple[Any, list[Any]]:
    """Return the callbacks of a tab, and the values of its controls, with those given by name."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'multisagd[explore]'")
    from recipes.explorer.page import Panel

    tab = Panel(MEDIA[medium], SMALL)
    values = dict.fromkeys(tab.inputs, 0.0) | {
        "upload": None, "example": list(tab.medium.examples)[-1],
        "representation": next(iter(tab.medium.representations)), "kind": "white",
        "axes": axes_choices(shown(medium).grid)[0], "band_weight": 1.0, "schedule": "cosine", "shift": 1.0,
        "steps": 4, "time": 0.5, **more,
    }  # fmt: skip
    return tab, [values[name] for name in tab.inputs]


def test_panel_shows_the_controls_of_a_kind_in_the_units_of_the_axes() -> None:
    tab, values = panel("audio", kind="band")
    description, _, *sliders = tab.choose(*values)
    assert description == kind("band").description
    visible = {name: each for name, each in zip(tab.controls, sliders, strict=False) if each["visible"]}
    assert list(visible) == ["low", "high"]
    assert visible["high"]["label"].endswith("(cycles per s)")
    assert visible["high"]["maximum"] == visible["high"]["value"] == pytest.approx(2000)
    # A power law along time has its corner in the unit of time, whatever the axes of a band.
    tab, values = panel("audio", representation="spectrogram", kind="pink", axes="frequency")
    corner = tab.choose(*values)[2 + tab.controls.index("corner")]
    assert corner["label"].endswith("(cycles per s)")
    assert corner["maximum"] == pytest.approx(4000 / 128 / 4, abs=0.01)  # half of Nyquist of its frames


def test_panel_keeps_values_that_fit_other_axes() -> None:
    tab, values = panel("video", kind="band", axes="frame", low=1.0, high=50.0)
    _, axes, *sliders = tab.adapt(*values)
    assert axes["value"] == "frame"
    adapted = {name: each["value"] for name, each in zip(tab.controls, sliders, strict=False)}
    assert adapted["low"] == 1.0
    assert adapted["high"] == pytest.approx(4.0)  # Nyquist of 8 frames per second


def test_panel_applies_a_recommendation_and_gives_its_reasons() -> None:
    tab, values = panel("image", example="photograph", offset=2.0, band_weight=0.0, band_low=0.1, band_high=0.2)
    reasons, name, description, _, *sliders, weight, offset = tab.recommend(*values)
    assert reasons.count("<li>") >= 2
    assert name in ("white", "data_power")
    assert description == kind(name).description
    exponent = sliders[tab.controls.index("data_exponent")]
    assert exponent["visible"] == (name == "data_power")
    assert f"data&#x27;s power raised to {exponent['value']:g}" in reasons.split("</h3>")[0] or name == "white"
    assert (weight, offset) == (1.0, 0.0)  # nothing else is added to the recommendation


def test_panel_explains_mistakes_and_warns_of_doubtful_settings() -> None:
    tab, values = panel("image", kind="band", low=0.4, high=0.2)
    message, *others = tab.show(*values)
    assert "low &lt;= high" in message
    assert others == [{"__type__": "update"}] * 6  # gradio's way to leave them unchanged
    tab, values = panel("image", kind="power_law", exponent=-2.0, schedule="linear", shift=0.1)
    ending = tab.show(*values)[4]
    assert "zero frequency, the mean of an example, has" in ending
    assert "signal remains at t = 1" in ending
    assert ending.count("<tr>") == 1 + len(shown("image").grid.bands(8))


def test_computations_end_before_they_are_closed_and_none_starts_later() -> None:
    gradio = pytest.importorskip("gradio", reason="needs gradio: pip install 'multisagd[explore]'")
    from recipes.explorer.page import Computations

    computations, started, finish, ended = Computations(), threading.Event(), threading.Event(), list[str]()

    def compute(value: int) -> list[int]:
        started.set()
        assert finish.wait(60)
        ended.append("computation")
        return [value]

    def close() -> None:
        computations.close()
        ended.append("close")

    counted = computations.counted(compute)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(counted, 3)
        assert started.wait(60)
        closing = threads.submit(close)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        finish.set()
        assert running.result(60) == [3]
        closing.result(60)
    assert ended == ["computation", "close"]
    with pytest.raises(gradio.Error, match="stopping"):
        counted(4)
    assert len(ended) == 2


PATHS = [("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serve the page, also under another name, and return its port."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'multisagd[explore]'")
    config = configuration.load("explore", ["sizes.image=32", "sizes.clip=16", "names=[explore.example]"])
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY", "no_proxy"):
            patch.setenv(name, "")  # restored at the end
        page, computations, address = serve(Builder().settings(ExploreSettings, config, ""), Path(folder))
        yield int(address.rstrip("/").rsplit(":", 1)[1])
        page.close(verbose=False)
        computations.close()


def ask(port: int, host: str, method: str = "GET", path: str = "/config", **headers: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": host, "Content-Length": "0", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}
    finally:
        connection.close()


def test_own_address_is_answered(port: int) -> None:
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST:8000", f"[::1]:{port}"):
        assert ask(port, host)[0] == 200
        assert ask(port, host, Origin=f"http://{host}")[0] == 200


def test_own_address_refuses_other_names_and_sites(port: int) -> None:
    own = f"127.0.0.1:{port}"
    others = ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "10.0.0.1")
    for host in (*others, ""):
        assert ask(port, host)[0] in (400, 403), host
    for origin in ("http://evil.example", "null", "", f"http://localhost:{port}", "http://127.0.0.1:1", f"{own}"):
        for method, path in PATHS:
            assert ask(port, own, method, path, Origin=origin)[0] == 403, (origin, path)
        preflight = {"Access_Control_Request_Method": "POST", "Origin": origin}
        status, headers = ask(port, own, "OPTIONS", "/gradio_api/queue/join", **preflight)
        assert status == 403
        assert "access-control-allow-origin" not in headers


def test_own_address_includes_the_names_of_a_proxy(port: int) -> None:
    """Whichever name, port and protocol the proxy passes on."""
    assert ask(port, "explore.example", Origin="https://explore.example")[0] == 200
    assert ask(port, "explore.example:8443", Origin="https://explore.example:8443")[0] == 200
    forwarded: dict[str, Any] = {"X_Forwarded_Host": "explore.example", "X_Forwarded_Proto": "https"}
    assert ask(port, f"127.0.0.1:{port}", Origin="https://explore.example", **forwarded)[0] == 200
    assert ask(port, "explore.example.evil", Origin="https://explore.example")[0] == 403


def test_own_address_of_a_network_server_is_its_number_or_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    monkeypatch.setattr("socket.getfqdn", lambda: "machine.example")

    async def app(*words: object) -> None:
        """Do nothing."""

    def answered(host: str, requested: str) -> bool:
        return OwnAddress(app, host).is_own([(b"host", requested.encode())])

    for name in ("10.1.2.3:7860", "[fe80::1]:7860", "machine:7860", "machine.example", "localhost:7860"):
        assert answered("0.0.0.0", name)
    assert not answered("0.0.0.0", "evil.example:7860")
    assert answered("10.1.2.3", "10.1.2.3:7860")
    assert not answered("10.1.2.3", "10.9.9.9:7860")
