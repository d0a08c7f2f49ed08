"""Every modality trains with every spectrum and network, and parts that do not fit one another are refused or noted."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import multisagd as ms
from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.representation import LogMel, Stft
from multisagd.analysis.octaves import octave_log_snrs
from multisagd.data_spectra import DataPower
from multisagd.ema import PowerEMA
from multisagd.samplers import Sampler
from multisagd.spectrum import Outside
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import groups
from recipes.config.resolve import resolved
from recipes.data.dataset import measure
from recipes.runs.assembly import Assembly, axis_notes, check_refinement, process_notes
from recipes.runs.schedules import build_schedule, spectral_range
from recipes.runs.settings import ModelSettings, TrainSettings
from recipes.runtime.device import Runtime
from recipes.sampling.generate import SamplingRequest, generate, step_times
from recipes.train import train
from recipes.training.learner import Learner
from recipes.training.setup import with_times
from tests.helpers.every_modality import AXES, MODALITIES, NETWORKS, save_clips

# A hum below Nyquist of the time axis, and a width that its clips can resolve.
HUMS = {
    "image": (0.25, 0.2), "waveform": (500, 120), "latent": (2.0, 1.9),
    "video": (2.0, 1.7),
}  # fmt: skip


def on_axes(spectrum: str, modality: str) -> list[str]:
    """Return what makes a spectrum that was written for one medium fit another."""
    space, time = AXES[modality]
    fundamental, width = HUMS.get(modality, (None, None))
    factors = f"{{{time}: 0.05}}" if space is None else f"{{{space}: 1.0, {time}: 0.05}}"
    moves = "{}" if space is None else f"{{{space}: 4.0}}"
    overrides = {
        "pink": [f"axes=[{time}]"],
        "brown": [f"axes=[{time}]"],
        "hum_free": [f"axis={time}", f"fundamental={fundamental}", f"width={width}"],
        "autoregressive": [f"axis={time}"],
        "progressive": [f"axis={time}"],
        "mixed": [f"right.axes=[{time}]"],
        "velocity": [f"axis={time}", f"velocity={moves}"],
        "separable": [f"left.axes=[{space or time}]", f"right.axes=[{time}]"],
        "joint": [f"axes=[{','.join(axis for axis in (space, time) if axis)}]", f"factors={factors}"],
        "band": ["unit=diagonal"],
        "rings": ["levels=[4,2,1]"],
    }
    if modality in ("spectrogram", "log-mel", "latent", "video"):
        # A radius over axes of unlike units needs factors for them, or one axis.
        overrides["power_law"] = overrides["exponential"] = [f"axes=[{time}]"]
        overrides["gaussian"] = [f"left.axes=[{time}]"]
    words = [f"spectrum.{each}" for each in overrides.get(spectrum, [])]
    if spectrum in ("velocity", "joint"):  # a mapping is replaced, and not merged
        key, _, value = words.pop().partition("=")
        words += [f"~{key}", f"+{key}={value}"]
    return ["corruption=band"] if spectrum == "omitting" else words


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    config = configuration.load("train", ["run_dir=unused", "engine.device=cpu", "engine.threads=1"])
    return Runtime.start(Builder().settings(TrainSettings, config, "").engine)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight clips: latents are those of files."""
    root = tmp_path_factory.mktemp("clips")
    save_clips(root)
    return root


