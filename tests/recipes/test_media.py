"""Samples that start from media: variations, parts that are filled in, and media that are continued."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Picture
from safetensors.torch import load_file
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Modality
from modalities.representation import Stft, Waveform
from modalities.unknown import marking_what_lacks
from modalities.video import Video
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.runs.model import open_model
from recipes.sample import sample
from recipes.sampling.windows import medium_of
from recipes.sharing.pipeline import Pipeline
from recipes.train import train
from tests.helpers.tiny import tiny_run, tiny_words

PART = "unknown={height:[2,6],width:[4,null]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    tiny_run(run_dir, "every.validation=0", "every.samples=0")
    return run_dir


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of 12 × 8 pixels, of which the middle is read."""
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Picture.fromarray(pixels).save(tmp_path / "photos" / f"{'abc'[number]}.png")
    return tmp_path / "photos"


def drawn(run_dir: Path, *more: str) -> tuple[Path, Tensor]:
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", "steps=4", "engine.device=cpu", *more]))
    return out, load_file(out / "samples.safetensors")["x0"]


def modality_of(run_dir: Path) -> Modality:
    return open_model(run_dir, Builder()).assembly(Builder()).modality


def test_variations_have_the_names_of_their_files_and_differ_more_with_strength(trained, photos):
    modality = modality_of(trained)
    files = sorted(photos.iterdir())
    media = torch.stack([modality.encode(modality.load(path)) for path in files])
    out, little = drawn(trained, f"initial={photos}", "strength=0.25")
    assert sorted(path.name for path in (out / "samples").glob("*.png")) == ["a.png", "b.png", "c.png"]
    _, much = drawn(trained, f"initial={photos}", "strength=0.75")
    near, far = ((each - media).square().mean() for each in (little, much))
    assert 0 < near < 0.7 * far
    # From noise alone, the medium has no effect; a sample depends neither on its batch nor on the others.
    everything = drawn(trained, f"initial={photos}", "strength=1")[1]
    torch.testing.assert_close(everything, drawn(trained, "count=3")[1], rtol=0, atol=1e-5)
    _, more = drawn(trained, f"initial={photos}", "strength=0.25", "count=5", "batch=2")
    torch.testing.assert_close(more[:3], little, rtol=0, atol=1e-5)
    assert not torch.allclose(more[3], little[0], atol=1e-3)
    kept = Pipeline.from_pretrained(trained)(3, 4, initial=media, strength=0.25).samples
    torch.testing.assert_close(kept, little, rtol=0, atol=1e-5)


