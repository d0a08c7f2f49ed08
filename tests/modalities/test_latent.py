"""Latents: what an autoencoder makes of shapes, units, masks and values, against the autoencoder called directly."""

import copy
import dataclasses
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from modalities.autoencoders import DiffusersAutoencoder
from modalities.base import Modality
from modalities.image import Image
from modalities.latent import Latent, LatentScale
from multisagd.grid import Axis, Grid
from multisagd.libraries import BrokenLibraryError
from multisagd.testing import check_modality

diffusers = pytest.importorskip("diffusers")
from tests.helpers.tiny_autoencoders import save_tiny  # noqa: E402

NAMES = ("frame", "height", "width")


@dataclass(frozen=True)
class Tensors(Modality):
    """A medium that is its own encoding, of any shape; frames are 1/8 s apart."""

    shape: tuple[int, ...] = (16, 16)
    channels: int = 3
    suffixes: tuple[str, ...] = (".pt",)
    valid: int | None = None

    def grid(self) -> Grid:
        names = NAMES[-len(self.shape) :] if len(self.shape) > 1 else ("time",)
        units = {"frame": (0.125, "second"), "time": (0.125, "second")}
        axes = zip(names, self.shape, strict=True)
        return Grid(tuple(Axis(name, size, *units.get(name, (1.0, "pixel"))) for name, size in axes))

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        raise NotImplementedError

    def encode(self, media: Tensor) -> Tensor:
        return media

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def save(self, media: Tensor, path: Path) -> None:
        raise NotImplementedError

    def mask(self, media: Tensor) -> Tensor | None:
        if self.valid is None:
            return None
        mask = torch.zeros(1, *self.shape, dtype=torch.bool)
        mask[:, : self.valid] = True
        return mask


