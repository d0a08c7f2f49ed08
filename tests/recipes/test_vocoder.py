"""A run with condition=mel makes sounds of recordings and of files of mel values, and decodes the samples of others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import multisagd as ms
from modalities.audio import Audio
from modalities.mel_condition import MelFrames
from multisagd.metrics.log_spectral import log_spectral_distance
from multisagd.seeds import derive
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluate import evaluate
from recipes.export import export
from recipes.inspect import inspect
from recipes.report import report
from recipes.runs.checkpoint import State
from recipes.runs.model import open_model
from recipes.sample import sample
from recipes.sampling.held_out import read_held_out
from recipes.sharing.pipeline import Pipeline
from recipes.train import train
from tests.helpers.tiny import assert_same, last_state, tiny_words

RATE, HOP, FRAMES, BANDS = 8000, 64, 16, 12
SECONDS = FRAMES * HOP / RATE
MEL = ["window=256", f"hop={HOP}", f"bands={BANDS}"]
VOCODER = [
    "modality=audio_waveform", f"modality.seconds={SECONDS}", "modality.representation.scale=5", "condition=mel",
    *(f"condition.{each}" for each in MEL), "training.condition_dropout=0", "network.multipliers=[1,1,2]",
]  # fmt: skip
SPECTROGRAMS = ["modality=audio_mel", "modality.seconds=0.12", *(f"modality.representation.{each}" for each in MEL)]
FAST = ["every.validation=0", "every.samples=0", "training.samples=32", "every.checkpoint=32"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of several harmonics, longer than a clip."""
    root = tmp_path_factory.mktemp("recordings")
    time = np.arange(1600) / RATE
    for number in range(24):
        pitch = 150 + 20 * number
        tone = sum(np.sin(2 * np.pi * pitch * k * time + k) / k for k in range(1, 8))
        soundfile.write(root / f"{number:02d}.wav", 0.1 * tone, RATE)
    return root


def tiny_run(run_dir: Path, recordings: Path, *words: str) -> State:
    data = ["data=folder", f"data.root={recordings}", "data.labels=none", "validation.holdout=6", "modality.short=mask"]
    own = [word for word in tiny_words(run_dir) if not word.startswith("modality.size")]
    train(configuration.load("train", [*own, *data, f"modality.rate={RATE}", *words]))
    return last_state(run_dir)


