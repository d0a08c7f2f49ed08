"""Mel spectrograms as conditions: those of `LogMel`, half a hop later, of waveforms and from files."""

from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Dataset, Example
from modalities.derived_conditions import WithDerivedCondition
from modalities.image import Image
from modalities.mel_condition import MelFrames, MelSpectrogram
from modalities.representation import LogMel, Waveform
from modalities.vocoded import VocodedMel
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

RATE, SAMPLES, HOP, FRAMES = 8000, 4096, 128, 32
MEL = MelSpectrogram(512, HOP, bands=40)
MONO, STEREO = (
    Audio(RATE, SAMPLES / RATE, mix, Waveform(5.0), short="mask")  # type: ignore[arg-type]
    for mix in ("mono", "stereo")
)


def noise(channels: int, samples: int) -> Tensor:
    return 0.1 * dense.random(channels, samples).float()


@pytest.mark.parametrize("hop", [128, 64, 81])
def test_mel_frames_are_those_of_log_mel_for_a_sound_that_begins_half_a_hop_later(hop: int) -> None:
    later, frames = hop // 2, 30
    sound = noise(2, later + frames * hop)
    expected = LogMel(256, hop, bands=24).encode(sound, RATE)[..., 1 : 1 + frames]
    found = MelFrames(256, hop, bands=24).encode(sound[:, hop - later :][:, : (frames - 1) * hop], RATE)
    edge = 256 // hop + 1
    inner = slice(edge, frames - 1 - edge)
    torch.testing.assert_close(found.reshape(2, 24, -1)[..., inner], expected[..., inner])


