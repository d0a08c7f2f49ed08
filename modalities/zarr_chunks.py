"""Decompression of the chunks of zarr stores, in the memory that their metadata state.

zarr decompresses a chunk before it compares its size with the metadata, so that a few kilobytes could fill the memory.
Arrays that are opened within `bounded` are read by `BoundedPipeline`, which gives every codec of zarr that can expand
its input a limit: of both formats, also within shards.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numcodecs
import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec, VLenUTF8Codec
from zarr.codecs._v2 import V2Codec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline
from zarr.storage import WrapperStore, ZipStore

from modalities.base import UnusableFileError
from modalities.named_arrays import GROWTH, MAX_CHUNK

if TYPE_CHECKING:
    from zarr.abc.codec import Codec, CodecPipeline
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

COMPRESSORS = {"blosc", "gzip", "lz4", "zlib", "zstd"}
_OPENING = threading.Lock()


class _ChunkError(Exception):
    """A chunk has another size than its metadata state; the message continues "its chunk …"."""


@dataclass(frozen=True)
class _Size:
    """Number of bytes of decompressed data, or the largest number if it is not `exact`."""

    limit: int
    exact: bool = True

    @classmethod
    def of(cls, spec: ArraySpec) -> Self:
        """Return the size of a chunk's values; the length of texts is not stated."""
        dtype = spec.dtype.to_native_dtype()
        return cls(MAX_CHUNK, exact=False) if dtype.kind in "TO" else cls(math.prod(spec.shape) * dtype.itemsize)

    def encoded(self, codecs: Iterable[Any]) -> _Size:
        """Return the size after encoding by codecs of zarr or numcodecs."""
        size = self
        for codec in codecs:
            name = _name(codec)
            if name == "crc32c":
                size = replace(size, limit=size.limit + 4)
            elif name == "delta":
                size = replace(size, limit=size.limit // codec.dtype.itemsize * codec.astype.itemsize)
            elif name in COMPRESSORS or name == "sharding_indexed":
                size = _Size(min(2 * size.limit, MAX_CHUNK) + GROWTH, exact=False)
        return size


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let the arrays that are opened meanwhile be read by `BoundedPipeline`, also later."""
    # The configuration is that of the whole process, so that two threads would restore each other's.
    with _OPENING, zarr.config.set({"codec_pipeline.path": f"{__name__}.{BoundedPipeline.__qualname__}"}):
        yield


class BoundedPipeline(BatchedCodecPipeline):
    """The default pipeline of zarr with limits for its codecs.

    Reading raises UnusableFileError for a chunk that holds more than its metadata state.
    """

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
        """Return the pipeline of codecs. Batches have one chunk, so that messages name the right one."""
        found: list[Codec] = []
        for codec in codecs:
            # What codecs from arrays to arrays change is in the specification that the others get.
            found.append(_limited(codec, [each for each in found if not isinstance(each, ArrayArrayCodec)]))
        return super().from_codecs(found, batch_size=1)

    async def read_batch(self, batch_info: Iterable[Any], out: NDBuffer, drop_axes: tuple[int, ...] = ()) -> Any:
        """Read one chunk into a part of an array. Raises UnusableFileError if its size is wrong."""
        batch = tuple(batch_info)
        try:
            return await super().read_batch(batch, out, drop_axes)
        except _ChunkError as error:
            path = getattr(batch[0][0], "path", None)
            if path is None:  # within a shard, which has a path
                raise
            raise UnusableFileError(
                f"its chunk {path} {error}: the store is damaged, so get or write it again"
            ) from error


register_pipeline(BoundedPipeline)


def _limited(codec: Codec, before: Sequence[Codec]) -> Codec:
    """Return a codec with a limit, given those that encode before it."""
    if isinstance(codec, V2Codec):
        return _LimitedV2(codec.filters, codec.compressor)
    if isinstance(codec, ShardingCodec):
        return _LimitedSharding(
            chunk_shape=codec.chunk_shape,
            codecs=codec.codecs,
            index_codecs=codec.index_codecs,
            index_location=codec.index_location,
        )
    if isinstance(codec, VLenUTF8Codec):
        return _LimitedTexts()
    if isinstance(codec, BytesBytesCodec) and not isinstance(codec, _Limited) and _name(codec) in COMPRESSORS:
        return _Limited(codec, tuple(before))
    return codec


@dataclass(frozen=True)
class _Limited(BytesBytesCodec):
    """A compressor of format 3."""

    codec: BytesBytesCodec
    before: tuple[Codec, ...]
    is_fixed_size = False

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        return replace(self, codec=self.codec.evolve_from_array_spec(array_spec))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        size = _Size.of(chunk_spec).encoded(self.before)
        content = await asyncio.to_thread(_decompressed, _name(self.codec), chunk_data.as_numpy_array(), size)
        return chunk_spec.prototype.buffer.from_bytes(content)


@dataclass(frozen=True)
class _LimitedV2(V2Codec):
    """The filters and the compressor of format 2."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        codecs = [each for each in (*(self.filters or ()), self.compressor) if each is not None]
        start, count = _Size.of(chunk_spec), math.prod(chunk_spec.shape)
        limited: Any = [_LimitedNumcodec(each, start.encoded(codecs[:i]), count) for i, each in enumerate(codecs)]
        compressor = limited.pop() if self.compressor is not None else None
        (values,) = await V2Codec(tuple(limited), compressor).decode([(chunk_bytes, chunk_spec)])
        assert values is not None
        return values


@dataclass(frozen=True)
class _LimitedNumcodec:
    """A codec of numcodecs whose decoded data have at most a size, and, if they are texts, `count` of them."""

    codec: Any
    size: _Size
    count: int

    def decode(self, stored: Any) -> Any:
        name = _name(self.codec)
        if name in COMPRESSORS:
            return _decompressed(name, np.frombuffer(stored, np.uint8), self.size)
        if name == "vlen-utf8":
            _check_texts(stored, self.count)
        return self.codec.decode(stored)


@dataclass(frozen=True)
class _LimitedTexts(VLenUTF8Codec):
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        _check_texts(chunk_bytes.as_numpy_array(), math.prod(chunk_spec.shape))
        return await super()._decode_single(chunk_bytes, chunk_spec)


class _LimitedSharding(ShardingCodec):
    """Shards: their chunks are decompressed with limits, and are together not much larger than the shard's values."""

    @property
    def codec_pipeline(self) -> CodecPipeline:
        return BoundedPipeline.from_codecs(self.codecs)

    async def _decode_partial_single(self, byte_getter: Any, selection: Any, shard_spec: ArraySpec) -> NDBuffer | None:
        getter = _LimitedGetter(byte_getter, 4 * _Size.of(shard_spec).limit + GROWTH)
        return await super()._decode_partial_single(getter, selection, shard_spec)


class _LimitedGetter:
    """Reads parts of a shard, whose index could refer to the same large part many times."""

    def __init__(self, getter: Any, limit: int) -> None:
        self.getter, self.limit, self.read = getter, limit, 0

    async def get(self, prototype: Any, byte_range: Any = None) -> Buffer | None:
        if isinstance(byte_range, RangeByteRequest):
            length = byte_range.end - byte_range.start
            self.read += length
            if length < 0 or self.read > self.limit:
                raise _ChunkError(f"has parts of more than {self.limit:,} bytes")
        found: Buffer | None = await self.getter.get(prototype=prototype, byte_range=byte_range)
        return found


def _name(codec: Any) -> str:
    """Return the name of a codec of zarr or numcodecs."""
    name = codec.codec_id if hasattr(codec, "codec_id") else codec.to_dict()["name"]
    return str(name).removeprefix("numcodecs.")


def _check_texts(stored: Any, count: int) -> None:
    """Raise _ChunkError if encoded texts are more than `count`: memory is allocated for the number that they state."""
    stated = int.from_bytes(bytes(memoryview(stored)[:4]), "little")
    if stated > count:
        raise _ChunkError(f"holds {stated:,} texts, but its array has chunks of {count:,}")


def _decompressed(name: str, stored: Any, size: _Size) -> Any:
    """Return what a compressor has compressed, without taking more memory than its size.

    Raises:
        _ChunkError: If it is larger.
        Exception: If it is damaged; each library raises its own errors.
    """
    if name == "zstd":
        return _of_zstd(stored, size)
    if name == "gzip":
        with gzip.GzipFile(fileobj=io.BytesIO(stored)) as file:
            content = file.read(size.limit + 1)
    elif name == "zlib":
        stream = zlib.decompressobj()
        content = stream.decompress(stored, size.limit + 1)
        if len(content) <= size.limit and not stream.eof:
            raise zlib.error("a compressed chunk ends early")
    else:
        if _stated_size(name, stored) > size.limit:
            raise _too_large(size)
        return numcodecs.get_codec({"id": name}).decode(stored)
    if len(content) > size.limit:
        raise _too_large(size)
    return content


def _too_large(size: _Size) -> _ChunkError:
    return _ChunkError(f"holds more than the {size.limit:,} bytes that its array's metadata state")


def _stated_size(name: str, stored: Any) -> int:
    """Return the size that data compressed by blosc or lz4 state; numcodecs puts one before those of lz4."""
    if name == "lz4":
        return int.from_bytes(bytes(stored[:4]), "little")
    # blosc reads as many bytes as its header states, also beyond the end.
    if len(stored) < 16 or (found := struct.unpack("<4xI4xI", bytes(stored[:16])))[1] > len(stored):
        raise _ChunkError("ends early")
    return int(found[0])


def _of_zstd(stored: Any, size: _Size) -> Any:
    """Decompress frames of zstd into memory of the size that they may have."""
    codec, content = numcodecs.get_codec({"id": "zstd"}), np.empty(size.limit, np.uint8)
    stated = _zstd_size(bytes(stored[:18]))
    try:
        codec.decode(stored, content)
    except ValueError as error:
        raise _too_large(size) from error
    except RuntimeError as error:
        if stated is None:
            raise _ChunkError(f"does not hold the {size.limit:,} bytes that its array's metadata state") from error
        raise
    # numcodecs does not tell how much it has written. One frame of the right size, or of a size that numcodecs has
    # compared because none is stated, fills the memory; others are decompressed again.
    return content if size.exact and stated in (size.limit, None) else codec.decode(stored)


def _zstd_size(header: bytes) -> int | None:
    """Return the size that the first frame states, None if it states none, or -1 if it is no frame of data.

    Source: RFC 8878, section 3.1.1.1.
    """
    if len(header) < 6 or header[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    flags = header[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 6 - single + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(header[start : start + width], "little") + 256 * (width == 2) if width else None


class BoundedZipStore(WrapperStore[ZipStore]):
    """A zip file of which no member is read beyond the size that the directory of the file states.

    zipfile would decompress a member as a whole before it compares the sizes.
    """

    def __init__(self, store: ZipStore) -> None:
        super().__init__(store)
        with zipfile.ZipFile(store.path) as archive:
            self.sizes = {member.filename: member.file_size for member in archive.infolist()}

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Buffer | None:
        """Return a member or a part of it, or None if there is none."""
        if key not in self.sizes:
            return None
        start, end = 0, self.sizes[key]
        if isinstance(byte_range, RangeByteRequest):
            start, end = byte_range.start, min(byte_range.end, end)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, end - byte_range.suffix)
        # The store reads everything if the number of bytes is negative.
        return await self._store.get(key, prototype, RangeByteRequest(min(start, end), end))
