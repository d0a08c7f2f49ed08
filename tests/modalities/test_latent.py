"""Latents have the shapes, units, masks and values that the autoencoder gives when it is called directly."""

import copy
import itertools
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from modalities.autoencoders import DiffusersAutoencoder
from modalities.base import Modality
from modalities.encoding import describe
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
    periodic: bool = False

    def grid(self) -> Grid:
        names = NAMES[-len(self.shape) :] if len(self.shape) > 1 else ("time",)
        units = {"frame": (0.125, "second"), "time": (0.125, "second")}
        axes = zip(names, self.shape, strict=True)
        around = {"periodic": self.periodic}
        return Grid(tuple(Axis(name, size, *units.get(name, (1.0, "pixel")), **around) for name, size in axes))

    load = save = None

    def encode(self, media: Tensor) -> Tensor:
        return media

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def mask(self, media: Tensor) -> Tensor | None:
        if self.valid is None:
            return None
        mask = torch.zeros(1, *self.shape, dtype=torch.bool)
        mask[:, : self.valid] = True
        return mask


@dataclass(frozen=True)
class Pool:
    """An autoencoder that averages `stride` samples of a line and repeats them, causally or not."""

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
    """A function that returns a tiny autoencoder of a kind, saved once."""
    folder = tmp_path_factory.mktemp("autoencoders")

    def autoencoder(kind: str = "AutoencoderKL", **options: Any) -> DiffusersAutoencoder:
        if not (folder / kind).exists():
            save_tiny(kind, folder / kind)
        return DiffusersAutoencoder(str(folder / kind), kind=kind, **options)

    return autoencoder


def write_scale(folder: Path, mean: tuple[float, ...], std: tuple[float, ...], encoding: dict[str, Any]) -> Path:
    """Write the statistics of latents as `multisagd encode` does."""
    (folder / "statistics.json").write_text(LatentScale(mean, std, encoding).text())
    return folder / "statistics.json"


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
def test_latent_grid_has_the_autoencoders_shape_and_units(name: str, saved: Any) -> None:
    channels, size, latents, spacing = LAYOUTS[name]
    latent = Latent(Tensors(size, channels), saved(name.split()[0]))
    grid, inner = latent.grid(), latent.modality.grid()
    assert (latent.channels, *grid.shape) == latents
    assert tuple(axis.spacing for axis in grid.axes) == spacing
    for axis, other in zip(grid.axes, inner.axes, strict=True):
        assert (axis.name, axis.unit, axis.corner_frequency) == (other.name, other.unit, other.corner_frequency)
    x0 = latent.encode(noise(channels, *size))
    assert (x0.shape, x0.dtype) == (latents, torch.float32)
    assert latent.decode(x0).shape == (channels, *size)
    assert torch.equal(x0, latent.encode(noise(channels, *size)))