def test_mel_frames_equal_librosa_for_a_tone() -> None:
    sound = (0.3 * np.sin(2 * np.pi * 700 * np.arange(SAMPLES) / RATE)).astype(np.float32)
    found = MEL.derive(MONO.encode(torch.from_numpy(sound[None])), MONO, 0)
    shifted = np.concatenate([sound[HOP // 2 :], np.zeros(HOP // 2, np.float32)])
    power = np.abs(librosa.stft(shifted, n_fft=512, hop_length=HOP, pad_mode="constant") * 4 / 512) ** 2
    filters = librosa.filters.mel(sr=RATE, n_fft=512, n_mels=40, fmin=60.0, fmax=4000.0, htk=True, norm=None)
    expected = np.maximum(10 * np.log10(np.maximum(filters @ power, 1e-12)), -80) / 40 + 1
    np.testing.assert_allclose(found.numpy()[:, 2:-3], expected[:, 2 : FRAMES - 3], atol=1e-3)
    assert found.shape == (40, FRAMES)


@pytest.mark.parametrize(("samples", "length"), [(4096, 4096), (4096, 2300)])
def test_mel_frames_of_steady_noise_have_one_level_up_to_the_last_known_one(samples: int, length: int) -> None:
    clips = 0.1 * torch.randn(300, 1, length, generator=torch.Generator().manual_seed(0))
    found = []
    for clip in clips:
        x0, mask = MONO.encode(clip), MONO.mask(clip)
        found.append(MEL.derive(x0 if mask is None else x0.masked_fill(~mask, torch.nan), MONO, 0))
    levels = 40 * torch.stack(found).mean((0, 1))
    known = sum(HOP * k + HOP // 2 < length for k in range(FRAMES))
    assert torch.equal(levels.isnan(), torch.arange(FRAMES) >= known)
    assert float((levels[:known] - levels[5:12].mean()).abs().max()) < 0.3


def test_mel_frames_decode_to_a_sound_like_the_original_at_its_place() -> None:
    sound = torch.zeros(2, SAMPLES)
    sound[0, 1000:1400] = noise(1, 400)
    sound[1, 3000:3400] = noise(1, 400)
    conditions = MEL.modality(STEREO)
    frames = MEL.derive(STEREO.encode(sound), STEREO, 0)
    assert conditions.tensor_shape == frames.shape == (80, FRAMES)
    power = conditions.decode(frames).square()
    for channel, place in enumerate((1200, 3200)):
        at = torch.arange(SAMPLES)
        assert abs(float((power[channel] * at).sum() / power[channel].sum()) - place) < 40


class Sounds(Dataset):
    classes = None

    def __init__(self, modality: Audio) -> None:
        self.modality = modality

    def __len__(self) -> int:
        return 3

    def example(self, index: int, seed: int | None = None) -> Example:
        return Example(self.modality.encode(noise(1, SAMPLES) * (index + 1)))

    def subset(self, indices):
        raise NotImplementedError


def test_dataset_with_mel_spectrograms_states_their_modality_which_has_other_channels() -> None:
    data = WithDerivedCondition(Sounds(MONO), MEL, 0)
    conditions = data.condition_modality
    assert isinstance(conditions, Audio)
    assert conditions.tensor_shape == data.batch([0, 2]).dense[1].shape == (40, FRAMES)
    longer = data.with_modality(MONO.at(seconds=2 * MONO.seconds)).condition_modality
    assert longer is not None
    assert longer.tensor_shape == (40, 2 * FRAMES)


def test_file_of_mel_values_is_read_as_it_was_encoded(tmp_path: Path) -> None:
    values = LogMel(512, HOP, bands=40).encode(noise(2, (FRAMES - 1) * HOP), RATE).numpy()
    np.save(tmp_path / "stereo.npy", values)
    np.save(tmp_path / "mono.npy", values[0].astype("float64"))
    np.save(tmp_path / "one.npy", values[:1])
    torch.testing.assert_close(MEL.read(tmp_path / "stereo.npy", STEREO, 0), torch.from_numpy(values).flatten(0, 1))
    for name in ("mono", "one"):
        torch.testing.assert_close(MEL.read(tmp_path / f"{name}.npy", MONO, 0), torch.from_numpy(values[0]))
    np.save(tmp_path / "loud.npy", np.full((40, FRAMES), [[1.9, -1.9] * 16]))
    assert MEL.read(tmp_path / "loud.npy", MONO, 0).unique().tolist() == [-1.0, 1.25]


def test_files_of_other_values_are_refused_with_the_remedy(tmp_path: Path) -> None:
    for name, array in (
        ("long", np.zeros((40, 63))), ("bands", np.zeros((64, FRAMES))), ("decibels", np.full((40, FRAMES), -30.0)),
        ("unknown", np.full((40, FRAMES), np.nan)), ("objects", np.array([{}])),
    ):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    assert_refused(
        *((rf"the condition .*{name}\.npy: .*{message}", lambda name=name: MEL.read(tmp_path / f"{name}.npy", MONO, 0))
          for name, message in (
            ("long", r"63 frames, but the samples have 32: set seconds=1\.008"),
            ("bands", r"shape \(64, 32\), but \(40, 32\) \(bands, frames\)"),
            ("decibels", r"from -30 to -30, .*1 - 2 \* decibels / \(-80\)"),
            ("unknown", "not finite, .* replace them by -1"),
            ("objects", "Python objects"),
        ))
    )  # fmt: skip


def test_mel_spectrogram_refuses_data_and_sizes_that_it_does_not_fit() -> None:
    assert_refused(
        ("add modality=audio_waveform", lambda: MEL.check(Image(8))),
        ("add modality=audio_waveform", lambda: MEL.check(Audio(RATE, representation=LogMel()))),
        (r"does not divide the 4000 .*seconds=0\.496", lambda: MEL.check(Audio(RATE, 0.5, representation=Waveform()))),
        ("too narrow", lambda: MelSpectrogram(bands=200).check(MONO)),
        ("too narrow", lambda: MelSpectrogram(bands=10**12).check(MONO)),
        ("below half the sample rate", lambda: MelSpectrogram(high=5000.0).check(MONO)),
        ("hop must be", lambda: MelSpectrogram(hop=500)),
    )
    buckets = Audio(RATE, SAMPLES / RATE, representation=Waveform(), buckets=[SAMPLES / RATE, 0.25])
    assert_refused(("does not divide the 2000", lambda: MEL.check(buckets)))


def test_settings_and_their_defaults_are_those_of_log_mel() -> None:
    node = OmegaConf.to_container(OmegaConf.load(files("configs") / "condition/mel.yaml"))
    assert isinstance(node, dict)
    assert node.pop("_target_") == "modalities.mel_condition.MelSpectrogram"
    assert node == {each.name: each.default for each in fields(LogMel)}
    assert MelSpectrogram().frames == MelFrames(**node)


@pytest.mark.parametrize("hop", [64, 51])
def test_vocoded_spectrogram_takes_its_samples_from_where_the_vocoder_has_its_frames(hop: int) -> None:
    samples, inner = 4000, LogMel(256, hop, bands=32)
    sound = noise(2, samples)
    spectrogram = inner.encode(sound, RATE)
    frames = spectrogram.shape[-1]
    longer = torch.nn.functional.pad(sound, (hop // 2, frames * hop - hop // 2 - samples))
    # The waveform of an exact vocoder has these frames in the middle of its hops.
    found = MelFrames(256, hop, bands=32).encode(longer, RATE).reshape(2, 32, frames)
    torch.testing.assert_close(found[..., 5:-6], spectrogram[..., 5:-6])
    vocoded = VocodedMel.of(inner, lambda _: longer)
    assert torch.equal(vocoded.decode(spectrogram, samples, RATE), sound)
    assert torch.equal(vocoded.encode(sound, RATE), spectrogram)