@pytest.mark.parametrize("spectrum", groups()["spectrum"])
def test_spectrum_trains_and_samples_every_modality(
    spectrum: str, runtime: Runtime, clips: Path, tmp_path: Path
) -> None:
    """Networks and denoisers take turns, so that each meets every modality and every spectrum."""
    for number, name in enumerate(MODALITIES, groups()["spectrum"].index(spectrum)):
        if spectrum == "hum_free" and name in ("spectrogram", "log-mel"):
            continue  # refused: there are no frequencies of sound along the time of a spectrogram
        words = [
            *MODALITIES[name], *list(NETWORKS.values())[number % len(NETWORKS)], f"spectrum={spectrum}",
            *on_axes(spectrum, name), "training.batch=4", "training.statistics=8", "training.warmup=0", "sampler=ddim",
            "run_dir=unused",
        ]  # fmt: skip
        if number % 2:
            words.append("denoiser=dual")
        if name == "latent":
            words.append(f"data.root={clips}")
        if spectrum == "per_channel":
            plain = [word for word in words if not word.startswith("spectrum")]
            node = configuration.load("train", plain)["modality"]
            channels = Builder().build(node, Modality, "modality").channels  # type: ignore[type-abstract]
            words.append(f"spectrum.spectra=[{','.join(['{_target_:multisagd.Flat}'] * channels)}]")
        train_and_sample(configuration.load("train", words), runtime, tmp_path / name)


def train_and_sample(config: dict[str, Any], runtime: Runtime, folder: Path) -> None:
    builder = Builder()
    settings = builder.settings(TrainSettings, config, "")
    modality: Any = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    dataset: Any = builder.build(settings.data, Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    statistics = measure(dataset, settings)
    assembly = Assembly(ModelSettings.of(config, builder), builder, modality, statistics, dataset.classes)
    process, network = assembly.process(), assembly.network()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    denoiser = assembly.denoiser(network, process)
    classes = dataset.classes and len(dataset.classes)
    learner = Learner(denoiser, network, network, PowerEMA(network), settings, runtime, classes)
    for step in range(2):
        learner.step([dataset.batch(range(4 * step, 4 * step + 4), range(4))])
    assert 0 < learner.averages()["loss"] < 1e3, folder.name
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)), folder.name
    sampler = builder.build(settings.sampler, Sampler, "sampler")  # type: ignore[type-abstract]
    shape = (modality.channels, *modality.grid().shape)
    request = SamplingRequest(sampler, steps=2)
    x0 = generate(denoiser.eval(), request, shape, [7], classes and torch.tensor([3]), runtime)
    folder.mkdir()
    path = folder / f"sample{modality.suffixes[0]}"
    modality.save(modality.decode(x0[0]), path)
    assert modality.encode(modality.load(path)).shape == shape, folder.name


def assembly(tmp_path: Path, *overrides: str) -> Assembly:
    words = ["modality=video", "modality.frames=4", "modality.size=6", f"run_dir={tmp_path}", *overrides]
    config = configuration.load("train", words)
    modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    statistics = ms.DataStatistics.measure([torch.randn(5, 3, 4, 6, 6)], modality.grid())
    return Assembly(ModelSettings.of(config, Builder()), Builder(), modality, statistics, None)


