"""`multisagd explore`: what it shows against the definitions, what it exports against what trains, errors, privacy."""

import base64
import io
import math
import re
import socket
import sys
import warnings
import zipfile
from itertools import pairwise
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
from modalities.audio import Audio, write_wav
from modalities.audio_figures import spectrogram_pixels
from modalities.base import Dataset, Modality
from modalities.browser_media import png, written
from multisagd.analysis.design import DesignedSteps
from multisagd.analysis.profiles import axis_profile
from multisagd.multitaper import statistics_of_one
from recipes.base.errors import RecipeError
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.explorer.configuration import (
    ALL,
    Settings,
    archive,
    axes_choices,
    first_values,
    kind,
    spectrum_group,
    spectrum_yaml,
    train_words,
)  # fmt: skip
from recipes.explorer.media import MEDIA, Example, Sizes, built_in, own_file
from recipes.explorer.process import SCHEDULES, TIMES, Pair, build_process, design_steps, recommend_noise
from recipes.explorer.rendering import POINTS, charts_html, media_table, spectra_charts, steps_chart, thinned

SMALL = Sizes(image=32, rate=4000, seconds=0.25, frames=8, clip=16)
SHOWN = [(name, written_as) for name, medium in MEDIA.items() for written_as in medium.representations]


def shown(name: str, representation: str | None = None, example: str | None = None) -> Example:
    medium = MEDIA[name]
    return built_in(
        medium, example or list(medium.examples)[-1], representation or next(iter(medium.representations)), SMALL
    )


def chosen(subject: Example, name: str, axes: str | None = None, **more: Any) -> Settings:
    axes = axes_choices(subject.grid)[0] if axes is None else axes
    values = first_values(name, subject.grid, axes) | more.pop("values", {})
    return Settings(name, axes, values, **more)


def pair_of(subject: Example, settings: Settings) -> Pair:
    return Pair.of(subject, settings, spectrum_group(settings, subject))


def test_one_white_noise_is_filtered_by_the_power_law_that_the_controls_say() -> None:
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
def test_pictures_of_the_forward_process_are_those_of_the_process(medium: str, representation: str) -> None:
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
def test_whatever_is_chosen_is_exported_as_it_was_shown(medium: str, representation: str) -> None:
    subject = shown(medium, representation)
    for name in MEDIA[medium].kinds:
        for axes in axes_choices(subject.grid):
            if name == "hum_free" and representation == "spectrogram":
                continue  # there are no frequencies of sound along the time of a spectrogram
            values = {"corner": 0.1, "width": 8.0} if kind(name).controls.keys() & {"corner", "width"} else {}
            settings = chosen(subject, name, axes, values=values, offset=0.3)
            group = spectrum_group(settings, subject)
            read = yaml.safe_load(spectrum_yaml(group))
            spectrum = Builder().build(read, ms.Spectrum, "spectrum", statistics=subject.statistics)
            power = ms.SpectralCovariance(spectrum, subject.grid).power()
            assert torch.equal(power, build_process(settings, subject, group).covariance.power()), (name, axes)
            assert bool((power > 0).any())


@pytest.mark.parametrize(("medium", "representation"), SHOWN)
def test_the_exported_folder_and_command_compose_what_was_shown(
    medium: str, representation: str, tmp_path: Path
) -> None:
    subject = shown(medium, representation)
    top = axes_choices(subject.grid)[0]
    nyquist = subject.grid.select(top.split(", "))[0].nyquist
    settings = chosen(
        subject, "power_law", band=(nyquist / 4, nyquist / 2), band_weight=3.0, schedule="linear", shift=1.5, steps=3
    )
    group = spectrum_group(settings, subject)
    pair = Pair.of(subject, settings, group)
    designed = design_steps(subject, pair.processes["shaped"], settings.steps)
    with zipfile.ZipFile(io.BytesIO(archive(settings, subject, group, designed.steps))) as zipped:
        zipped.extractall(tmp_path)
    assert DesignedSteps.load(tmp_path / "explored" / "steps.json") == designed.steps
    line = (tmp_path / "explored" / "train.sh").read_text(encoding="utf-8").replace("\\\n", " ").split()
    assert line[:3] == ["multisagd", "train", "--config-dir=explored"]
    config = configuration.load("train", line[3:], tmp_path / "explored")
    modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    assert modality.grid() == subject.grid
    spectrum = Builder().build(config["spectrum"], ms.Spectrum, "spectrum")
    schedule = Builder().build(config["schedule"], ms.Schedule, "schedule")
    assert schedule == pair.processes["shaped"].schedule
    power = ms.SpectralCovariance(spectrum, modality.grid()).power()
    assert torch.equal(power, pair.processes["shaped"].covariance.power())


