"""Pictures of every format convert exactly and resize, crop and flip as documented; image sets keep their pixels."""

import dataclasses
import gzip
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision

from modalities.base import collate
from modalities.image import Image
from modalities.image_sets import CIFAR10, MNIST, Digits, FashionMNIST, Pixels, read_idx

PADDED = Image(size=32, channels=1, resize="pad")


def gradient(height: int, width: int) -> np.ndarray:
    """An RGB picture whose every pixel differs from its neighbours, so that turns and shifts show."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // max(1, height - 1), x * 255 // max(1, width - 1), (y + x) % 256], -1).astype(np.uint8)


def random_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def test_image_grid_is_of_pixels_and_options_are_checked() -> None:
    grid = Image(size=[24, 40]).grid()
    assert (grid.names, grid.shape) == (("height", "width"), (24, 40))
    assert {(axis.unit, axis.corner_frequency) for axis in grid.axes} == {("pixel", 1 / 256)}
    assert hash(Image(size=8)) == hash(Image(size=(8, 8)))
    for option, wrong in (("size", 0), ("size", (1, 2, 3)), ("channels", 4), ("resize", "zoom")):
        with pytest.raises(ValueError, match=option):
            Image(**{option: wrong})


def test_image_decode_inverts_encode_exactly_and_clips() -> None:
    image = Image(size=16, channels=1)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    x0 = image.encode(levels)
    assert x0.dtype == torch.float32
    assert (x0.min().item(), x0.max().item()) == (-1.0, 1.0)
    assert torch.equal(image.decode(x0), levels)
    assert image.decode(torch.tensor([-1.5, 1.5, 0.999, -0.999])).tolist() == [0, 255, 255, 0]


def test_image_saves_png_exactly_and_grids_of_any_count(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    for channels, size in ((1, (7, 12)), (3, (1, 1)), (3, (32, 32))):
        image = Image(size=size, channels=channels)
        media = random_pixels(channels, *size)
        image.save(media, path)
        assert torch.equal(image.load(path, seed=3), media), size
    with pytest.raises(ValueError, match=r"\.png"):
        image.save(media, tmp_path / "a.jpg")
    for count, shown in ((1, (64, 64)), (5, (2 + 3 * 66, 2 + 2 * 66))):  # 32 pixels, enlarged twice
        image.save_grid([media] * count, path)
        assert PIL.Image.open(path).size == shown
    with pytest.raises(ValueError, match="at least one"):
        image.save_grid([], path)


def test_image_reads_grey_rgb_bilevel_and_cmyk(tmp_path: Path) -> None:
    pixels = gradient(16, 16)
    colour, grey = Image(size=16), Image(size=16, channels=1)
    rgb = write(tmp_path / "rgb.png", pixels)
    assert torch.equal(colour.load(rgb), torch.from_numpy(pixels).permute(2, 0, 1))
    luma = torch.from_numpy(pixels @ np.array([0.299, 0.587, 0.114]))
    assert (grey.load(rgb)[0] - luma).abs().max() <= 1
    one = write(tmp_path / "grey.png", pixels[..., 0])
    assert torch.equal(grey.load(one)[0], torch.from_numpy(pixels[..., 0]))
    assert torch.equal(colour.load(one), grey.load(one).expand(3, -1, -1))
    PIL.Image.fromarray(pixels[..., 0] > 100).save(tmp_path / "two.png")
    assert grey.load(tmp_path / "two.png").unique().tolist() == [0, 255]
    smooth = np.repeat(np.repeat(pixels[::8, ::8], 8, 0), 8, 1)
    for suffix in ("tif", "jpg"):
        PIL.Image.fromarray(smooth).convert("CMYK").save(tmp_path / f"cmyk.{suffix}", quality=98)
        loaded = colour.load(tmp_path / f"cmyk.{suffix}").permute(1, 2, 0).int()
        assert (loaded - torch.from_numpy(smooth)).abs().max() <= 8


def test_image_composes_transparency_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 51
    for name, pixels, channels in (("rgba", rgba, 3), ("grey", rgba[..., 2:], 1)):
        path = write(tmp_path / f"{name}.png", pixels)
        assert Image(size=4, channels=channels).load(path)[0, :, 0].tolist() == [0, 0, 204, 255], name


def test_image_reads_palettes_with_and_without_a_transparent_entry(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), mode=None).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    white, red, green, blue = [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]
    for name, transparency in (("p.png", {}), ("p.gif", {}), ("t.png", {"transparency": 0})):
        palette.save(tmp_path / name, **transparency)
        first = white if transparency else red
        expected = [first, green, blue, first]
        assert Image(size=2).load(tmp_path / name).flatten(1).T.tolist() == expected, name


def test_image_scales_sixteen_bits_without_clipping(tmp_path: Path) -> None:
    for suffix in ("png", "tif", "pgm"):
        path = write(tmp_path / f"a.{suffix}", np.array([[0, 257], [128 * 257, 65535]], np.uint16))
        for channels in (1, 3):
            assert Image(size=2, channels=channels).load(path)[-1].tolist() == [[0, 1], [128, 255]], suffix


def tiff(path: Path, pixels: np.ndarray, bits: int = 0, kind: int = 1, photometric: int = 1) -> Path:
    """Write rows of one channel as TIFF, packed if `bits` are fewer than those of the pixels."""
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    bits = bits or 8 * pixels.itemsize
    if bits == 12:
        binary = "".join(f"{value:012b}" for value in pixels.flatten())
        data = int(binary, 2).to_bytes(len(binary) // 8, "big")
    height, width = pixels.shape
    values = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    values[339] = kind
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag < 258 else 3, 1, value) for tag, value in values.items())
    directory = struct.pack("<H", len(values)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)
    return path


def test_image_levels_follow_from_the_format_and_never_from_pixels(tmp_path: Path) -> None:
    path, ramp = tmp_path / "a.tif", np.linspace(0, 1, 16).reshape(4, 4)
    grey, exact = Image(size=4, channels=1), torch.from_numpy(ramp * 255)
    for bits, photometric in ((8, 1), (8, 0), (16, 1), (16, 0), (12, 1)):
        white = (1 << bits) - 1
        values = (ramp * white).round().astype(np.uint8 if bits == 8 else np.uint16)
        read = grey.load(tiff(path, values, bits, photometric=photometric))[0]
        assert (read - (exact if photometric else 255 - exact)).abs().max() <= 0.51, (bits, photometric)
    scan, declared = Image(size=4, channels=1, black=-1000, white=2000), Image(size=4, channels=1)
    for values, kind in ((ramp * 3000 - 1000, 2), (ramp * 2000, 2), (ramp * 2000, 3), (ramp * 100, 2)):
        dtype: str = "f4" if kind == 3 else "i1" if values.max() == 100 else "i2" if values.min() < 0 else "i4"
        tiff(path, values.astype(dtype), kind=kind)
        with pytest.raises(ValueError, match=r"(float|signed \d+-bit) pixels .* modality\.white"):
            declared.load(path)
        assert (scan.load(path)[0] - (values.astype(dtype).astype(float) + 1000) / 3000 * 255).abs().max() <= 0.51, (
            dtype
        )
    tiff(path, np.full((4, 4), np.nan, np.float32), kind=3)
    with pytest.raises(ValueError, match="not finite"):
        scan.load(path)
    for levels in ({"black": 1.0}, {"black": 2, "white": 2}):
        with pytest.raises(ValueError, match="black and white"):
            Image(**levels)


def test_image_reads_unsigned_32_bits_and_names_floats_that_pillow_does_not_read(tmp_path: Path) -> None:
    for pixels, message in (
        (np.uint32([[0, 1 << 31, (1 << 32) - 1]]), ""),
        (np.float64([[0, 0.5, 1]]), "TIFF file is"),
    ):
        data, bits, kind = pixels.tobytes(), pixels.itemsize * 8, 3 if message else 1
        tags = [
            (256, 3),
            (257, 1),
            (258, bits),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (278, 1),
            (279, len(data)),
            (339, kind),
        ]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags))
        (tmp_path / "a.tif").write_bytes(head + entries + bytes(4))
        image = Image(size=(1, 3), channels=1, resize="stretch", black=0, white=(1 << 32) - 1)
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            assert image.load(tmp_path / "a.tif").flatten().tolist() == [0, 128, 255]


def test_image_reads_pictures_with_damaged_exif(tmp_path: Path) -> None:
    PIL.Image.new("L", (8, 8), 99).save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
    assert Image(size=8).load(tmp_path / "a.png").unique().tolist() == [99]


def test_image_ignores_texts_of_png_of_any_size(tmp_path: Path) -> None:
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("workflow", "node " * 400_000, zip=True)
    text.add_itxt("prompt", "node " * 400_000, zip=True)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    path = write(tmp_path / "a.png", gradient(8, 12), pnginfo=text, exif=exif, icc_profile=bytes(2_000_000))
    upright = torch.from_numpy(gradient(8, 12)[::-1, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(Image(size=(8, 12)).load(path), upright)


def test_image_reads_more_pixels_than_pillow_allows_if_the_setting_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    path = write(tmp_path / "a.png", gradient(20, 60))
    assert torch.equal(
        Image(size=(20, 60), max_pixels=1200).load(path)[1, 0], torch.from_numpy(gradient(20, 60)[0, :, 1])
    )
    with pytest.raises(ValueError, match="max_pixels=1199"):
        Image(max_pixels=1199).load(path)


def test_image_reads_avif_and_names_formats_that_it_does_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avif", np.full((16, 16, 3), (200, 30, 60), np.uint8), quality=95)
    assert (Image(size=16).load(path).flatten(1).T.int() - torch.tensor([200, 30, 60])).abs().max() <= 4
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    PIL.Image.fromarray(gradient(8, 8)).save(tmp_path / "a.jp2")
    for content, name in ((heic, "a HEIC"), ((tmp_path / "a.jp2").read_bytes(), "a JPEG 2000"), (b"text", "none of")):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*convert it"):
            Image().load(path)


def test_image_applies_exif_orientation(tmp_path: Path) -> None:
    upright = PIL.Image.fromarray(gradient(8, 12))
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    # The stored pixels are the upright ones under the inverse of what each tag, from 2 on, stands for.
    undo = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")
    for orientation, inverse in enumerate((None, *undo), start=1):
        stored = upright if inverse is None else upright.transpose(PIL.Image.Transpose[inverse])
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / "a.png", exif=exif)
        assert torch.equal(Image(size=(8, 12)).load(tmp_path / "a.png"), expected), orientation


@pytest.mark.parametrize("resize", ["crop", "center", "stretch", "pad"])
@pytest.mark.parametrize("size", [(32, 32), (9, 31), (1, 1)])
def test_image_fits_any_source_size(resize: str, size: tuple[int, int]) -> None:
    image = Image(size=size, resize=resize, flip=True)  # type: ignore[arg-type]
    for source in ((1, 1), (1, 50), (50, 1), (5, 7), (33, 20), (32, 48), (300, 200)):
        pixels = torch.full((3, *source), 200, dtype=torch.uint8)
        for seed in (None, 0, 1):
            fitted = image.mirror(image.fit(pixels, seed), seed)
            assert fitted.shape == (3, *size), source
            assert fitted.dtype == torch.uint8
            # A constant stays constant, except for the black that padding adds.
            assert set(fitted.unique().tolist()) <= ({0, 200} if resize == "pad" else {200}), source
    if resize != "stretch":  # a source that would need terabytes if it were scaled before it is cut
        assert image.fit(torch.zeros(3, 1, 4_000_000, dtype=torch.uint8), 0).shape == (3, *size)


def test_image_pads_with_exact_pixels_and_downscales_with_antialiasing() -> None:
    pixels = random_pixels(1, 28, 28)
    fitted = Image(size=32, channels=1, resize="pad").fit(pixels)
    assert torch.equal(fitted[:, 2:30, 2:30], pixels)
    assert fitted.int().sum() == pixels.int().sum()
    stripes = torch.zeros(1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    inner = Image(size=16, channels=1).fit(stripes)[..., 2:-2].float()
    assert (inner - 127.5).abs().max() <= 2


def test_image_crop_and_flip_are_functions_of_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", gradient(20, 60))
    image = Image(size=20, flip=True)
    assert torch.equal(image.load(path, 5), image.load(path, 5))
    views = [image.load(path, seed) for seed in range(64)]
    assert len({view.numpy().tobytes() for view in views}) > 30
    # Crop and flip are drawn separately: both mirrored and plain views reach both ends of the picture.
    for flipped in (True, False):
        starts = [int(view[1, 0].min()) for view in views if bool(view[1, 0, 0] > view[1, 0, -1]) == flipped]
        assert 16 < len(starts) < 48
        assert min(starts) < 50
        assert max(starts) > 120
    middle = torch.from_numpy(gradient(20, 60)[:, 20:40]).permute(2, 0, 1)
    assert torch.equal(image.load(path), middle)
    assert torch.equal(dataclasses.replace(image, resize="center", flip=False).load(path, 9), middle)


def test_image_of_a_large_jpeg_equals_full_decoding(tmp_path: Path) -> None:
    pixels = gradient(1000, 1500)
    pixels[..., 2] = 90
    image = Image(size=(20, 30))
    loaded = image.load(write(tmp_path / "big.jpg", pixels, quality=95)).float()
    exact = image.fit(torch.from_numpy(pixels).permute(2, 0, 1)).float()
    assert (loaded - exact).abs().max() <= 4


def test_image_refuses_huge_headers_before_decoding_and_disguised_formats(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "a.png"
    for side, reason in ((9_000, "max_pixels"), (2_000_000_000, "max_pixels")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
        with pytest.raises(ValueError, match=reason):
            Image().load(path)
    # Pillow runs an interpreter for this format.
    PIL.Image.fromarray(gradient(8, 8)).save(path, format="EPS")
    with pytest.raises(ValueError, match="none of the formats"):
        Image().load(path)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, part: str, count: int, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
        data = idx(array)
        name = f"{part}-{kind}-ubyte"
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)


def test_digits_are_resized_and_labelled() -> None:
    digits = Digits(Image(size=16, channels=1, resize="pad"))
    assert (len(digits), digits.classes) == (1797, tuple("0123456789"))
    batch = digits.batch(range(100))
    assert batch.x0.shape == (100, 1, 16, 16)
    assert batch.labels[:10].tolist() == list(range(10))
    assert (batch.x0.min().item(), batch.x0.max().item()) == (-1.0, 1.0)
    whole = Digits(Image(size=8, channels=1)).images
    assert whole.unique().tolist() == [round(level * 255 / 16) for level in range(17)]


def test_pixels_batch_equals_its_examples_and_flips_by_seed() -> None:
    images = random_pixels(12, 3, 8, 8)
    dataset = Pixels(Image(size=8, flip=True), images, torch.arange(12) % 3, ["a", "b", "c"])
    batch, plain = dataset.batch(range(12), range(12)), dataset.batch(range(12)).x0
    loop = collate([dataset.example(index, index) for index in range(12)])
    assert torch.equal(batch.x0, loop.x0)
    assert torch.equal(batch.labels, loop.labels)
    kinds = [(torch.equal(a, b.flip(-1)), torch.equal(a, b)) for a, b in zip(batch.x0, plain, strict=True)]
    assert set(kinds) == {(True, False), (False, True)}
    assert torch.equal(dataset.modality.decode(plain), images)
    for index in (-1, 12):
        with pytest.raises(IndexError, match=str(index)):
            dataset.batch([0, index])


def test_pixels_convert_grey_to_rgb_and_back() -> None:
    three = Pixels(Image(size=8), random_pixels(12, 1, 8, 8)).batch([0]).x0
    assert torch.equal(three[:, :1].expand(-1, 3, -1, -1), three)
    assert Pixels(Image(size=8, channels=1), random_pixels(12, 3, 8, 8)).batch([0, 1]).x0.shape == (2, 1, 8, 8)


def test_pixels_refuse_impossible_arrays() -> None:
    pixels = random_pixels(12, 3, 8, 8)
    for message, *arrays in (
        ("uint8", pixels.float(), None, None),
        ("shape", pixels[0], None, None),
        ("shape", pixels[:0], None, None),
        ("together", pixels, torch.zeros(12), None),
        ("12 labels", pixels, torch.zeros(11), ["a"]),
        ("from 0 to 1", pixels, torch.arange(12), ["a", "b"]),
    ):
        with pytest.raises(ValueError, match=message):
            Pixels(Image(size=8), *arrays)


@pytest.mark.parametrize(("layout", "packings"), [(".", [True]), ("MNIST/raw", [False]), ("raw", [True, False])])
def test_mnist_reads_every_layout_without_writing(tmp_path: Path, layout: str, packings: list[bool]) -> None:
    for packed in packings:
        write_mnist(tmp_path / layout, "train", 30, packed)
        write_mnist(tmp_path / layout, "t10k", 20, packed)
    before = sorted(tmp_path.rglob("*"))
    train, test = MNIST(PADDED, tmp_path), MNIST(PADDED, str(tmp_path), train=False)
    assert (len(train), len(test)) == (30, 20)
    batch = train.batch([3, 4])
    assert torch.equal(PADDED.decode(batch.x0)[:, :, 2:30, 2:30], train.images[3:5])
    assert batch.labels.tolist() == [3, 4]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_image_sets_that_are_missing_name_folder_and_remedy(
    tmp_path: Path, kind: type[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{kind.__name__} is not in {tmp_path}.*download=true"):
        kind(PADDED, tmp_path)  # type: ignore[call-arg, arg-type]
    monkeypatch.setattr(torchvision.datasets, kind.__name__, Mock(side_effect=RuntimeError("no network")))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded.*no network"):
        kind(PADDED, tmp_path, download=True)  # type: ignore[call-arg, arg-type]


def test_cifar10_takes_arrays_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, targets, classes = random_pixels(5, 3, 32, 32), [0, 1, 2, 3, 9], [f"class {n}" for n in range(10)]
    source = Mock(data=pixels.permute(0, 2, 3, 1).numpy(), targets=targets, classes=classes)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda *args, **kwargs: source)
    batch = CIFAR10(Image(size=32), tmp_path).batch(range(5))
    assert torch.equal(Image(size=32).decode(batch.x0), pixels)
    assert batch.labels.tolist() == targets


GOOD = idx(np.zeros((3, 4), np.uint8))


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (b"", ""), (GOOD[:-1], ""), (GOOD + b"\0", ""), (GOOD[:2] + b"\x0d" + GOOD[3:], ""), (b"PK" + GOOD[2:], ""),
        (GOOD, ".gz"), (gzip.compress(GOOD)[:-9], ".gz"),
    ],
    ids=["empty", "short", "long", "type", "magic", "gzip", "cut"],
)  # fmt: skip
def test_read_idx_names_damaged_files(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"a-idx2-ubyte{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*download it again"):
        read_idx(path)