@dataclass(frozen=True)
class Pool:
    """Not of this project: averages `stride` samples of a line and repeats them, causally or not."""

    stride: int = 4
    causal: bool = False

    def encode(self, x: Tensor) -> Tensor:
        if self.causal:
            x = torch.cat([x[..., :1]] * (self.stride - 1) + [x], -1)
        return torch.nn.functional.avg_pool1d(x, self.stride)

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(self.stride, -1)[..., self.stride - 1 if self.causal else 0 :]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives a tiny autoencoder of a kind, made once."""
    folder = tmp_path_factory.mktemp("autoencoders")

    def autoencoder(kind: str = "AutoencoderKL") -> DiffusersAutoencoder:
        if not (folder / kind).exists():
            save_tiny(kind, folder / kind)
        return DiffusersAutoencoder(str(folder / kind), kind=kind)

    return autoencoder


LAYOUTS = {
    # kind, channels and size of the data -> latent shape, spacing of the latent grid
    "AutoencoderKL": (3, (16, 24), (4, 8, 12), (2.0, 2.0)),
    "AutoencoderKL grey": (1, (16, 16), (4, 8, 8), (2.0, 2.0)),
    "AutoencoderKL odd": (3, (15, 9), (4, 8, 5), (2.0, 2.0)),
    "AutoencoderKL frames": (3, (5, 16, 16), (4, 5, 8, 8), (0.125, 2.0, 2.0)),
    "AutoencoderTiny": (3, (16, 16), (4, 8, 8), (2.0, 2.0)),
    "VQModel": (3, (16, 16), (3, 8, 8), (2.0, 2.0)),
    "AutoencoderKLTemporalDecoder": (3, (3, 8, 8), (4, 3, 4, 4), (0.125, 2.0, 2.0)),
    # 9 frames are 1 + 2 · 4, and also 3 · 3; 64 pixels in 16 latents are 4 each, and not 63 / 15.
    "AutoencoderKLWan": (3, (9, 16, 8), (4, 3, 4, 2), (0.5, 4.0, 4.0)),
    "AutoencoderKLWan one image": (3, (16, 16), (4, 4, 4), (4.0, 4.0)),
    "AutoencoderKLWan between": (3, (7, 8, 10), (4, 3, 2, 3), (0.5, 4.0, 4.0)),
    "AutoencoderKLCogVideoX": (3, (9, 16, 16), (4, 3, 2, 2), (0.5, 8.0, 8.0)),
    "AutoencoderOobleck": (2, (64,), (4, 8), (1.0,)),
    "AutoencoderOobleck mono": (1, (70,), (4, 9), (1.0,)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_shapes_and_units(name: str, saved: Any) -> None:
    channels, size, latents, spacing = LAYOUTS[name]
    latent = Latent(Tensors(size, channels), saved(name.split()[0]))
    grid, inner = latent.grid(), latent.modality.grid()
    assert (latent.channels, *grid.shape) == latents
    assert tuple(axis.spacing for axis in grid.axes) == spacing
    assert grid.names == inner.names
    assert [axis.unit for axis in grid.axes] == [axis.unit for axis in inner.axes]
    assert [axis.corner_frequency for axis in grid.axes] == [axis.corner_frequency for axis in inner.axes]
    x0 = latent.encode(noise(channels, *size))
    assert x0.shape == latents
    assert x0.dtype == torch.float32
    assert latent.decode(x0).shape == (channels, *size)
    assert torch.equal(x0, latent.encode(noise(channels, *size)))


def test_values_are_those_of_diffusers(saved: Any) -> None:
    autoencoder, x = saved(), noise(3, 16, 16)
    model = diffusers.AutoencoderKL.from_pretrained(autoencoder.name)
    with torch.no_grad():
        mean, _ = model.quant_conv(model.encoder(x[None])).chunk(2, dim=1)
        back = model.decoder(model.post_quant_conv(mean))
    latent = Latent(Tensors(), autoencoder)
    z = latent.encode(x)
    torch.testing.assert_close(z, mean[0])
    torch.testing.assert_close(latent.decode(z), back[0])
    assert not z.requires_grad


def test_the_scale_is_undone_in_decoding(saved: Any, tmp_path: Path) -> None:
    plain, x = Latent(Tensors(), saved()), noise(3, 16, 16)
    mean, std = (1.0, -2.0, 0.5, 0.0), (0.5, 1.0, 2.0, 4.0)
    (tmp_path / "statistics.json").write_text(LatentScale(mean, std, plain.encoding()).text())
    for place in (tmp_path, tmp_path / "statistics.json"):
        latent = Latent(Tensors(), saved(), place)
        z, scaled = plain.encode(x), latent.encode(x)
        for channel in range(4):
            torch.testing.assert_close(scaled[channel], (z[channel] - mean[channel]) / std[channel])
        torch.testing.assert_close(latent.decode(scaled), plain.decode(z))
    assert latent == plain  # a measured scale does not make it another encoding


def test_statistics_of_another_encoding_are_refused(saved: Any, tmp_path: Path) -> None:
    encoding = Latent(Image(size=16), saved()).encoding()
    (tmp_path / "statistics.json").write_text(LatentScale((0.0,) * 4, (1.0,) * 4, encoding).text())
    assert Latent(Image(size=16), saved(), tmp_path).scale is not None
    with pytest.raises(ValueError, match=r"another encoding; modality.size: \[16, 16\] -> \[8, 8\]"):
        Latent(Image(size=8), saved(), tmp_path)
    with pytest.raises(ValueError, match=r"autoencoder.kind.*AutoencoderKL.*VQModel"):
        Latent(Image(size=16), saved("VQModel"), tmp_path)
    (tmp_path / "statistics.json").write_text(LatentScale((0.0,) * 3, (1.0,) * 3, encoding).text())
    with pytest.raises(ValueError, match="have 3 channels, but the autoencoder produces 4"):
        Latent(Image(size=16), saved(), tmp_path)
    (tmp_path / "statistics.json").write_text(LatentScale((0.0,) * 4, (1.0,) * 4, encoding).text())
    # Where it runs is no part of the encoding.
    Latent(Image(size=16), dataclasses.replace(saved(), device="cpu", dtype="bfloat16"), tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"format_version": 2, "mean": [], "std": [], "encoding": {}}',
     '{"format_version": 1, "mean": [0], "std": [0], "encoding": {}}', None],
)  # fmt: skip
def test_broken_statistics_are_named(content: str | None, saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"cannot read the scale .*statistics") as caught:
        Latent(Tensors(), saved(), path)
    assert str(path.absolute()) in str(caught.value)
    assert "add data.root=… to the command" in str(caught.value)


def test_grey_is_repeated_and_averaged(saved: Any) -> None:
    grey, colour = Latent(Tensors(channels=1), saved()), Latent(Tensors(), saved())
    x = noise(1, 16, 16)
    z = grey.encode(x)
    assert torch.equal(z, colour.encode(x.expand(3, -1, -1)))
    torch.testing.assert_close(grey.decode(z), colour.decode(z).mean(0, keepdim=True))


def test_odd_sizes_are_extended_by_their_last_samples(saved: Any) -> None:
    odd, even = Latent(Tensors((15, 9)), saved()), Latent(Tensors((16, 10)), saved())
    x = noise(3, 15, 9)
    extended = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 1), (0, 1)), mode="edge"))
    z = odd.encode(x)
    assert torch.equal(z, even.encode(extended))
    assert torch.equal(odd.decode(z), even.decode(z)[:, :15, :9])


def test_an_autoencoder_of_images_takes_each_frame(saved: Any) -> None:
    clip, image = Latent(Tensors((4, 8, 8)), saved()), Latent(Tensors((8, 8)), saved())
    x = noise(3, 4, 8, 8)
    z = clip.encode(x)
    frames = [image.encode(x[:, frame]) for frame in range(4)]
    torch.testing.assert_close(z, torch.stack(frames, 1))
    torch.testing.assert_close(clip.decode(z), torch.stack([image.decode(frame) for frame in frames], 1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("valid", [0, 1, 2, 5, 9, 12, 13])
def test_a_latent_is_data_if_all_that_it_stands_for_is(valid: int, stride: int, causal: bool) -> None:
    size = 13 if causal else 12
    latent = Latent(Tensors((size,), 1, valid=valid), Pool(stride, causal))
    first = [[0]] if causal else []
    covered = first + [list(range(start, start + stride)) for start in range(len(first), size, stride)]
    expected = [all(sample < valid for sample in samples) for samples in covered]
    mask = latent.mask(torch.zeros(1, size))
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.tolist() == [expected]
    assert Latent(Tensors((size,), 1), Pool(stride, causal)).mask(torch.zeros(1, size)) is None


def test_masks_of_clips_and_of_what_is_extended(saved: Any) -> None:
    latent = Latent(Tensors((9, 7, 8), valid=5), saved("AutoencoderKLWan"))
    mask = latent.mask(torch.zeros(3, 9, 7, 8))
    assert mask is not None
    assert mask.shape == (1, 3, 2, 2)
    # 5 frames are the first and the four of the second latent; the eighth row repeats the seventh.
    assert [bool(frame.all()) for frame in mask[0]] == [True, True, False]
    assert not mask[0, 2].any()


def test_threads_do_not_disturb_one_another(saved: Any) -> None:
    # A causal autoencoder keeps features in itself from one part of a clip to the next.
    latent = Latent(Tensors((9, 8, 8)), saved("AutoencoderKLWan"))
    clips = [noise(3, 9, 8, 8, seed=seed) for seed in range(6)]
    alone = [latent.encode(clip) for clip in clips]
    fresh = Latent(Tensors((9, 8, 8)), dataclasses.replace(saved("AutoencoderKLWan")))
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(fresh.encode, clips))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_it_keeps_what_modalities_keep(saved: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    check_modality(Latent(Image(size=16), saved()), tmp_path / "a.png", tolerance=None)


def test_loading_weights_leaves_the_global_generator_alone(saved: Any) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    latent = Latent(Tensors(), dataclasses.replace(saved()))
    latent.decode(latent.encode(noise(3, 16, 16)))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_diverged_is_refused(saved: Any) -> None:
    latent = Latent(Tensors(), saved())
    with pytest.raises(ValueError, match="diverged"):
        latent.decode(torch.full((4, 8, 8), float("nan")))


def test_half_precision_is_about_the_same(saved: Any) -> None:
    x = noise(3, 16, 16)
    full, half = (Latent(Tensors(), dataclasses.replace(saved(), dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert half.encode(x).dtype == torch.float32
    assert 0 < (half.encode(x) - full.encode(x)).abs().max() < 0.1


def test_shapes_it_cannot_take_are_refused(saved: Any) -> None:
    with pytest.raises(ValueError, match=r"AutoencoderKL cannot encode data of 5 channels"):
        Latent(Tensors(channels=5), saved()).grid()
    with pytest.raises(ValueError, match="AutoencoderKL works on grids of 2 dimensions, but this one has 1"):
        Latent(Tensors((16,)), saved()).grid()

    with pytest.raises(ValueError, match=r"returns \(6,\) of data of size \(12,\)"):
        Latent(Tensors((12,), 1), Half()).grid()


class Opaque:
    """Not of this project, and no dataclass."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)

    @cached_property
    def table(self) -> object:
        return object()

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def test_settings_of_any_class_are_part_of_the_encoding() -> None:
    def found(**settings: Any) -> dict[str, Any]:
        encoding = Latent(Tensors(), Opaque(**settings)).encoding()
        return {key.removeprefix("autoencoder."): value for key, value in encoding.items() if "autoencoder" in key}

    target = {"_target_": f"{__name__}.Opaque"}
    assert found() == target
    assert found(factor=2.0, sizes=(1, 2), folder=Path("a/b")) == target | {
        "factor": 2.0, "sizes": [1, 2], "folder": "a/b",
    }  # fmt: skip
    assert found(pool=Pool(3)) == target | {
        "pool._target_": f"{__name__}.Pool", "pool.stride": 3, "pool.causal": False,
    }  # fmt: skip
    assert found(pools=[Pool(3)])["pools"][0]["autoencoder.pools.stride"] == 3
    assert found(_model=object(), fingerprint="abc") == target | {"fingerprint": "abc"}
    # What is computed when it is asked for makes no difference.
    used = Opaque(factor=2.0)
    assert used.table is used.table
    assert Latent(Tensors(), used).encoding() == Latent(Tensors(), Opaque(factor=2.0)).encoding()


