"""Reading of image files as 8-bit pixels, upright, on white: which formats, and what their pixel values mean.

What is black and what is white follows from a file's format alone, never from its pixels, so that all files of one kind
are read alike: 0 and the largest number of the bits that the format declares, exchanged in TIFF with WhiteIsZero.
Signed numbers, floats and 32 bits have no declared levels; they can be read if `Levels` are given.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modalities.remarks import remark
from modalities.scalars import record

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats recognised by content; EPS and similar are excluded, since reading them runs an interpreter on the file."""
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif",
)  # fmt: skip

OTHERS = {
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "Photoshop": rb"8BPS",
}
"""First bytes of well-known formats that are not read, as regular expressions."""

OURS: dict[str, bytes | tuple[bytes, ...]] = {
    "TIFF": (b"II*\0", b"MM\0*"),
    "PNG": b"\x89PNG\r\n",
    "JPEG": b"\xff\xd8\xff",
    "GIF": b"GIF8",
}
"""First bytes of formats that are read, if Pillow reads that kind of them."""

DAMAGE = (OSError, EOFError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError, struct.error)
"""Errors of Pillow about damaged files; an OSError with a number is of the storage."""

TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of PNG files that are not needed: texts and the colour profile, which is not applied."""

TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations in which the stored picture has the width and height of the upright one exchanged."""

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Numbers of TIFF tags (TIFF 6.0)."""


class Levels(NamedTuple):
    """The values of pixels that are black and white; between them grey is linear, and beyond them it is clipped."""

    black: float
    white: float


class Reading(NamedTuple):
    """How to read image files: Pillow's `mode`, the maximum number of pixels, the `size` at which pixels are needed.

    `size` is a number of pixels per side; larger JPEG files are decoded at a fraction of their size, but not below it.
    `levels` are those of files with one channel, or None for the levels that their format declares.
    """

    mode: str
    max_pixels: int
    size: int
    levels: Levels | None = None


def read_image(path: Path, reading: Reading) -> NDArray[np.uint8]:
    """Return the first frame of an image file, uint8 of shape (height, width) or (height, width, 3).

    Raises:
        ValueError: If the file is empty, damaged, in none of the `FORMATS`, or has too many pixels or no declared
            levels.
        OSError: If it cannot be read from its storage.
    """
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    try:
        try:
            return _decoded(path, reading)
        except ValueError as error:
            # Pillow limits the memory for texts in PNG files. Programs that generate images store megabytes in them.
            if "MAX_TEXT" not in str(error):
                raise
            return _decoded(_without_text(path), reading)
    except DAMAGE as error:
        if getattr(error, "errno", None) is not None:  # of the storage
            raise
        raise ValueError(f"the picture is damaged ({error}): copy it again, or convert it") from error


def image_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Return the height and width of an image file, upright, from its header.

    Raises:
        ValueError: If the file is damaged, in none of the `FORMATS`, or has too many pixels.
        OSError: If it cannot be read from its storage.
    """
    try:
        opened = _opened(path, max_pixels)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        opened = _opened(_without_text(path), max_pixels)
    with opened as image:
        return _upright_size(image)


