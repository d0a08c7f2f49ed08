"""`multisagd encode` writes the latents of an autoencoder as shards, continues, and its shards can be trained on."""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modalities import shard_index
from modalities.autoencoders import DiffusersAutoencoder
from modalities.image import Image
from modalities.latent import Latent
from modalities.shards import LatentShards
from modalities.video import Video
from recipes.base.errors import Interrupted, RecipeError
from recipes.base.progress import Display
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.encode import encode
from recipes.evaluation.sets import real_data
from recipes.runs.checkpoint import Checkpoints
from recipes.sample import sample
from recipes.train import train

diffusers = pytest.importorskip("diffusers")
from tests.helpers.tiny import TINY  # noqa: E402
from tests.helpers.tiny_autoencoders import save_tiny  # noqa: E402

COUNT = 22
QUICK = ["shard_size=6", "batch=4", "dtype=float32", "engine.threads=1", "engine.device=cpu"]
TRAINING = [word for word in TINY if not word.startswith(("modality.", "validation.holdout"))]
SAMPLING = ["steps=1", "count=1", "engine.device=cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` in two classes, 12 by 8 pixels, and an autoencoder in `vae`."""
    folder = tmp_path_factory.mktemp("source")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(draw.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(path)
    save_tiny("AutoencoderKL", folder / "vae")
    return folder


def modality(source: Path) -> list[str]:
    return ["modality=latent_image", "modality.modality.size=8", autoencoder_of(source / "vae")]


def run(source: Path, out: Path, *words: str) -> Path:
    data = ["data=folder", f"data.root={source / 'photos'}"]
    encode(configuration.load("encode", [*modality(source), *data, *QUICK, f"run_dir={out}", *words]))
    return out


@pytest.fixture(scope="module")
def encoded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(source, tmp_path_factory.mktemp("encoded") / "latents")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def files(source: Path) -> list[Path]:
    return sorted((source / "photos").rglob("*.png"))


def directly(source: Path) -> torch.Tensor:
    """Return what the autoencoder itself makes of the photos."""
    image = Image(size=8)
    model = diffusers.AutoencoderKL.from_pretrained(source / "vae")
    with torch.no_grad():
        return model.encode(torch.stack([image.encode(image.load(path)) for path in files(source)])).latent_dist.mean


def autoencoder_of(folder: Path) -> str:
    return f"modality.autoencoder.name={folder}"


def test_encode_writes_every_example_once_in_order_and_their_scale(source: Path, encoded: Path) -> None:
    names = [f"{number:06d}.safetensors" for number in range(4)]
    assert sorted(content(encoded)) == [*names, "index.json", "statistics.json"]
    parts = [load_file(encoded / name) for name in names]
    expected = directly(source)
    assert [len(part["x0"]) for part in parts] == [6, 6, 6, 4]
    torch.testing.assert_close(torch.cat([part["x0"] for part in parts]), expected)
    assert torch.cat([part["labels"] for part in parts]).tolist() == [0] * 11 + [1] * 11
    record, values = json.loads((encoded / "statistics.json").read_text()), expected.double().numpy()
    np.testing.assert_allclose(record["mean"], values.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(record["std"], values.std((0, 2, 3)), rtol=1e-5)
    latent = Latent(Image(size=8), DiffusersAutoencoder(str(source / "vae")), encoded)
    x0 = LatentShards(latent, encoded).batch(range(COUNT)).x0
    torch.testing.assert_close(x0.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x0.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x0[3], latent.encode(latent.load(files(source)[3])))


def test_encode_is_deterministic_and_leaves_a_finished_folder_unchanged(
    source: Path, encoded: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    before = content(encoded)
    assert content(run(source, tmp_path / "again", "data.threads=1", "engine.workers=0")) == before
    monkeypatch.setattr(Latent, "compress", None)
    assert content(run(source, encoded)) == before


def test_encode_continues_after_an_interrupt_without_half_written_files(
    source: Path, encoded: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    real, calls = Display.update, []

    def update(self: Display, done: int, note: str = "") -> None:
        real(self, done, note)
        calls.append(done)
        if len(calls) == 3:  # in the middle of the second shard
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "update", update)
    with pytest.raises(Interrupted, match=r"1 of 4 shards are in .*same command to continue") as caught:
        run(source, tmp_path / "out")
    assert caught.value.status == 130
    assert sorted(content(tmp_path / "out")) == ["000000.safetensors", "index.json"]
    latent = Latent(Image(size=8), DiffusersAutoencoder(str(source / "vae")))
    with pytest.raises(ValueError, match="has 1 of 4 shards"):
        LatentShards(latent, tmp_path / "out")
    assert content(run(source, tmp_path / "out")) == content(encoded)
    assert calls[3:] == [10, 12, 16, 18, 22]


def crashing(moment: int) -> Callable[..., None]:
    """Return a `write_whole` that is interrupted within that write, and in later ones."""
    real, writes = shard_index.write_whole, itertools.count()

    def write_whole(path: Path, write: Callable[[Path], object]) -> None:
        if next(writes) >= moment:
            path.with_name(f"{path.name}.partial").write_bytes(b"half of it")
            raise KeyboardInterrupt
        real(path, write)

    return write_whole


def test_encode_continues_after_a_crash_at_any_write(
    source: Path, encoded: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    for moment in range(9):
        out = tmp_path / str(moment)
        with monkeypatch.context() as patched:
            patched.setattr(shard_index, "write_whole", crashing(moment))
            with pytest.raises(KeyboardInterrupt):
                run(source, out)
        assert content(run(source, out)) == content(encoded), f"crash at write {moment}"


def test_encode_writes_missing_and_damaged_shards_again(source: Path, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    (out / "000001.safetensors").unlink()
    (out / "statistics.json").unlink()
    damaged = bytearray((out / "000002.safetensors").read_bytes())
    damaged[-1] ^= 1
    (out / "000002.safetensors").write_bytes(damaged)
    assert content(run(source, out)) == content(encoded)


def test_encode_refuses_to_continue_with_another_configuration(source: Path, encoded: Path) -> None:
    before = content(encoded)
    with pytest.raises(RecipeError) as caught:
        run(source, encoded, "dtype=float16", "modality.modality.flip=true", "batch=2", "engine.workers=0")
    message = str(caught.value)
    for part in ("dtype: 'float32' -> 'float16'", "modality.modality.flip: False -> True", "another run_dir"):
        assert part in message
    assert "batch" not in message
    assert content(encoded) == before


def test_encode_refuses_changed_data_and_foreign_folders(source: Path, encoded: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "photos", tmp_path / "photos")
    run(tmp_path, encoded, autoencoder_of(source / "vae"))  # moved, but the same
    (tmp_path / "photos" / "dog" / "01.png").unlink()
    with pytest.raises(RecipeError, match=r"the data of .* have changed.* examples: 22 -> 21"):
        run(tmp_path, encoded, autoencoder_of(source / "vae"))
    with pytest.raises(RecipeError, match="not empty and does not contain latents"):
        run(source, tmp_path)


def test_encode_augments_further_passes(source: Path, tmp_path: Path) -> None:
    words = ["modality.modality.flip=true", "passes=3", "shard_size=20"]
    out = run(source, tmp_path / "out", *words)
    parts = [load_file(out / f"{number:06d}.safetensors") for number in range(4)]
    rows = torch.cat([part["x0"] for part in parts]).unflatten(0, (3, COUNT))
    torch.testing.assert_close(rows[0], directly(source))
    assert torch.cat([part["labels"] for part in parts]).tolist() == ([0] * 11 + [1] * 11) * 3
    for turn in (1, 2):
        changed = (rows[turn] - rows[0]).abs().flatten(1).amax(1) > 1e-3
        assert changed.sum() > COUNT // 2
    assert not torch.equal(rows[1], rows[2])
    assert content(run(source, tmp_path / "again", *words)) == content(out)
    other = run(source, tmp_path / "other", *words, "seed=1")
    assert content(other)["000000.safetensors"][-100:] == content(out)["000000.safetensors"][-100:]
    assert content(other)["000003.safetensors"] != content(out)["000003.safetensors"]


def test_encode_keeps_captions_and_reports_unreadable_files(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source / "photos", tmp_path / "photos")
    for number, path in enumerate(files(tmp_path)):
        path.with_suffix(".txt").write_text(f"picture {number}")
    (tmp_path / "photos" / "cat" / "00.png").write_bytes(b"no picture")
    words = [autoencoder_of(source / "vae"), "data.captions=sidecar"]
    with pytest.raises(RecipeError, match="max_unreadable"):
        run(tmp_path, tmp_path / "out", *words, "data.max_unreadable=0")
    assert not (tmp_path / "out").exists()
    out = run(tmp_path, tmp_path / "out", *words)
    assert "1 files could not be read" in capsys.readouterr().out
    assert list(json.loads((out / "index.json").read_text())["unreadable"]) == ["cat/00.png"]
    data = LatentShards(Latent(Image(size=8), DiffusersAutoencoder(str(source / "vae")), out), out)
    assert data.caption(21) == "picture 21"
    assert data.batch([20, 1]).texts == ("picture 20", "picture 1")
    assert data.classes == ("cat", "dog")


def test_encode_rejects_wrong_settings_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    data = ["data=folder", f"data.root={source / 'photos'}", f"run_dir={tmp_path / 'out'}"]
    for word, message in {
        "modality=image": "modality._target_: modalities.image.Image is not a Latent",
        "modality.autoencoder.kind=AutoencoderKLL": "did you mean 'AutoencoderKL'",
        "passes=0": "passes must be at least 1",
        "dtype=float64": "dtype: expected one of float16, bfloat16, float32",
        "data.root=/nowhere": "is not a folder",
    }.items():
        words = [word] if word == "modality=image" else [*modality(source), word]
        with pytest.raises(RecipeError, match=message):
            encode(configuration.load("encode", [*data, *words]))
    assert not (tmp_path / "out").exists()


def training(source: Path, latents: Path, run_dir: Path, *words: str) -> dict[str, Any]:
    data = ["data=latents", f"data.root={latents}", "validation.holdout=4"]
    return configuration.load("train", [*TRAINING, *modality(source), *data, f"run_dir={run_dir}", *words])


def sampled(run_dir: Path, *words: str) -> Path:
    return sample(configuration.load("sample", [f"run_dir={run_dir}", *SAMPLING, *words]))


def test_train_learns_from_shards_and_sample_decodes_them(source: Path, encoded: Path, tmp_path: Path) -> None:
    train(training(source, encoded, tmp_path / "run", "training.samples=32"))
    state = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert state is not None
    assert state.samples == 32
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["classes"] == ["cat", "dog"]
    sampled(tmp_path / "run", "steps=2", "count=3", f"out={tmp_path / 'drawn'}")
    x0 = load_file(tmp_path / "drawn" / "samples.safetensors")["x0"]
    assert x0.shape == (3, 4, 4, 4)
    # The picture is what the autoencoder itself makes of the sample, its scale undone.
    record = json.loads((encoded / "statistics.json").read_text())
    z = x0 * torch.tensor(record["std"]).view(4, 1, 1) + torch.tensor(record["mean"]).view(4, 1, 1)
    model = diffusers.AutoencoderKL.from_pretrained(source / "vae")
    with torch.no_grad():
        pixels = ((model.decode(z).sample + 1) * 127.5).clamp(0, 255)
    for number in range(3):
        with PIL.Image.open(tmp_path / "drawn" / "samples" / f"{number}.png") as picture:
            saved = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
        assert (saved - pixels[number]).abs().max() < 0.51


def test_latents_for_validation_have_the_scale_of_those_for_training(
    source: Path, encoded: Path, tmp_path: Path
) -> None:
    dogs = run(source, tmp_path / "dogs", "data.match=dog", "data.labels=folder")
    config = training(source, encoded, tmp_path / "run", f"validation.root={dogs}", "every.validation=16")
    train(config | {"training": config["training"] | {"samples": 16}})
    _, held_out = real_data(tmp_path / "run", Builder())
    everything, _ = real_data(tmp_path / "run", Builder())
    assert held_out is not None
    assert held_out.batch(range(11)).labels.tolist() == [1] * 11  # type: ignore[union-attr]
    torch.testing.assert_close(held_out.batch(range(11)).x0, everything.batch(range(11, 22)).x0)
    with pytest.raises(RecipeError, match=r"validation\.root=.*nowhere: cannot read the scale of the latents"):
        train(training(source, encoded, tmp_path / "other", f"validation.root={tmp_path / 'nowhere'}"))


def test_train_requires_the_scale_and_the_modality_of_the_latents(source: Path, encoded: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"modality.statistics has no value"):
        configuration.load("train", [*modality(source), "data=folder", "data.root=photos", f"run_dir={run_dir}"])
    for words, latents, message in (
        (["modality.statistics=null"], encoded, "data: the modality does not scale latents by the statistics"),
        (["modality.modality.size=16"], encoded, r"a different encoding; modality.size: \[8, 8\] -> \[16, 16\]"),
        ([], tmp_path / "nowhere", "data.root.*to a folder that `multisagd encode` completed"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(training(source, latents, run_dir, *words))
    assert not run_dir.exists()


def test_encode_takes_an_autoencoder_of_an_allowed_module(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "halves.py").write_text(
        "import torch\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Halves:\n"
        "    factor: float = 1.0\n"
        "    def encode(self, x):\n"
        "        return self.factor * torch.nn.functional.avg_pool2d(x, 2)\n"
        "    def decode(self, z):\n"
        "        return z.repeat_interleave(2, -1).repeat_interleave(2, -2) / self.factor\n"
    )
    words = ["modality=latent", "modality.modality.size=8", "modality.modality.channels=3"]
    words += ["modality.autoencoder._target_=halves.Halves", "+modality.autoencoder.factor=2.0"]
    data = ["data=folder", f"data.root={source / 'photos'}", f"run_dir={tmp_path / 'out'}", *QUICK]
    with pytest.raises(RecipeError, match=r"halves.Halves is not under an allowed package"):
        encode(configuration.load("encode", [*words, *data]))
    encode(configuration.load("encode", [*words, *data, "allow_targets=[halves]"]))
    rows = load_file(tmp_path / "out" / "000000.safetensors")["x0"]
    image = Image(size=8)
    x0 = torch.stack([image.encode(image.load(path)) for path in files(source)[:6]])
    torch.testing.assert_close(rows, 2 * x0.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    # Training refuses the same autoencoder with another factor.
    others = ["data=latents", f"data.root={tmp_path / 'out'}", "run_dir=run", "allow_targets=[halves]"]
    with pytest.raises(RecipeError, match=r"a different encoding; autoencoder.factor: 2.0 -> 1.0"):
        train(configuration.load("train", [*TRAINING, *words[:-1], "+modality.autoencoder.factor=1.0", *others]))


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, "has vanished while"),
        (OSError(errno.ENOSPC, FULL), rf"cannot write in .*out \({FULL}\)"),
        (SafetensorError(f"while serializing: {FULL} (os error 28)"), rf"cannot write in .*out \({FULL}\)"),
    ],
    ids=["vanished", "full", "full for safetensors"],
)
def test_encode_explains_a_folder_that_becomes_unwritable_after_the_first_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, message: str
) -> None:
    out, real = tmp_path / "out", shard_index.write_whole

    def write_whole(path: Path, write: Callable[[Path], object]) -> None:
        if path.name == "000001.safetensors":
            if error is not None:
                raise error
            shutil.rmtree(out)
        real(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "write_whole", write_whole)
        with pytest.raises(RecipeError, match=message):
            run(source, out)
    if error is not None:
        assert [shard.file for shard in shard_index.Index.load(out).shards] == ["000000.safetensors"]
        assert len(shard_index.Index.load(run(source, out)).shards) == 4


def test_sample_and_train_follow_moved_folders_but_refuse_other_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the autoencoder is relative where it encoded, and resolved from elsewhere when sampling."""
    home = tmp_path / "home"
    shutil.copytree(source, home)
    monkeypatch.chdir(home)
    run(Path(), Path("latents"))
    train(training(Path(), Path("latents"), Path("run"), "training.samples=16"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert (sampled(home / "run") / "samples" / "0.png").stat().st_size > 0
    moved = (home / "latents").rename(home / "moved")
    with pytest.raises(RecipeError, match=rf"{home / 'latents'}.*add data.root=… to the command"):
        sampled(home / "run")
    assert (sampled(home / "run", f"data.root={moved}") / "samples" / "0.png").stat().st_size > 0
    monkeypatch.chdir(home)
    train(training(Path(), Path("moved"), Path("run"), "training.samples=32"))
    save_tiny("AutoencoderKL", home / "vae", seed=1)
    with pytest.raises(RecipeError, match=r"belong to a different encoding; autoencoder\.fingerprint"):
        sampled(home / "run", f"data.root={moved}")
    with pytest.raises(RecipeError, match=r"autoencoder.fingerprint: "):
        run(Path(), Path("moved"))


@pytest.mark.parametrize("choice", ["latent_image", "latent_video", "latent_audio"])
def test_latent_modalities_compose_for_encode_and_train(choice: str) -> None:
    config = configuration.load("encode", [f"modality={choice}", "data.root=a", "run_dir=b"])
    assert config["modality"]["statistics"] is None
    config = configuration.load("train", [f"modality={choice}", "data=latents", "data.root=a", "run_dir=b"])
    assert config["modality"]["statistics"] == "a"
    assert config["data"] == {"_target_": "modalities.shards.LatentShards", "root": "a", "verify": False}
    settings = {field.name for field in dataclasses.fields(DiffusersAutoencoder) if field.init}
    # No configuration may declare itself trusted.
    assert set(config["modality"]["autoencoder"]) - {"_target_"} == settings - {"trusted"}


MEDIA = {
    # kind, settings of the modality, samples (or frames) of each file, where latents of the last one are data
    "audio": (
        "AutoencoderOobleck",
        ["modality.modality.rate=8000", "modality.modality.seconds=0.064"],
        [512, 512, 640, 300],
        torch.arange(64) < 300 // 8,
    ),
    "video": (
        "AutoencoderKLWan",
        ["modality.modality.frames=9", "modality.modality.fps=8", "modality.modality.size=16"],
        [9, 9, 12, 6],
        (torch.arange(3) < 2).view(3, 1, 1).expand(3, 4, 4),
    ),
}


@pytest.mark.parametrize("medium", MEDIA)
def test_encode_train_and_sample_handle_sounds_and_clips(medium: str, tmp_path: Path) -> None:
    kind, settings, lengths, expected = MEDIA[medium]
    random = np.random.default_rng(0)
    (tmp_path / "media").mkdir()
    for number, length in enumerate(lengths):
        if medium == "audio":
            path = tmp_path / "media" / f"{number}.wav"
            soundfile.write(path, random.uniform(-0.9, 0.9, (length, 2)), 8000, subtype="FLOAT")
        else:
            clip = torch.from_numpy(random.integers(0, 256, (3, length, 16, 16), dtype=np.uint8))
            Video(frames=length, fps=8, size=16).save(clip, tmp_path / "media" / f"{number}.mp4")
    words = [f"modality=latent_{medium}", *settings, autoencoder_of(Path(save_tiny(kind, tmp_path / "vae")))]
    words += ["modality.autoencoder.subfolder=null", f"modality.autoencoder.kind={kind}"]
    out = tmp_path / "latents"
    data = ["data=folder", f"data.root={tmp_path / 'media'}", f"run_dir={out}", *QUICK]
    encode(configuration.load("encode", [*words, *data]))

    rows = load_file(out / "000000.safetensors")
    assert rows["x0"].shape == (4, 4, *expected.shape)
    assert rows["mask"][:3].all()
    assert torch.equal(rows["mask"][3, 0], expected)
    values = rows["x0"].double().movedim(1, 0)[:, rows["mask"][:, 0]]
    record = json.loads((out / "statistics.json").read_text())
    np.testing.assert_allclose(record["mean"], values.mean(1), rtol=1e-9)
    np.testing.assert_allclose(record["std"], values.std(1, correction=0), rtol=1e-9)

    words += ["validation.holdout=1", "training.samples=32", "sampling.count=1", "data=latents", f"data.root={out}"]
    train(configuration.load("train", [*TRAINING, *words, f"run_dir={tmp_path / 'run'}"]))
    drawn = sampled(tmp_path / "run")
    assert (drawn / "samples" / f"0.{'wav' if medium == 'audio' else 'mp4'}").stat().st_size > 0
    assert (drawn / "grid.png").stat().st_size > 0

    # The last file is too short: its latents are kept, and the others are drawn.
    short = next((tmp_path / "media").glob("3.[wm]*"))
    out = sampled(tmp_path / "run", f"initial={short}", "unknown=missing", "count=2")
    one, two = load_file(out / "samples.safetensors")["x0"]
    assert torch.equal(one == two, expected.expand(4, *expected.shape))