@pytest.fixture(scope="module")
def vocoder(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "vocoder"
    tiny_run(run_dir, recordings, *VOCODER)
    return run_dir


@pytest.fixture(scope="module")
def spectrograms(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "spectrograms"
    tiny_run(run_dir, recordings, *SPECTROGRAMS, *FAST)
    return run_dir


def drawn(run_dir: Path, *more: str) -> tuple[Path, Tensor]:
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", "steps=2", *more]))
    return out, load_file(out / "samples.safetensors")["x0"]


def sound(path: Path) -> Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy())


def assert_refused(*cases: tuple[str, Callable[[], object]]) -> None:
    for message, attempt in cases:
        with pytest.raises(RecipeError, match=message):
            attempt()


@pytest.mark.slow
def test_vocoder_continues_exactly_and_records_and_shows_its_condition(vocoder, recordings, tmp_path, capsys):
    tiny_run(tmp_path / "parts", recordings, *VOCODER, "training.samples=48")
    assert_same(tiny_run(tmp_path / "parts", recordings, *VOCODER), last_state(vocoder))
    assert json.loads((vocoder / "run.json").read_text())["condition"] == {"channels": BANDS, "modality": None}
    shown = sound(vocoder / "samples" / "conditions.wav")
    assert shown.shape[1] == 4 * (FRAMES * HOP + RATE // 4)
    words = [word for word in VOCODER if not word.startswith(("training", "network"))]
    words += ["data=folder", f"data.root={recordings}", f"modality.rate={RATE}", f"run_dir={tmp_path / 'look'}"]
    inspect(configuration.load("inspect", [*words, "count=2"]))
    assert "conditions: 12 × 16" in capsys.readouterr().out


def test_samples_for_recordings_are_those_for_files_of_their_mel_values(vocoder, recordings, tmp_path):
    audio = Audio(RATE, SECONDS, representation=MelFrames(256, HOP, bands=BANDS))
    for name in ("03", "07"):
        values = audio.encode(audio.load(recordings / f"{name}.wav"))
        np.save(tmp_path / f"{name}.npy", values.numpy())
        shutil.copy(recordings / f"{name}.wav", tmp_path / f"copy{name}.wav")
    out, x0 = drawn(vocoder, f"condition={tmp_path}", f"out={tmp_path / 'out'}")
    assert sorted(path.stem for path in (out / "samples").glob("*.wav")) == ["03", "07", "copy03", "copy07"]
    assert (out / "conditions.wav").exists()
    # Each sample has noise of its own, so samples of the same condition are compared at the same place.
    _, files = drawn(vocoder, f"condition={tmp_path / '07.npy'}")
    _, copies = drawn(vocoder, f"condition={tmp_path / 'copy07.wav'}")
    torch.testing.assert_close(files, copies, rtol=0, atol=1e-5)
    assert not torch.allclose(files[0], x0[0], atol=1e-3)
    pipeline = Pipeline.from_pretrained(vocoder)
    dense = torch.from_numpy(np.load(tmp_path / "07.npy"))[None]
    torch.testing.assert_close(pipeline(1, 2, condition=dense).samples, files, rtol=0, atol=1e-5)


def test_samples_are_as_long_as_the_mel_values_that_seconds_asks_for(vocoder, recordings, tmp_path):
    np.save(tmp_path / "long.npy", -0.5 * np.ones((BANDS, 25)))
    given, other = f"condition={tmp_path / 'long.npy'}", torch.zeros(1, 9, FRAMES)
    _, x0 = drawn(vocoder, given, "seconds=0.2")
    assert x0.shape == (1, 1, 25 * HOP)
    assert drawn(vocoder, f"condition={recordings}", "seconds=0.2", "count=2")[1].shape == (2, 1, 25 * HOP)
    assert_refused(
        (r"long\.npy: it has 25 frames.*set seconds=0\.2", lambda: drawn(vocoder, given)),
        (r"condition: hop=64 does not divide the 1200", lambda: drawn(vocoder, "condition=held_out", "seconds=0.15")),
        ("add condition=FOLDER .*media like those", lambda: drawn(vocoder)),
        ("must be float of shape", lambda: Pipeline.from_pretrained(vocoder)(1, 2, condition=other)),
    )


def test_vocoder_needs_waveforms_of_whole_hops(recordings, tmp_path):
    run = lambda *words: tiny_run(tmp_path / "run", recordings, *VOCODER, *words)  # noqa: E731
    assert_refused(
        ("condition: hop=64 does not divide the 1000 .*seconds=0.128", lambda: run("modality.seconds=0.125")),
        ("condition: a mel spectrogram is derived from waveforms",
         lambda: tiny_run(tmp_path / "run", recordings, *SPECTROGRAMS, "condition=mel")),
    )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_samples_of_spectrograms_become_the_sound_that_the_vocoder_draws_for_them(vocoder, spectrograms, tmp_path):
    export(configuration.load("export", [f"run_dir={vocoder}", f"out={tmp_path / 'exported'}"]))
    outs = []
    for number, folder in enumerate((vocoder, tmp_path / "exported")):
        words = [f"vocoder={folder}", "vocoder_steps=2", "count=3", f"out={tmp_path / str(number)}"]
        outs.append(drawn(spectrograms, *words))
    (first, x0), (second, _) = outs
    _, plain = drawn(spectrograms, "count=3")
    torch.testing.assert_close(x0, plain)
    sounds = [sound(first / "samples" / f"{number}.wav") for number in range(3)]
    assert [each.shape for each in sounds] == [(1, 960)] * 3
    assert torch.equal(sounds[1], sound(second / "samples" / "1.wav"))
    pipeline = Pipeline.from_pretrained(spectrograms)
    made = pipeline(3, 2, vocoder=vocoder, vocoder_steps=2)
    torch.testing.assert_close(made.audios[1], sounds[1], rtol=0, atol=1e-4)
    out, _ = drawn(spectrograms, f"vocoder={vocoder}", "vocoder_steps=1", "count=1", "seconds=0.18", "overlap=0.5")
    assert sound(out / "samples" / "0.wav").shape == (1, 1440)
    # The same waveform from the vocoder itself, half a hop later.
    own = Pipeline.from_pretrained(vocoder)
    seed = derive(0, "vocoder")
    alone = own(1, 2, seeds=[seed], condition=x0[1].clamp(-1, 1.25), seconds=16 * HOP / RATE).audios[0]
    torch.testing.assert_close(alone[:, HOP // 2 : HOP // 2 + 960], sounds[1], rtol=0, atol=1e-4)


def test_vocoders_of_other_spectrograms_and_runs_that_are_none_are_refused(vocoder, spectrograms, recordings, tmp_path):
    tiny_run(tmp_path / "other", recordings, *VOCODER, *FAST, "condition.bands=10", "condition.low=50")
    export(configuration.load("export", [f"run_dir={vocoder}", f"out={tmp_path / 'altered'}"]))
    tensors = load_file(tmp_path / "altered" / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, tmp_path / "altered" / "model.safetensors")
    shutil.copytree(vocoder, tmp_path / "code")
    config = tmp_path / "code" / "config.yaml"
    config.write_text(config.read_text().replace("modalities.mel_condition.MelSpectrogram", "os.system"))

    def with_vocoder(folder: Path, run: Path = spectrograms) -> Any:
        return drawn(run, f"vocoder={folder}", "count=1", *(["condition=held_out"] if run == vocoder else []))

    assert_refused(
        (r"vocoder: .*other was trained on other .*: bands 10 \(here 12\), low 50 \(here 60\)\. Train",
         lambda: with_vocoder(tmp_path / "other")),
        ("vocoder: .*spectrograms is not a vocoder", lambda: with_vocoder(spectrograms)),
        ("vocoder: there is no run or exported model in .*nowhere", lambda: with_vocoder(tmp_path / "nowhere")),
        ("does not make log-mel spectrograms .*remove vocoder", lambda: with_vocoder(vocoder, vocoder)),
        ("vocoder: .*altered", lambda: with_vocoder(tmp_path / "altered")),
        ("vocoder: .*os.system is not under an allowed package", lambda: with_vocoder(tmp_path / "code")),
    )  # fmt: skip


@pytest.mark.slow
def test_evaluate_compares_samples_and_griffin_lim_with_the_recordings(vocoder, spectrograms):
    words = ["steps=2", "conditions=4", "members=2", "bootstrap=4", "metrics=[log_spectral_distance]"]
    report = evaluate(configuration.load("evaluate", [f"run_dir={vocoder}", *words]))
    rows = {row["name"]: row["value"] for row in report["results"]["log_spectral_distance"]["rows"]}
    assert list(rows) == ["distance of samples", "distance of Griffin-Lim"]
    _, x0 = drawn(vocoder, "condition=held_out", "count=8", "members=2")
    truth = read_held_out_of(vocoder, 4)
    made = x0.reshape(2, 4, 1, -1) / 5
    expected = torch.stack([log_spectral_distance(each, truth, 256, HOP) for each in made]).mean()
    assert rows["distance of samples"] == pytest.approx(float(expected), rel=1e-5)
    frames = MelFrames(256, HOP, bands=BANDS)
    plain = torch.stack([frames.decode(frames.encode(each, RATE), truth.shape[-1], RATE) for each in truth])
    expected = log_spectral_distance(plain, truth, 256, HOP).mean()
    assert rows["distance of Griffin-Lim"] == pytest.approx(float(expected), rel=1e-4)
    assert_refused(
        ("log_spectral_distance cannot be computed: the run is not a vocoder",
         lambda: evaluate(configuration.load("evaluate", [f"run_dir={spectrograms}", *words]))),
    )  # fmt: skip


@pytest.mark.slow
def test_evaluate_decodes_samples_and_examples_by_the_vocoder(vocoder, spectrograms, monkeypatch):
    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("Griffin-Lim is used")

    monkeypatch.setattr("modalities.mel.invert_magnitude", refused)
    words = ["vocoder_steps=1", "steps=1", "samples=8", "splits=1", "bootstrap=2", "directions=4", "metrics=[sliced]"]
    report = evaluate(configuration.load("evaluate", [f"run_dir={spectrograms}", f"vocoder={vocoder}", *words]))
    assert report["settings"]["vocoder"] == str(vocoder)
    assert report["counts"]["compared"] == 8


def read_held_out_of(run_dir: Path, count: int) -> Tensor:
    """Return the first held-out recordings with which samples are drawn, (count, 1, samples)."""
    builder = Builder()
    model = open_model(run_dir, builder)
    assembly = model.assembly(builder)
    held_out = read_held_out(model, assembly, assembly.modality, count, 0, "condition")
    return torch.stack([assembly.modality.decode(each) for each in held_out.media.x0])


def test_noise_that_follows_the_spectrogram_is_used_in_training_sampling_and_likelihood(recordings, tmp_path):
    run_dir = tmp_path / "following"
    tiny_run(run_dir, recordings, *VOCODER, *FAST, "covariance=mel")
    model = open_model(run_dir, Builder())
    assembly = model.assembly(Builder())
    held_out = read_held_out(model, assembly, assembly.modality, 4, 0, "condition")
    covariance = assembly.process().covariance.bound(ms.Condition(dense=held_out.dense), held_out.media.x0.shape)
    # The noise is as loud as the sound: these tones are far below the level of white noise.
    assert float(covariance.sample(range(4)).std()) == pytest.approx(float(held_out.media.x0.std()), rel=0.3)
    x0 = drawn(run_dir, "condition=held_out", "count=2")[1]
    assert float(x0.std()) < 0.7
    words = ["metrics=[likelihood]", "likelihood.items=4", "likelihood.steps=2", "steps=2", "samples=4"]
    found = evaluate(configuration.load("evaluate", [f"run_dir={run_dir}", *words]))
    assert found["results"]["likelihood"]
    page = report(configuration.load("report", [f"run_dir={run_dir}"])).read_text(encoding="utf-8")
    assert "MelNoise" in page
    assert "The noise follows the condition of each example" in page
    assert_refused(
        ("add condition=mel", lambda: tiny_run(tmp_path / "a", recordings, *SPECTROGRAMS, *FAST, "covariance=mel"))
    )