def test_assembly_pads_the_noise_as_configured(tmp_path: Path) -> None:
    plain = assembly(tmp_path, "spectrum=progressive").process()
    assert type(plain.covariance) is ms.SpectralCovariance
    padded = assembly(tmp_path, "spectrum=progressive", "padding={frame:5}").process()
    assert isinstance(padded.covariance, ms.PaddedCovariance)
    assert padded.covariance.padding == {"frame": 5, "height": 0, "width": 0}
    assert padded.noise((2, 3, 4, 6, 6), [1, 2]).shape == (2, 3, 4, 6, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["padding={time:5}"], "padding: the grid has no axis 'time'"),
        (["padding={frame:-1}"], "padding: padding of frame"),
        (["padding={frame:many}"], "padding.frame: expected a whole number, got 'many'"),
        (["padding={frame:5}", "loss=mahalanobis"], "cannot be whitened"),
        (["spectrum=pink"], "spectrum: the grid has no axis 'time'"),
    ],
)
def test_assembly_refuses_parts_that_do_not_fit(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        assembly(tmp_path, *words).process()


class Minimal(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()


def test_assembly_refuses_networks_that_lack_a_parameter(tmp_path: Path) -> None:
    """It would accept no text, have no outputs to mix, or see edges on a circle."""
    for word, context, message in (
        ("denoiser=velocity", 8, "Minimal does not accept text"),
        ("denoiser=dual", None, "Minimal has no parameter out_channels, .* choose denoiser=velocity"),
    ):
        made = assembly(tmp_path, "allow_targets=[test_assembly]", word)
        settings = replace(made.settings, network={"_target_": "test_assembly.Minimal"})
        builder = Builder(("test_assembly",))
        with pytest.raises(RecipeError, match=message):
            Assembly(settings, builder, made.modality, made.statistics, None, context=context).network()


def test_assembly_builds_networks_for_periodic_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circle = ms.Grid((ms.Axis("frame", 4), ms.Axis("height", 6), ms.Axis("width", 6, periodic=True)))
    monkeypatch.setattr("modalities.video.Video.grid", lambda self: circle)
    for network in ("unet", "transformer"):
        assert assembly(tmp_path, f"network={network}").network().periodic == (False, False, True)
    assert assembly(tmp_path, "network.periodic=[true,false,false]").network().periodic == (True, False, False)
    with pytest.raises(RecipeError, match=r"DiffusersNetwork has no parameter `periodic`.*\(width\).*network=unet"):
        assembly(tmp_path, "network=diffusers", "network.name=UNet3DConditionModel").network()


def test_check_refinement_refuses_one_for_videos_on_images(tmp_path: Path) -> None:
    config = configuration.load("sample", ["refine=free_init", f"run_dir={tmp_path}"])
    refinement = Builder().build(config["refine"], ms.Refinement, "refine")
    check_refinement(refinement, assembly(tmp_path).process())
    with pytest.raises(RecipeError, match="refine: the grid has no axis 'frame'"):
        check_refinement(refinement, ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), Image().grid())))


def test_process_notes_mention_estimates_that_are_doubtful_at_pure_noise() -> None:
    digits = Digits(Image(size=16, channels=1))
    grid = digits.modality.grid()
    statistics = ms.DataStatistics.measure([digits.batch(range(500)).x0], grid)
    for schedule, prediction, noted in (
        (ms.KarrasSchedule(), "v", "sigma=80"),
        (ms.CosineSchedule(), "noise", "log-SNR of -20"),
        (ms.CosineSchedule(log_snr_range=(-10.0, 20.0)), "noise", None),
        (ms.FlowSchedule(), "v", None),
        (ms.CosineSchedule(), "v", None),
    ):
        process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), grid))
        plain = ms.Denoiser(torch.nn.Identity(), process, prediction)  # type: ignore[arg-type]
        notes = [note for note in process_notes(process, plain, statistics, digits.modality) if "denoiser=" in note]
        assert len(notes) == (noted is not None), schedule
        assert noted is None or noted in notes[0]
        karras = ms.Denoiser(torch.nn.Identity(), process, preconditioning="karras", statistics=statistics)
        assert not [
            note for note in process_notes(process, karras, statistics, digits.modality) if "denoiser=" in note
        ], schedule
    for corner in (None, 1 / 16):
        covariance = ms.SpectralCovariance(ms.PowerLaw(exponent=-1.0, corner=corner), grid)
        process = ms.Process(ms.CosineSchedule(), covariance)
        notes = process_notes(process, ms.Denoiser(torch.nn.Identity(), process), statistics, digits.modality)
        assert any("zero frequency" in note for note in notes) == (corner is None), corner


def test_process_notes_mention_frequencies_below_the_floor_of_the_preconditioning() -> None:
    modality = Digits(Image(size=16, channels=1)).modality
    grid = modality.grid()
    power = 10 ** (-9.3 * grid.radius() / grid.radius().max())[None]
    power[..., 3, 3] = 1e-20  # no data but rounding errors
    statistics = ms.DataStatistics(torch.zeros(1, *grid.shape).double(), power.double(), grid, 9)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid))
    for floor, suggested in ((60.0, "denoiser.floor=null"), (93.0, None), (None, None)):
        denoiser = ms.Denoiser(torch.nn.Identity(), process, None, "spectral", statistics, floor=floor)
        notes = [note for note in process_notes(process, denoiser, statistics, modality) if "floor" in note]
        assert [suggested in note for note in notes] == [True] * (suggested is not None)
    for last, suggested in ((20, "let it reach 25"), (28, None)):
        process = ms.Process(ms.CosineSchedule(log_snr_range=(-20, last)), process.covariance)
        notes = process_notes(process, ms.Denoiser(torch.nn.Identity(), process), statistics, modality)
        found = [note for note in notes if "still hides" in note]
        assert [suggested in note for note in found] == [True] * (suggested is not None)