@pytest.mark.parametrize("value", [torch.zeros(2), object(), {1, 2}, print], ids=lambda value: type(value).__name__)
def test_settings_that_cannot_be_compared_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"autoencoder.what cannot be compared.*make Opaque a frozen dataclass with"):
        Latent(Tensors(), Opaque(what=value)).encoding()


def test_other_weights_in_the_same_folder_are_another_encoding(tmp_path: Path) -> None:
    vae, root = tmp_path / "vae", tmp_path / "latents"
    save_tiny("AutoencoderKL", vae)
    encoding = Latent(Image(size=16), DiffusersAutoencoder(str(vae))).encoding()
    root.mkdir()
    (root / "statistics.json").write_text(LatentScale((0.0,) * 4, (1.0,) * 4, encoding).text())
    # A variant that is not loaded, and what else lies there, are no weights.
    (vae / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another")
    Latent(Image(size=16), DiffusersAutoencoder(str(vae)), root)
    save_tiny("AutoencoderKL", vae, seed=1)
    with pytest.raises(ValueError, match=r"another encoding; autoencoder.fingerprint: '\w{64}' -> '\w{64}'"):
        Latent(Image(size=16), DiffusersAutoencoder(str(vae)), root)
    save_tiny("AutoencoderKL", vae)
    Latent(Image(size=16), DiffusersAutoencoder(str(vae)), root)
    assert DiffusersAutoencoder("nobody/nothing").fingerprint is None


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["copy", "pickle"]
)
def test_an_autoencoder_can_be_copied_and_sent_to_other_processes(saved: Any, copied: Any) -> None:
    autoencoder, x = saved(), noise(1, 3, 16, 16)
    z = autoencoder.encode(x)
    again = copied(autoencoder)
    assert again == autoencoder
    assert torch.equal(again.encode(x), z)