def test_latent_equals_diffusers_and_leaves_random_numbers_alone(saved: Any) -> None:
    autoencoder, x = saved(), noise(3, 16, 16)
    model = diffusers.AutoencoderKL.from_pretrained(autoencoder.name)
    with torch.no_grad():
        mean, _ = model.quant_conv(model.encoder(x[None])).chunk(2, dim=1)
        back = model.decoder(model.post_quant_conv(mean))
    before = torch.get_rng_state()
    latent = Latent(Tensors(), autoencoder)
    z = latent.encode(x)
    torch.testing.assert_close(z, mean[0])
    torch.testing.assert_close(latent.decode(z), back[0])
    assert not z.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_latent_scale_is_undone_in_decoding(saved: Any, tmp_path: Path) -> None:
    plain, x = Latent(Tensors(), saved()), noise(3, 16, 16)
    mean, std = (1.0, -2.0, 0.5, 0.0), (0.5, 1.0, 2.0, 4.0)
    for place in (tmp_path, write_scale(tmp_path, mean, std, plain.encoding())):
        latent = Latent(Tensors(), saved(), place)
        z, scaled = plain.encode(x), latent.encode(x)
        for channel in range(4):
            torch.testing.assert_close(scaled[channel], (z[channel] - mean[channel]) / std[channel])
        torch.testing.assert_close(latent.decode(scaled), plain.decode(z))
    assert latent == plain  # a measured scale does not make it another encoding
    write_scale(tmp_path, (0.0,) * 3, (1.0,) * 3, plain.encoding())
    with pytest.raises(ValueError, match="have 3 channels, but the autoencoder produces 4"):
        Latent(Tensors(), saved(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", '{"format_version": 2}', '{"format_version": 1, "mean": [0], "std": [0], "encoding": {}}'],
)
def test_latent_names_unreadable_statistics(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "statistics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"cannot read the scale .*{path}.*add data\.root=… to the command"):
        Latent(Tensors((12,), 1), Pool(), path)


def test_latent_adapts_channels_and_odd_sizes_to_the_autoencoder(saved: Any) -> None:
    grey, colour, x = Latent(Tensors(channels=1), saved()), Latent(Tensors(), saved()), noise(1, 16, 16)
    z = grey.encode(x)
    assert torch.equal(z, colour.encode(x.expand(3, -1, -1)))
    torch.testing.assert_close(grey.decode(z), colour.decode(z).mean(0, keepdim=True))
    # An odd size is extended by its last samples.
    odd, even, x = Latent(Tensors((15, 9)), saved()), Latent(Tensors((16, 10)), saved()), noise(3, 15, 9)
    z = odd.encode(x)
    assert torch.equal(z, even.encode(torch.from_numpy(np.pad(x, ((0, 0), (0, 1), (0, 1)), mode="edge"))))
    assert torch.equal(odd.decode(z), even.decode(z)[:, :15, :9])


def test_latent_encodes_clips_by_frame_with_an_autoencoder_of_images(saved: Any) -> None:
    clip, image, x = Latent(Tensors((4, 8, 8)), saved()), Latent(Tensors((8, 8)), saved()), noise(3, 4, 8, 8)
    frames = [image.encode(x[:, frame]) for frame in range(4)]
    torch.testing.assert_close(clip.encode(x), torch.stack(frames, 1))
    decoded = torch.stack([image.decode(frame) for frame in frames], 1)
    torch.testing.assert_close(clip.decode(torch.stack(frames, 1)), decoded)


def test_latent_axis_is_periodic_if_the_latents_go_around_once() -> None:
    for size, periodic in ((12, True), (10, False)):
        assert Latent(Tensors((size,), 1, periodic=True), Pool(4)).grid().periodic == (periodic,)
    assert Latent(Tensors((12,), 1), Pool(4)).grid().periodic == (False,)
    latent, x = Latent(Tensors((10,), 1, periodic=True), Pool(4)), torch.arange(10.0)[None]
    assert latent.encode(x)[0].tolist() == [1.5, 5.5, (8 + 9 + 0 + 1) / 4]


@pytest.mark.parametrize("causal", [False, True])
def test_latent_mask_is_true_where_all_its_samples_are(causal: bool) -> None:
    size, first = (13, [[0]]) if causal else (12, [])
    for stride, valid in itertools.product((2, 3, 4), (0, 1, 2, 5, 9, 12, 13)):
        mask = Latent(Tensors((size,), 1, valid=valid), Pool(stride, causal)).mask(torch.zeros(1, size))
        covered = first + [list(range(start, start + stride)) for start in range(len(first), size, stride)]
        assert mask.dtype == torch.bool
        assert mask.tolist() == [[all(sample < valid for sample in samples) for samples in covered]], (stride, valid)
        assert Latent(Tensors((size,), 1), Pool(stride, causal)).mask(torch.zeros(1, size)) is None


def test_latent_mask_covers_clips_extended_rows_and_all_channels(saved: Any) -> None:
    mask = Latent(Tensors((9, 7, 8), valid=5), saved("AutoencoderKLWan")).mask(torch.zeros(3, 9, 7, 8))
    assert mask.shape == (1, 3, 2, 2)
    # 5 frames are the first and the four of the second latent; the eighth row repeats the seventh.
    assert [bool(frame.all()) for frame in mask[0]] == [True, True, False]
    assert not mask[0, 2].any()
    mask = torch.ones(5, 2, 8, dtype=torch.bool)
    mask[0, 0, 3], mask[1, 1, 6] = False, False
    expected = torch.ones(5, 1, 4, dtype=torch.bool)
    expected[0, 0, 1], expected[1, 0, 3] = False, False
    assert torch.equal(Latent(Tensors((8,), channels=2), Pool(2)).coarser_mask(mask), expected)


def test_latent_encodes_alike_in_several_threads(saved: Any) -> None:
    # A causal autoencoder keeps features in itself from one part of a clip to the next.
    latent, fresh = (Latent(Tensors((9, 8, 8)), saved("AutoencoderKLWan")) for _ in range(2))
    clips = [noise(3, 9, 8, 8, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(fresh.encode, clips))
    assert all(torch.equal(each, latent.encode(clip)) for each, clip in zip(together, clips, strict=True))


def test_latent_passes_the_check_of_modalities(saved: Any, tmp_path: Path) -> None:
    Image(size=24).save((255 * noise(3, 24, 24).abs()).to(torch.uint8), tmp_path / "a.png")
    check_modality(Latent(Image(size=16), saved()), tmp_path / "a.png", tolerance=None)
    assert Tensors((8, 6, 5), channels=2).tensor_shape == (2, 8, 6, 5), "a field named shape is not the tensor's shape"


def test_latent_in_half_precision_is_close_to_float32(saved: Any) -> None:
    x = noise(3, 16, 16)
    full, half = (Latent(Tensors(), saved(dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert half.encode(x).dtype == torch.float32
    assert 0 < (half.encode(x) - full.encode(x)).abs().max() < 0.1


class OnlyColour(Pool):
    def encode(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("colour only")
        return super().encode(x)


def test_latent_refuses_shapes_that_the_autoencoder_cannot_take(saved: Any) -> None:
    assert Latent(Tensors((8,), 1), OnlyColour(2)).channels == 3, "grey is repeated if one channel is refused"
    short = SimpleNamespace(kind="Short", encode=Pool(2).encode, decode=lambda z: z[..., :6])
    for modality, autoencoder, message in (
        (Tensors((8,), 2), OnlyColour(2), "^colour only$"),
        (Tensors(channels=5), saved(), "AutoencoderKL cannot encode data with 5 channels"),
        (Tensors((16,)), saved(), "AutoencoderKL works on grids of 2 dimensions, but this grid has 1"),
        (Tensors((12,), 1), short, r"Short returns \(6,\) for data of size \(12,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Latent(modality, autoencoder).grid()


class Opaque(SimpleNamespace):
    """An autoencoder that is not a dataclass."""

    @cached_property
    def table(self) -> object:
        return object()


def test_describe_takes_settings_of_any_class() -> None:
    used = Opaque(factor=2.0, sizes=(1, 2), folder=Path("a/b"), pool=Pool(3), pools=[Pool(3)], _model=object())
    assert used.table is used.table
    described = describe(used, "part")
    (pool,) = described.pop("part.pools")
    assert pool["part.pools.stride"] == 3
    plain = {"factor": 2.0, "sizes": [1, 2], "folder": "a/b"}
    nested = {"pool._target_": f"{__name__}.Pool", "pool.stride": 3, "pool.causal": False}
    expected = {"_target_": f"{__name__}.Opaque"} | plain | nested  # without cached properties and private attributes
    assert {key.removeprefix("part."): setting for key, setting in described.items()} == expected
    for value in (torch.zeros(2), object(), {1, 2}, print):
        with pytest.raises(ValueError, match=r"part.what cannot be compared.*make Opaque a frozen dataclass with"):
            describe(Opaque(what=value), "part")


def test_encoding_depends_on_the_weights_in_a_folder(tmp_path: Path) -> None:
    vae, statistics = tmp_path / "vae", tmp_path / "latents"
    save_tiny("AutoencoderKL", vae)
    statistics.mkdir()
    encoding = Latent(Image(size=16), DiffusersAutoencoder(str(vae))).encoding()
    write_scale(statistics, (0.0,) * 4, (1.0,) * 4, encoding)
    assert not [key for key in encoding if key.endswith(("device", "dtype", "statistics"))]
    # A variant that is not loaded does not count.
    (vae / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another")
    Latent(Image(size=16), DiffusersAutoencoder(str(vae)), statistics)
    save_tiny("AutoencoderKL", vae, seed=1)
    with pytest.raises(ValueError, match=r"a different encoding; autoencoder.fingerprint: '\w{64}' -> '\w{64}'"):
        Latent(Image(size=16), DiffusersAutoencoder(str(vae)), statistics)
    assert DiffusersAutoencoder("nobody/nothing").fingerprint is None
    part = DiffusersAutoencoder(str(tmp_path), subfolder="vae")
    assert part.fingerprint == DiffusersAutoencoder(str(vae)).fingerprint
    assert part.encode(noise(1, 3, 16, 16)).shape == (1, 4, 8, 8)


def test_autoencoder_can_be_copied_and_pickled(saved: Any) -> None:
    autoencoder, x = saved(), noise(1, 3, 16, 16)
    z = autoencoder.encode(x)
    for again in (copy.deepcopy(autoencoder), pickle.loads(pickle.dumps(autoencoder))):
        assert again == autoencoder
        assert torch.equal(again.encode(x), z)


def test_autoencoder_refuses_unknown_kinds_names_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    for message, *each in (
        ("no autoencoder 'AutoencoderKl'; did you mean 'AutoencoderKL'", {"kind": "AutoencoderKl"}),
        ("no autoencoder", {"kind": "UNet2DModel"}, {"kind": "AutoencoderMixin"}, {"kind": "os.system"}),
        ("neither a folder nor a model id", *({"name": name} for name in ("/nowhere", "./vae", "", "a/b/c", "../up"))),
        ("dtype must be one of", {"dtype": "int8"}),
    ):
        for settings in each:
            with pytest.raises(ValueError, match=message):
                DiffusersAutoencoder(**{"name": "a/b"} | settings)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BrokenLibraryError, match=r"pip install .*diffusers"):
        DiffusersAutoencoder("a/b")


def test_autoencoder_refuses_folders_without_complete_safetensors(tmp_path: Path) -> None:
    def refusal(message: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            DiffusersAutoencoder(str(tmp_path), **settings).encode(noise(1, 3, 16, 16))

    refusal("cannot read the configuration of the autoencoder")
    refusal(r"\(subfolder vae\)", subfolder="vae")
    save_tiny("AutoencoderKL", tmp_path)
    refusal("holds an AutoencoderKL: set kind=AutoencoderKL", kind="VQModel")
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    tensors = load(content)
    weights.write_bytes(content[: len(content) // 2])
    refusal("cannot load the weights")
    save_file({name: tensor for name, tensor in tensors.items() if "quant_conv.weight" not in name}, weights)
    refusal("lack 2 tensors of an AutoencoderKL, such as post_quant_conv.weight")
    # Weights that are pickles are never read.
    weights.unlink()
    torch.save(tensors, weights.with_suffix(".bin"))
    refusal("must be complete and in safetensors")