TIME, FREQUENCY = (ms.PowerLaw(-0.5, axes=(name,)) for name in ("time", "frequency"))


def test_axis_notes_mention_noise_shaped_where_frequencies_mean_nothing() -> None:
    """Along `frequency` with stationary phase and along `time` with centred phase, unless the data shape the noise."""
    audio = Audio(4000, 0.2, representation=Stft(64, 16))
    measured = ms.DataStatistics.measure([torch.randn(9, *audio.tensor_shape)], audio.grid())
    follows = DataPower(measured)
    for spectrum, stationary, centred in (
        (ms.Flat(), False, False),
        (TIME, False, True),
        (FREQUENCY, True, False),
        (ms.Flat() + TIME * FREQUENCY**2, True, True),
        (follows, False, False),
        (Outside(measured.spectrum()) + follows**0.5 * TIME, False, True),
        (ms.Rings((4.0, 2.0, 1.0)), False, False),
    ):
        for phase, noted, remedy in (
            ("stationary", stationary, "along time .*phase=centred"),
            ("centred", centred, "along frequency .*phase=stationary"),
        ):
            modality = replace(audio, representation=Stft(64, 16, phase=phase))  # type: ignore[arg-type]
            notes = axis_notes(spectrum, modality)
            assert len(notes) == noted, (spectrum, phase)
            assert not notes or re.search(remedy, notes[0])
    log_mel = Audio(4000, 0.2, representation=LogMel(64, 16, bands=4))
    assert not axis_notes(ms.PowerLaw(-0.5, axes=("mel",)), log_mel)


def test_train_notes_noise_along_a_meaningless_axis_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["training.samples=8", "training.batch=8", "every.samples=0", "every.validation=0", "report=false"]
    words += [*MODALITIES["spectrogram"], *NETWORKS["unet"], "spectrum=pink", "spectrum.axes=[frequency]"]
    train(configuration.load("train", [*words, f"run_dir={tmp_path / 'run'}"]))
    output = capsys.readouterr()
    assert (output.out + output.err + caplog.text).count("unequal power along frequency") == 1


def test_step_times_lie_between_the_ends_of_the_spectrum() -> None:
    """Even in log-SNR; in time if coefficients depend on frequency, which have no common log-SNR."""
    grid = ms.Grid.of(y=8, x=8)
    x0 = ms.SpectralCovariance(ms.PowerLaw(-1.0), grid).sample(channels=1, seeds=range(200))
    statistics = ms.DataStatistics.measure([x0], grid)
    schedule, covariance = ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid)
    plain = ms.Denoiser(torch.nn.Identity(), ms.Process(schedule, covariance), statistics=statistics)
    blurred = ms.Denoiser(torch.nn.Identity(), ms.Process(schedule, covariance, ms.Blur(1.0)), statistics=statistics)
    ratio = statistics.power + statistics.mean_power
    log_snr = schedule.log_snr(step_times(plain, SamplingRequest(ms.DDIM(), 10)))
    assert float(log_snr[0]) == pytest.approx(math.log(0.05 / float(ratio.max())), abs=1e-4)
    assert float(log_snr[-2]) == pytest.approx(-math.log(0.05 * float(statistics.power.min())), abs=1e-4)
    torch.testing.assert_close(log_snr[:-1].diff(), log_snr[1].sub(log_snr[0]).expand(9), atol=1e-6, rtol=0)
    given = schedule.log_snr(step_times(plain, SamplingRequest(ms.DDIM(), 10, "karras", (-4.0, 5.0))))
    torch.testing.assert_close(given[[0, -2]], torch.tensor([-4.0, 5.0], dtype=torch.float64), atol=1e-4, rtol=0)
    even = ms.time_steps(schedule, 10)
    assert torch.equal(step_times(plain, SamplingRequest(ms.DDIM(), 10, "time")), even)
    assert torch.equal(step_times(blurred, SamplingRequest(ms.DDIM(), 10)), even)
    with pytest.raises(ValueError, match="two increasing log-SNRs"):
        step_times(plain, SamplingRequest(ms.DDIM(), 10, "log_snr", (5.0, -4.0)))
    for denoiser, spacing in ((plain, "time"), (blurred, None)):
        with pytest.raises(ValueError, match=r"ends=\[-4.0, 5.0\].+set spacing=log_snr or karras, or ends=null"):
            step_times(denoiser, SamplingRequest(ms.DDIM(), 10, spacing, (-4.0, 5.0)))