def test_inpainted_pictures_keep_known_pixels_and_fill_in_the_others(trained, photos, tmp_path):
    modality = modality_of(trained)
    out, boxed = drawn(trained, f"initial={photos}", PART)
    mask = np.zeros((8, 12), np.uint8)
    mask[2:6, 6:10] = 255  # the middle 8 × 8 pixels begin at column 2
    Picture.fromarray(mask).save(tmp_path / "mask.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in "abc":
        np.save(masks / f"{name}.npy", mask[:, 2:10])
    for unknown in (tmp_path / "mask.png", masks):
        same = drawn(trained, f"initial={photos}", f"unknown={unknown}")[1]
        torch.testing.assert_close(same, boxed, rtol=0, atol=1e-5)
    hidden = torch.from_numpy(mask[:, 2:10] > 0)
    for path in photos.iterdir():
        original = modality.load(path)
        result = modality.load(out / "samples" / path.name)
        assert torch.equal(result[:, ~hidden], original[:, ~hidden])
        assert (result[:, hidden].int() - original[:, hidden].int()).abs().float().mean() > 10
    # What is hidden has no effect on what is drawn there.
    for path in photos.iterdir():
        pixels = np.asarray(Picture.open(path)).copy()
        pixels[2:6, 6:10] = 0
        Picture.fromarray(pixels).save(path)
    torch.testing.assert_close(drawn(trained, f"initial={photos}", PART)[1], boxed, rtol=0, atol=1e-5)
    near = drawn(trained, f"initial={photos}", PART, "keep_known=false")[1]
    assert 0 < (near - boxed)[..., ~hidden].abs().mean() < 0.3
    pipeline = Pipeline.from_pretrained(trained)
    filled = pipeline(3, 4, initial=photos, unknown=[{"height": (2, 6), "width": (4, None)}]).samples
    torch.testing.assert_close(filled, boxed, rtol=0, atol=1e-5)
    tensors = pipeline(3, 4, initial=boxed.masked_fill(hidden, torch.nan), unknown="missing").samples
    torch.testing.assert_close(tensors, boxed, rtol=0, atol=1e-5)


def test_held_out_media_come_with_their_classes_and_pairs_belong_together_by_name(trained, photos, tmp_path):
    out, _ = drawn(trained, "initial=held_out", "count=3", "strength=0.5", "guidance.scale=2")
    labels = load_file(out / "samples.safetensors")["labels"]
    assert len(labels.unique()) > 1
    tiny_run(
        tmp_path / "coarse", "condition=coarse", "condition.factor=2", "every.validation=0", "every.samples=0",
        "training.samples=32", "every.checkpoint=32",
    )  # fmt: skip
    out, both = drawn(tmp_path / "coarse", f"initial={photos}", f"condition={photos}", PART)
    assert both.shape[0] == 3
    (photos / "c.png").rename(tmp_path / "d.png")
    one = drawn(tmp_path / "coarse", f"initial={photos}", f"condition={tmp_path / 'd.png'}", "strength=0.5")[1]
    assert one.shape[0] == 2
    other = tmp_path / "other"
    other.mkdir()
    for name in "de":
        Picture.new("L", (8, 8)).save(other / f"{name}.png")
    with pytest.raises(RecipeError, match=r"belong together by their names, .* a, b, d"):
        drawn(tmp_path / "coarse", f"initial={photos}", f"condition={other}")


REFUSED = [
    (["strength=0.5"], "add initial=FOLDER"),
    (["unknown=missing"], "add initial=FOLDER"),
    (["initial=held_out", "strength=1.5"], "at most 1"),
    (["initial=held_out", "strength=0.05"], "takes none of 4 steps"),
    (["initial=held_out", "unknown={time:[0,1]}"], "no axis 'time'; the axes are height from 0 to 8 pixel"),
    (["initial=held_out", "unknown={width:[0,null]}"], "nothing is known of medium 0"),
    (["initial=held_out", "unknown=missing"], "there is nothing to fill in"),
    (["initial=held_out", "unknown=nowhere.png"], "unknown=nowhere.png does not exist"),
    (["initial=nowhere"], "initial=nowhere does not exist"),
    (["seconds=2", "overlap=0.5"], "windows are for sounds and clips"),
    (["initial=held_out", "overlap=1"], "between 0 and 1"),
]


def test_media_that_do_not_fit_are_refused(trained):
    for words, message in REFUSED:
        with pytest.raises(RecipeError, match=message):
            drawn(trained, *words)


def test_media_that_cannot_be_read_are_named(trained, photos, tmp_path):
    (tmp_path / "masks").mkdir()
    Picture.new("L", (12, 8), 255).save(tmp_path / "masks" / "a.png")
    with pytest.raises(RecipeError, match=r"unknown: .*a\.png: it has 12 × 8 pixels, but the samples have 8 × 8"):
        drawn(trained, "initial=held_out", f"unknown={tmp_path / 'masks' / 'a.png'}")
    with pytest.raises(RecipeError, match=r"no file for b, c"):
        drawn(trained, f"initial={photos}", f"unknown={tmp_path / 'masks'}")
    (photos / "b.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match=r"initial: .*b\.png"):
        drawn(trained, f"initial={photos}")


def test_run_with_masked_condition_fills_in_the_given_part_and_keeps_the_rest(photos, tmp_path):
    small = ["every.validation=0", "every.samples=0", "training.samples=32", "every.checkpoint=32"]
    tiny_run(tmp_path / "run", "condition=masked", *small)
    modality = modality_of(tmp_path / "run")
    media = torch.stack([modality.encode(modality.load(path)) for path in sorted(photos.iterdir())])
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:6, 4:] = True
    _, filled = drawn(tmp_path / "run", f"condition={photos}", PART)
    assert torch.equal(filled[..., ~hidden], media[..., ~hidden])
    assert (filled - media)[..., hidden].abs().mean() > 0.1
    _, free = drawn(tmp_path / "run", f"condition={photos}", PART, "keep_known=false")
    assert torch.equal(free[..., hidden], filled[..., hidden])
    assert not torch.allclose(free[..., ~hidden], filled[..., ~hidden], atol=1e-2)
    _, random = drawn(tmp_path / "run", f"condition={photos}")
    assert 0.2 < (random == media).float().mean() < 0.95
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    rows = pipeline(3, 4, condition=media, unknown=hidden).samples
    torch.testing.assert_close(rows, filled, rtol=0, atol=1e-5)
    # Coarser conditions cannot be put back into samples, which is said before any is drawn.
    with pytest.raises(RecipeError, match="or set keep_known=false"):
        pipeline(3, 4, condition=media[..., ::2, ::2])
    assert pipeline(3, 4, condition=media[..., ::2, ::2], keep_known=False).samples.shape == media.shape


def test_fields_keep_known_values_in_their_units_and_lack_none_any_more(tmp_path):
    grid = np.random.default_rng(0).normal(280.0, 5.0, (24, 6, 8))
    grid[:, 4, 5:] = np.nan
    np.savez(tmp_path / "data.npz", temperature=grid, lat=-30 + 10.0 * np.arange(6), lon=45.0 * np.arange(8))
    np.savez(tmp_path / "one.npz", temperature=grid[3], lat=-30 + 10.0 * np.arange(6), lon=45.0 * np.arange(8))
    words = [
        *tiny_words(tmp_path / "run"), "modality=field", "modality.axes=[lat,lon]", "data=arrays",
        f"data.root={tmp_path / 'data.npz'}", "validation.holdout=4", "training.samples=32", "every.validation=0",
        "every.samples=0", "every.checkpoint=32", "training.statistics=20",
    ]  # fmt: skip
    words.remove("modality.size=8")
    train(resolved(configuration.load("train", words)))
    out, _ = drawn(tmp_path / "run", f"initial={tmp_path / 'one.npz'}", "unknown={lat:[null,-10],lon:[90,180]}")
    with np.load(out / "samples" / "one.npz") as file:
        values = file["temperature"]
    known = ~np.isnan(grid[3])
    known[:2, 2:4] = False
    np.testing.assert_allclose(values[known], grid[3][known], rtol=1e-5)
    assert np.isfinite(values).all()
    assert np.abs(values - grid[3])[:2, 2:4].mean() > 0.1


def sounds(root: Path, seconds: float) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        noise = 0.1 * np.random.default_rng(number).normal(size=round(seconds * 1000))
        soundfile.write(root / f"{number:02d}.wav", noise.clip(-1, 1), 1000)


def clips(root: Path, frames: int) -> None:
    for number in range(12):
        noise = torch.rand(1, frames, 8, 8, generator=torch.Generator().manual_seed(number))
        Video(frames=frames, size=8, fps=10, channels=1).save((255 * noise).byte(), root / f"{number:02d}.mp4")


MEDIA: dict[str, list[str]] = {
    "waveform": ["modality=audio_waveform", "modality.rate=1000", "modality.seconds=0.128", "modality.short=skip"],
    "spectrogram": ["modality=audio", "modality.rate=1000", "modality.seconds=0.256",
                    "modality.representation.window=32", "modality.representation.hop=8"],
    "clips": ["modality=video", "modality.frames=6", "modality.fps=10", "modality.channels=1"],
    "first frames": ["modality=video", "modality.frames=6", "modality.fps=10", "modality.channels=1",
                     "condition=first_frames", "condition.count=3"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, made = tmp_path_factory.mktemp("media"), {}

    def run(name: str) -> Path:
        if name not in made:
            data = root / name / "data"
            clips(data, 6) if "modality=video" in MEDIA[name] else sounds(data, 0.3)
            made[name] = root / name / "run"
            words = [
                *tiny_words(made[name]), *MEDIA[name], "data=folder", f"data.root={data}", "data.labels=none",
                "validation.holdout=2", "training.samples=32", "training.statistics=10", "every.validation=0",
                "every.samples=0", "every.checkpoint=32",
            ]  # fmt: skip
            sized = "modality=video" in words
            train(
                configuration.load("train", [word for word in words if sized or not word.startswith("modality.size")])
            )
        return made[name]

    return run


@pytest.mark.parametrize(("representation", "hop"), [(Waveform(), 1), (Stft(window=32, hop=8), 8)])
def test_medium_of_a_padded_example_ends_where_its_data_end(representation, hop):
    """Silence that fills an example up is not what its sound is continued from."""
    modality = Audio(rate=1000, seconds=0.256, representation=representation)
    sound = torch.randn(1, 131, generator=torch.Generator().manual_seed(0)) / 10
    x0, present = modality.encode(sound), modality.mask(sound)
    medium = medium_of(x0, present, modality)
    assert 131 - hop < medium.shape[1] <= 131
    # The last values of a spectrogram depend on what follows.
    certain = 131 if hop == 1 else 131 - 32
    torch.testing.assert_close(medium[:, :certain], sound[:, :certain], rtol=0, atol=1e-4)
    assert medium_of(x0, None, modality).shape == (1, 256)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEDIA)
def test_sounds_and_clips_are_varied_filled_in_and_continued(runs, name, tmp_path):
    run_dir = runs(name)
    modality: Any = modality_of(run_dir)
    length = modality.frames if name in ("clips", "first frames") else modality.samples
    unit = 1 / (modality.fps if name in ("clips", "first frames") else modality.rate)
    key = "frames" if name in ("clips", "first frames") else "seconds"
    source = "condition" if name == "first frames" else "initial"
    if key == "frames":
        clips(tmp_path / "data", 3)
    else:
        sounds(tmp_path / "data", length * unit / 2)
    file = sorted((tmp_path / "data").glob("*.mp4" if key == "frames" else "*.wav"))[1]
    reading: Any = marking_what_lacks(modality)
    beginning = reading.load(file)
    if source == "initial":
        out, filled = drawn(run_dir, f"initial={file}", "unknown=missing", "count=2")
        known = reading.mask(beginning).expand(modality.tensor_shape)
        assert torch.equal(filled[0][known], filled[1][known])
        assert not torch.allclose(filled[0][~known], filled[1][~known], atol=1e-3)
        torch.testing.assert_close(filled[0][known], modality.encode(beginning)[known], rtol=0, atol=1e-5)
        assert len(list((out / "samples").iterdir())) >= 2
    value = f"{length * 3 if key == 'frames' else length * 3 * unit}"
    words = [f"{key}={value}", "overlap=0.5", f"{source}={file}"]
    out, long = drawn(run_dir, *words, "count=2")
    whole = modality.at(**{key: length * 3 if key == "frames" else length * 3 * unit})
    assert tuple(long.shape[1:]) == whole.tensor_shape
    media = torch.stack([whole.decode(each).float() for each in long])
    # The last values that are known fade into the window of a spectrogram.
    certain = beginning.shape[1] - (32 if name == "spectrogram" else 0)
    expected = beginning[:, :certain].float().expand(2, -1, *beginning[:, :certain].shape[1:])
    torch.testing.assert_close(media[:, :, :certain], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(media[0, :, -length:], media[1, :, -length:], atol=1e-3)
    one = drawn(run_dir, *words)[1]
    torch.testing.assert_close(one[0], long[0], rtol=0, atol=2e-2 if key == "frames" else 1e-3)
    with pytest.raises(RecipeError, match="needs the length"):
        drawn(run_dir, "overlap=0.5", f"{source}={file}")