@pytest.mark.parametrize("weight", [0.0, 4.0])
def test_a_band_multiplies_power_and_an_offset_adds_a_number_of_that_deviation(weight: float) -> None:
    subject = shown("image")
    grid = subject.grid

    def power(**more: Any) -> torch.Tensor:
        group = spectrum_group(chosen(subject, "gaussian", **more), subject)
        return Builder().build(group, ms.Spectrum, "spectrum").power(grid)

    plain = power()
    radius = grid.radius()
    inside = (radius >= 0.2) & (radius <= 0.3)
    torch.testing.assert_close(power(band=(0.2, 0.3), band_weight=weight), torch.where(inside, weight * plain, plain))
    added = power(offset=0.5) - plain
    # One number of deviation 0.5 added everywhere, in units of the noise: 0.25 of its variance, all at frequency zero.
    assert float(added[0, 0]) == pytest.approx(0.25 * 32**2 * float(grid.mean(plain)))
    assert int((added.abs() > 1e-12).sum()) == 1


def test_axes_of_different_units_are_compared_in_cycles_per_sample() -> None:
    subject = shown("video")
    assert axes_choices(subject.grid) == ("height, width", "frame", "height", "width", ALL)
    group = spectrum_group(chosen(subject, "power_law", ALL, values={"corner": 0.1}), subject)
    frame, height, width = (torch.fft.fftfreq(8)[:, None, None], torch.fft.fftfreq(16)[:, None], torch.fft.rfftfreq(16))
    expected = (frame**2 + height**2 + width**2).sqrt().clamp(min=0.1).double() ** -1
    torch.testing.assert_close(
        Builder().build(group, ms.Spectrum, "spectrum").power(subject.grid), expected, rtol=1e-5, atol=0
    )


def test_the_spectrum_of_one_datum_is_that_of_its_law() -> None:
    grid = ms.Grid.of(height=48, width=40)
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.5, corner=0.1), grid)
    x0 = 0.3 * covariance.sample([1], 40)[0] + 0.2
    found = statistics_of_one(x0, grid)
    torch.testing.assert_close(found.mean, x0.double().mean((1, 2), keepdim=True).expand(-1, 48, 40))
    assert found.sigma_data == pytest.approx(float((x0 - found.mean).square().mean().sqrt()), rel=1e-6)
    for name in grid.names:
        true = 0.09 * axis_profile(covariance.power(), grid, name).power
        ratio = axis_profile(found.power, grid, name).power / true
        assert 0.9 < float(ratio[1:].min()) < float(ratio[1:].max()) < 1.1


def test_the_spectrum_of_one_datum_does_not_leak_from_its_edges() -> None:
    grid = ms.Grid.of(time=256)
    ramp = torch.linspace(-1, 1, 256)[None]
    ordinary = torch.fft.rfft(ramp, norm="ortho").abs().square()
    tapered = statistics_of_one(ramp, grid).power
    assert float(tapered[0, 64:].mean()) < 0.05 * float(ordinary[0, 64:].mean())
    with pytest.raises(ValueError, match="it is constant"):
        statistics_of_one(torch.zeros(1, 256), grid)


def test_designed_steps_err_less_than_the_cosine_schedule() -> None:
    subject = shown("image", example="photograph")
    process = build_process(chosen(subject, "white"), subject, {"_target_": "multisagd.Flat"})
    designed = design_steps(subject, process, 8)
    assert set(designed.errors) == {"designed", "cosine"}  # which is the chosen one too
    assert designed.errors["designed"] < 0.97 * designed.errors["cosine"]
    assert all(a < b for each in designed.log_snrs.values() for a, b in pairwise(each))
    assert designed.log_snrs["designed"] == pytest.approx(list(designed.steps.log_snrs))