@pytest.mark.parametrize("size", [(16, 15), (8, 9)])
def test_schedules_reach_as_far_as_the_data_need_and_never_less_than_20(size: tuple[int, int]) -> None:
    """Over 93 dB noise must go on to be hidden; for other data, and for noise like them, nothing changes."""
    grid, builder = ms.Grid.of(y=size[0], x=size[1]), Builder()
    group = configuration.load("train", ["experiment=field_generate", "run_dir=none"])["schedule"]
    radius = grid.radius().double()[None] / float(grid.radius().max())
    white = ms.SpectralCovariance(ms.Flat(), grid)
    for decibels, mean in ((93.0, 0.0), (30.0, 0.0), (30.0, 1e4)):
        power = 10 ** (-decibels / 10 * radius)
        statistics = ms.DataStatistics(torch.full((1, *size), mean).double(), power, grid, 9)
        schedule = build_schedule(group, builder, statistics, white)
        strongest = max(1.0, mean**2 * grid.numel)
        needed = (math.log(0.01 / strongest), -math.log(0.01 * 10 ** (-decibels / 10)))
        assert schedule.log_snr_range == pytest.approx((min(-20, needed[0]), max(20, needed[1])))
        alike = ms.SpectralCovariance(statistics.spectrum(), grid)
        if mean == 0:
            assert build_schedule(group, builder, statistics, alike).log_snr_range == (-20, 20)
        given = build_schedule({**group, "log_snr_range": [-9, 9]}, builder, statistics, white)
        assert given.log_snr_range == (-9, 9)
    empty = ms.DataStatistics(torch.zeros(1, *size).double(), 0 * power, grid, 9)
    assert spectral_range(empty, white) == (-20, 20)


def test_octave_times_learn_the_log_snrs_of_the_data() -> None:
    words = ["experiment=field_generate", "denoiser=spectral", "loss=octaves", "run_dir=none"]
    config = resolved(configuration.load("train", words))
    settings = Builder().settings(TrainSettings, config, "")
    grid = ms.Grid.of(y=16, x=16)
    power = 10 ** (-9.0 * grid.radius().double() / float(grid.radius().max()))[None]
    statistics = ms.DataStatistics(torch.zeros(1, 16, 16).double(), power, grid, 9)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid))
    times = with_times(settings, statistics, process).loss.times
    assert isinstance(times, ms.OctaveTimes)
    assert times.log_snrs == octave_log_snrs(statistics, process)
    short = ms.Process(ms.KarrasSchedule(), process.covariance)
    cut = with_times(settings, statistics, short).loss.times
    assert isinstance(cut, ms.OctaveTimes)
    assert cut.log_snrs == tuple(each for each in times.log_snrs if each < float(short.schedule.log_snr(0.0)))
    own = replace(settings, loss=replace(settings.loss, times=ms.OctaveTimes((1.0,))))
    assert with_times(own, statistics, process) is own
    empty = ms.DataStatistics(statistics.mean, 0 * power, grid, 9)
    with pytest.raises(RecipeError, match=r"loss\.times: the data have no power"):
        with_times(settings, empty, process)