class OnlyColour(Opaque):
    def encode(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("colour only")
        return x[..., ::2]

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(2, -1)


def test_grey_is_repeated_for_those_that_refuse_it_by_a_value_error() -> None:
    assert Latent(Tensors((8,), 1), OnlyColour()).channels == 3
    with pytest.raises(ValueError, match=r"^colour only$"):
        Latent(Tensors((8,), 2), OnlyColour()).grid()


class Half:
    """Loses the second half of what it gets, and all beyond 8 samples."""

    def encode(self, x: Tensor) -> Tensor:
        return x[..., : min(6, x.shape[-1] // 2)]

    def decode(self, z: Tensor) -> Tensor:
        return z


MISTAKES = {
    "AutoencoderKl": "no autoencoder 'AutoencoderKl'; did you mean 'AutoencoderKL'",
    "UNet2DModel": "no autoencoder 'UNet2DModel'",
    "AutoencoderMixin": "no autoencoder",
    "os.system": "no autoencoder",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_only_autoencoders_of_diffusers_are_found(kind: str) -> None:
    with pytest.raises(ValueError, match=MISTAKES[kind]):
        DiffusersAutoencoder("a/b", kind=kind)


def test_names_are_checked_at_once() -> None:
    for name in ("/nowhere/at/all", "./vae", "", "a/b/c", "../up"):
        with pytest.raises(ValueError, match="neither a folder nor a hub id"):
            DiffusersAutoencoder(name)
    with pytest.raises(ValueError, match="dtype is one of"):
        DiffusersAutoencoder("a/b", dtype="int8")  # type: ignore[arg-type]


def test_without_diffusers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BrokenLibraryError, match=r"pip install .*diffusers"):
        DiffusersAutoencoder("a/b")


def test_folders_that_do_not_hold_it_are_refused(saved: Any, tmp_path: Path) -> None:
    def refusal(message: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            DiffusersAutoencoder(str(tmp_path), **settings).encode(noise(1, 3, 16, 16))

    refusal("cannot read the configuration of the autoencoder")
    refusal(r"\(subfolder vae\)", subfolder="vae")
    save_tiny("AutoencoderKL", tmp_path)
    refusal("holds an AutoencoderKL: set kind=AutoencoderKL", kind="VQModel")
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refusal("cannot load the weights")
    # Weights that are pickles are never read.
    weights.unlink()
    torch.save(diffusers.AutoencoderKL.from_pretrained(saved().name).state_dict(), weights.with_suffix(".bin"))
    refusal("must be complete and in safetensors")


def test_weights_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny("AutoencoderKL", tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "quant_conv.weight" not in name}, weights)
    with pytest.raises(ValueError, match=r"lack 2 tensors of an AutoencoderKL, such as post_quant_conv.weight"):
        DiffusersAutoencoder(str(tmp_path)).encode(noise(1, 3, 16, 16))


def test_a_subfolder_is_found(tmp_path: Path) -> None:
    save_tiny("AutoencoderKL", tmp_path / "vae")
    latent = Latent(Tensors(), DiffusersAutoencoder(str(tmp_path), subfolder="vae"))
    assert latent.encode(noise(3, 16, 16)).shape == (4, 8, 8)


def test_the_encoding_says_what_latents_depend_on(saved: Any) -> None:
    encoding = Latent(Image(size=(16, 24)), saved()).encoding()
    assert encoding["modality._target_"] == "modalities.image.Image"
    assert encoding["modality.size"] == [16, 24]
    assert encoding["autoencoder.name"] == saved().name
    assert not [key for key in encoding if key.endswith(("device", "dtype", "statistics"))]
    assert json.loads(json.dumps(encoding)) == encoding


def test_a_latent_needs_all_channels() -> None:
    latent = Latent(Tensors((8,), channels=2), Pool(2))
    mask = torch.ones(5, 2, 8, dtype=torch.bool)
    mask[0, 0, 3], mask[1, 1, 6] = False, False
    expected = torch.ones(5, 1, 4, dtype=torch.bool)
    expected[0, 0, 1], expected[1, 0, 3] = False, False
    assert torch.equal(latent.coarser_mask(mask), expected)


def test_modality_with_a_field_named_shape_has_its_tensor_shape() -> None:
    assert Tensors((8, 6, 5), channels=2).tensor_shape == (2, 8, 6, 5)