def test_white_noise_is_recommended_for_white_data() -> None:
    subject = shown("image")
    power = torch.ones(1, *subject.grid.half_shape, dtype=torch.float64)
    white = ms.DataStatistics(torch.zeros(1, 32, 32).double(), power, subject.grid, 100)
    same = Example(MEDIA["image"], subject.modality, subject.x0, white, ("image", "digits"), "")
    process = build_process(chosen(subject, "white"), same, {"_target_": "multisagd.Flat"})
    assert recommend_noise(same, process, 5).chosen.exponent == 0


def test_examples_are_those_of_the_data_sets_that_the_command_names() -> None:
    subject = shown("video")
    words = [word for word in train_words(chosen(subject, "white"), subject)[1:] if word != "spectrum=explored"]
    config = configuration.load("train", words)
    modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    dataset = Builder().build(config["data"], Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    assert torch.equal(dataset.example(3).x0, subject.x0)
    sound = shown("audio")
    assert isinstance(sound.modality, Audio)
    assert float(sound.x0.std()) == pytest.approx(0.4, rel=0.6)
    # It decodes to the very sound, peak at 1 dB below full scale.
    assert float(sound.modality.decode(sound.x0).abs().max()) == pytest.approx(10 ** (-1 / 20), rel=1e-3)


def test_a_file_gives_its_middle(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    PIL.Image.fromarray(pixels).save(tmp_path / "wide.png")
    subject = own_file(MEDIA["image"], tmp_path / "wide.png", "pixels", Sizes(image=64))
    assert torch.equal(subject.modality.decode(subject.x0), torch.from_numpy(pixels[:, 32:96]).permute(2, 0, 1))
    assert subject.choices == ("image", None)
    tone = np.sin(np.arange(8000))
    soundfile.write(tmp_path / "long.wav", np.concatenate([np.zeros(4000), tone, np.zeros(4000)]), 4000)
    sound = own_file(MEDIA["audio"], tmp_path / "long.wav", "waveform", Sizes(rate=4000, seconds=2.0))
    decoded = sound.modality.decode(sound.x0)[0]
    np.testing.assert_allclose(decoded.numpy(), tone * 10 ** (-1 / 20), atol=2e-3)


@pytest.mark.parametrize(
    ("medium", "name", "content", "message"),
    [
        ("image", "a.txt", b"text", r"a.txt is no image by its ending; read are .png, .jpg"),
        ("image", "a.png", b"text", r"a.png cannot be used: cannot identify image file '?a.png"),
        ("image", "a.png", b"", r"a.png cannot be used: the file is empty"),
        ("audio", "a.wav", b"RIFF", r"a.wav cannot be used: "),
        ("video", "a.mp4", b"\0" * 100, r"a.mp4 cannot be used: the file is damaged or not a video"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_sentence(
    medium: str, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        own_file(MEDIA[medium], tmp_path / name, next(iter(MEDIA[medium].representations)), SMALL)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_without_a_spectrum_or_with_too_many_pixels_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("L", (40, 40), 7).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="it is constant"):
        own_file(MEDIA["image"], tmp_path / "grey.png", "pixels", SMALL)
    PIL.Image.new("1", (10_000, 6_000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="10000×6000 pixels exceed max_pixels=50000000"):
        own_file(MEDIA["image"], tmp_path / "huge.png", "pixels", SMALL)


def test_pieces_of_the_page_hold_the_media_themselves() -> None:
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(png(picture)))), picture.permute(1, 2, 0))
    sound = 0.5 * torch.sin(torch.arange(1000) / 3)[None]
    read, rate = soundfile.read(io.BytesIO(written("it.wav", lambda path: write_wav(sound, 8000, path))))
    assert rate == 8000
    np.testing.assert_allclose(read, sound[0].numpy(), atol=1 / 32768)
    subject = shown("video")
    (address,) = re.findall(
        r'src="data:video/mp4;base64,([^"]*)"',
        media_table([("", {"it": subject.modality.decode(subject.x0)})], subject),
    )
    clip = base64.b64decode(address)
    with av.open(io.BytesIO(clip)) as file:
        frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
    truth = subject.modality.decode(subject.x0)[0].numpy().astype(float)
    assert np.abs(np.stack(frames) - truth).mean() < 4
    # A tone is the brightest row of its picture, which has low frequencies at the bottom.
    tone = png(spectrogram_pixels(torch.sin(torch.arange(8000) * (2 * math.pi * 1000 / 8000))[None], 8000))
    rows = np.asarray(PIL.Image.open(io.BytesIO(tone))).astype(float).sum((1, 2))
    assert rows.argmax() == pytest.approx(0.75 * len(rows), abs=1.5)


def test_curves_are_thinned_without_moving_them() -> None:
    grid = ms.Grid((ms.Axis("time", 4000, 1 / 4000, "s"),))
    power = ms.PowerLaw(-0.5, corner=5.0).power(grid)
    curve = thinned(axis_profile(power, grid, "time"))
    frequency = curve.frequency
    assert len(frequency) <= POINTS
    assert bool((frequency.diff() > 0).all())
    torch.testing.assert_close(curve.power, 1 / frequency.clamp(min=5.0), rtol=0.01, atol=0)


def test_charts_take_the_colours_of_the_page_and_say_what_they_are() -> None:
    subject = shown("video")
    charts = spectra_charts(pair_of(subject, chosen(subject, "joint")), 0.5)
    drawn = charts_html(charts)
    assert [chart.title for chart in charts] == ["frame", "height", "width"]
    assert 'aria-label="Power of data, white noise and shaped noise along frame"' in drawn
    assert drawn.count("var(--text)") > 20
    assert not re.search("#0[123]0[123]0", drawn)  # placeholders of colours
    for text in ("cycles per s", "cycles per pixel"):
        assert f">{text}</text>" in drawn
    for name, colour in (("data", "c0"), ("white noise", "c1"), ("shaped noise", "c2")):
        assert drawn.count(f'<li class="{colour}">{name}</li>') == 3
        assert f'stroke="var(--{colour})"' in drawn


def test_noise_in_the_chart_is_that_of_the_level_it_is_drawn_at() -> None:
    subject = shown("audio")
    (chart,) = spectra_charts(pair_of(subject, chosen(subject, "white")), 0.25)
    expected = math.tan(math.pi / 8) ** 2  # (σ/α)² of the cosine schedule
    (noise,) = [each for each in chart.points["series"] if each["name"] == "white noise"]
    assert [float(value) for value in noise["values"]] == pytest.approx([expected] * len(noise["values"]), rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sizes.image=4"], "sizes: the side of an image must be from 16 to 512 pixels, got 4"),
        (["sizes.seconds=60"], "up to 480,000 samples: got 60 s at 16000"),
        (["sizes.clip=512"], "up to 1,048,576 pixels in all"),
        (["port=0"], "port must be a number from 1 to 65535, got 0"),
        (["upload_megabytes=0"], "upload_megabytes must be at least 1"),
        (["threads=0"], "threads must be at least 1, got 0"),
        (["prot=8000"], "unknown key 'prot'; did you mean 'port'?"),
    ],
)
def test_mistakes_in_the_configuration_are_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explore", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_gradio_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["explore"]) == 2
    assert "gradio is not installed. To install it: " in capsys.readouterr().err


def test_an_address_that_cannot_be_had_is_told_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # is not even asked
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert cli.main(["explore", f"port={taken}"]) == 2
    assert f"cannot serve at 127.0.0.1, port {taken}: in use, or not on this machine" in capsys.readouterr().err
    for host in ("192.0.2.1", "a..b"):  # an address kept for examples, and what is no name
        assert cli.main(["explore", f"host={host}"]) == 2
        assert f"cannot serve at {host}, with ports from 7860 on" in capsys.readouterr().err


def test_settings_that_make_no_noise_are_refused() -> None:
    subject = shown("image")
    with pytest.raises(ValueError, match=r"no frequency lies between 0.101 and 0.102: widen the band"):
        spectrum_group(chosen(subject, "white", "height", band=(0.101, 0.102), band_weight=2.0), subject)
    with pytest.raises(RecipeError, match="low <= high"):
        pair_of(subject, chosen(subject, "band", values={"low": 0.4, "high": 0.2}))


def test_all_noise_levels_are_shown_in_order() -> None:
    subject = shown("image")
    pair = pair_of(subject, chosen(subject, "power_law"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = media_table([(f"t = {time:g}", pair.media_at(time)) for time in TIMES], subject)
    assert page.count("<img") == 2 * len(TIMES)
    assert page.index("white, t = 0.2") < page.index("shaped, t = 0.2") < page.index("white, t = 0.4")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_are_designed_on_every_schedule(schedule: str) -> None:
    subject = shown("image", example="photograph")
    for shift in (0.1, 10.0):
        settings = chosen(subject, "power_law", schedule=schedule, shift=shift)
        process = build_process(settings, subject, spectrum_group(settings, subject))
        designed = design_steps(subject, process, 4)
        assert set(designed.errors) == {"designed", "cosine", "chosen schedule"}
        assert designed.errors["designed"] <= 1.001 * designed.errors["chosen schedule"]
        chart = steps_chart(designed, "steps")
        assert chart is not None
        assert [curve.name for curve in chart.curves] == [
            f"{name} ({error:.1%})" for name, error in designed.errors.items()
        ]


def panel(medium: str, **more: Any) -> tuple[Any, list[Any]]:
    """Return the answers of a tab, and the values of its controls, by name where they are to be others."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'multisagd[explore]'")
    from recipes.explorer.page import Panel

    made = Panel(MEDIA[medium], SMALL)
    subject = shown(medium)
    named = dict.fromkeys(made.inputs, 0.0) | {
        "upload": None, "example": list(made.medium.examples)[-1], "written": next(iter(made.medium.representations)),
        "kind": "white", "axes": axes_choices(subject.grid)[0], "band_weight": 1.0, "schedule": "cosine", "shift": 1.0,
        "steps": 4, "time": 0.5, **more,
    }  # fmt: skip
    return made, [named[name] for name in made.inputs]


def test_a_kind_that_is_chosen_shows_its_own_controls_in_the_units_of_the_axes() -> None:
    made, values = panel("audio", kind="band")
    description, _, *sliders = made.choose(*values)
    assert description == kind("band").description
    shown_sliders = {name: each for name, each in zip(made.controls, sliders, strict=False) if each["visible"]}
    assert list(shown_sliders) == ["low", "high"]
    assert shown_sliders["high"]["label"].endswith("(cycles per s)")
    assert shown_sliders["high"]["maximum"] == pytest.approx(2000)
    assert shown_sliders["high"]["value"] == pytest.approx(2000)


def test_a_power_law_along_time_has_its_corner_in_the_unit_of_time_whatever_the_axes_of_a_band() -> None:
    made, values = panel("audio", written="spectrogram", kind="pink", axes="frequency")
    corner = made.choose(*values)[2 + made.controls.index("corner")]
    assert corner["label"].endswith("(cycles per s)")
    frames_a_second = 4000 / 128
    assert corner["maximum"] == pytest.approx(frames_a_second / 4, abs=0.01)


def test_other_axes_keep_the_values_that_they_can() -> None:
    made, values = panel("video", kind="band", axes="frame", low=1.0, high=50.0)
    _, axes, *sliders = made.adapt(*values)
    assert axes["value"] == "frame"
    found = {name: each["value"] for name, each in zip(made.controls, sliders, strict=False)}
    assert found["low"] == 1.0
    assert found["high"] == pytest.approx(4.0)  # Nyquist of 8 frames per second


def test_a_recommendation_sets_the_controls_to_it_and_says_why() -> None:
    made, values = panel("image", example="photograph", offset=2.0, band_weight=0.0, band_low=0.1, band_high=0.2)
    told, name, description, _, *sliders, weight, offset = made.recommend(*values)
    assert told.count("<li>") >= 2
    assert name in ("white", "data_power")
    assert description == kind(name).description
    exponent = sliders[made.controls.index("data_exponent")]
    assert exponent["visible"] == (name == "data_power")
    assert f"data&#x27;s power to {exponent['value']:g}" in told.split("</h3>")[0] or name == "white"
    assert (weight, offset) == (1.0, 0.0)  # nothing else is added to what was recommended


def test_a_mistake_is_told_and_leaves_the_rest_as_it_was() -> None:
    made, values = panel("image", kind="band", low=0.4, high=0.2)
    message, *rest = made.show(*values)
    assert "low &lt;= high" in message
    assert rest == [{"__type__": "update"}] * 6  # which is how gradio writes "as it was"


def test_what_is_doubtful_is_said() -> None:
    made, values = panel("image", kind="power_law", exponent=-2.0, schedule="linear", shift=0.1)
    ending = made.show(*values)[4]
    assert "zero frequency, the mean of an example, has" in ending
    assert "signal remains at t = 1" in ending
    assert ending.count("<tr>") == 1 + len(shown("image").grid.bands(8))