def _upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Return the height and width of an opened image as it is seen."""
    import PIL.Image
    from PIL.ExifTags import Base

    orientation = None
    with suppress(Exception):  # damaged metadata raise many kinds of errors
        # Not the method of the subclass for PNG, which decodes the picture.
        orientation = PIL.Image.Image.getexif(image).get(Base.Orientation)
    return (image.width, image.height) if orientation in TRANSPOSED else (image.height, image.width)


def _opened(file: Path | io.BytesIO, max_pixels: int) -> PIL.Image.Image:
    """Open an image file, without decoding it. Raises ValueError if its format or its size is refused."""
    import PIL.Image

    # Pillow's own limit is one for the whole process; here every file is checked against the setting.
    PIL.Image.MAX_IMAGE_PIXELS = max(PIL.Image.MAX_IMAGE_PIXELS or 0, max_pixels) or None
    try:
        image = PIL.Image.open(file, formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(_unidentified(file)) from error
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"it has more than max_pixels={max_pixels} pixels ({error})") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(f"{image.width}×{image.height} pixels exceed max_pixels={max_pixels}")
    return image


def _decoded(file: Path | io.BytesIO, reading: Reading) -> NDArray[np.uint8]:
    import PIL.Image
    import PIL.ImageOps

    with _opened(file, reading.max_pixels) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # cameras add previews and depth
            remark("a file of several pages or frames, of which only the first is read")
        height, width = _upright_size(image)
        record(height=height, width=width)
        # A JPEG can be decoded much faster at a fraction of its size.
        image.draft(None, (reading.size, reading.size))
        grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
        levels = (reading.levels or _declared_levels(image)) if grey else None
        upright: PIL.Image.Image = image
        if _has_readable_exif(image):
            PIL.ImageOps.exif_transpose(image, in_place=True)
        if levels is not None and (reading.levels is not None or upright.mode not in ("1", "L")):
            upright = _scaled(upright, levels, image.format == "TIFF", _tags(image).get(SAMPLE_FORMAT, (1,))[0] == 2)
        elif upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "white"), upright)
        return np.array(upright if upright.mode == reading.mode else upright.convert(reading.mode))  # convert copies


def _declared_levels(image: PIL.Image.Image) -> Levels:
    """Return the levels that the format of an image with one channel declares.

    Raises:
        ValueError: If it declares none.
    """
    tags = _tags(image)
    bits, kind = tags.get(BITS_PER_SAMPLE, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0]
    name = "float" if image.mode == "F" or kind == 3 else f"signed {bits}-bit" if kind == 2 else f"{bits}-bit"
    if name == "float" or kind == 2 or bits > 16:
        raise ValueError(
            f"{name} pixels have no declared black and white level: set modality.black and modality.white to the "
            "values of black and white, or convert the file to 8 or 16 bits without a sign"
        )
    if image.mode in ("1", "L"):
        return Levels(0, 255)  # the decoder has applied the bits and WhiteIsZero
    white = (1 << bits) - 1
    return Levels(white, 0) if tags.get(PHOTOMETRIC) == 0 else Levels(0, white)


def _tags(image: PIL.Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _has_readable_exif(image: PIL.Image.Image) -> bool:
    """Whether metadata that may turn the image can be read; if they are damaged, the picture need not be."""
    try:
        image.getexif()
    except Exception:  # of many kinds
        return False
    return True


def _scaled(image: PIL.Image.Image, levels: Levels, tiff: bool, signed: bool) -> PIL.Image.Image:
    """Return an 8-bit image, in which the levels are 0 and 255; `signed` are the numbers that a `tiff` declares.

    Raises:
        ValueError: If a pixel is not finite.
    """
    import PIL.Image

    stored = np.asarray(image)
    # Pillow ignores the sign of 8 bits in TIFF, and takes 32 bits for signed ones.
    kind = {(True, "L"): np.int8, (False, "I"): np.uint32}.get((signed, image.mode)) if tiff else None
    values = (stored if kind is None else stored.view(kind)).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite (NaN or infinity)")
    grey = (values - levels.black) * (255 / (levels.white - levels.black))
    return PIL.Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _unidentified(file: Path | io.BytesIO) -> str:
    head = file.getvalue()[:16] if isinstance(file, io.BytesIO) else _head(file)
    if own := next((name for name, start in OURS.items() if head.startswith(start)), None):
        kind = ", or has a kind of pixels that is not read, such as floats of 16 or 64 bits" if own == "TIFF" else ""
        return f"this {own} file is damaged{kind}: convert it with another program"
    known = next((name for name, start in OTHERS.items() if re.match(start, head, re.DOTALL)), None)
    formats = ", ".join(FORMATS)
    content = "its content is in none of" if known is None else f"it is a {known} file, which is none of"
    return f"{content} the formats {formats}, whatever its name suggests, or it is damaged: convert it to one of them"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _without_text(path: Path) -> io.BytesIO:
    """Return the content of a PNG file without its texts and colour profile."""
    with path.open("rb") as file:
        parts = [file.read(8)]
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[:4], "big") + 4  # with the checksum
            if header[4:] in TEXT:
                file.seek(length, io.SEEK_CUR)
            else:
                parts += header, file.read(length)
    return io.BytesIO(b"".join(parts))
