"""Compressed chunks of zarr, HDF5 and NetCDF-4 never take much more memory than the metadata say that they hold."""

import contextlib
import functools
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pyarrow
import pytest
import zarr
from numcodecs.abc import Codec

from modalities.array_files import open_arrays
from modalities.base import UnusableFileError

BOMB = 160 << 20
"""Number of bytes that a hostile chunk holds."""
SHAPE = (512, 1024)
"""Shape of the chunks; each holds 2 MiB."""
COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")


def kibibytes(key: str) -> int:
    return int(re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Fail if more than 80 MiB are taken, at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = kibibytes("VmRSS")
    yield
    assert kibibytes("VmHWM") - before < 80 << 10


def assert_refused(path: Path, message: str, index: tuple[slice, ...] | None = None) -> None:
    with little_memory(), pytest.raises(UnusableFileError, match=message), open_arrays(path) as file:
        file.array("a").read(index)


def codec(name: str) -> Codec:
    return numcodecs.get_codec({"id": name})


@functools.cache
def bomb(name: str) -> bytes:
    return bytes(codec(name).encode(np.zeros(BOMB, np.uint8)))


def unstated(values: bytes) -> bytes:
    """Compress with zstd, as a stream whose size is not stated."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(values)
    return bytes(sink.getvalue())


def store(path: Path, version: int, codecs: Any, chunk: bytes | None = None) -> None:
    """Write a store of one array whose only chunk is these bytes, or that of ones.

    `codecs` are the compressor and the filters of format 2, or the codecs of format 3.
    """
    values = np.ones(SHAPE, np.float32)
    array = zarr.open_group(path, mode="w", zarr_format=version).create_array("a", data=values, chunks=SHAPE)
    (metadata,) = [path / "a" / name for name in ("zarr.json", ".zarray") if (path / "a" / name).exists()]
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | codecs))
    if chunk is None:
        zarr.open_group(path)["a"][:] = values  # type: ignore[index]
    else:
        (path / "a" / array.metadata.encode_chunk_key((0, 0))).write_bytes(chunk)


def codecs_of(version: int, name: str) -> dict[str, Any]:
    """The metadata of a compressor."""
    if version == 2:
        return {"compressor": {"id": name}, "filters": None}
    configuration = {} if name in ("lz4", "zlib") else ZARR3[name]
    prefix = "numcodecs." if name in ("lz4", "zlib") else ""
    return {
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": f"{prefix}{name}", "configuration": configuration},
        ]
    }


ZARR3: dict[str, dict[str, Any]] = {
    "blosc": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0},
    "gzip": {"level": 1},
    "zstd": {"level": 0, "checksum": False},
}


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_zarr_refuses_a_chunk_that_expands(name: str, version: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store(path, version, codecs_of(version, name))
    with open_arrays(path) as file:
        np.testing.assert_array_equal(file.array("a").read(), np.ones(SHAPE))
    store(path, version, codecs_of(version, name), bomb(name))
    assert_refused(
        path, r"its chunk a/(c/0/0|0\.0) holds more than the 2,097,152 bytes that its array's metadata state"
    )


def test_zarr_refuses_what_zstd_does_not_state(tmp_path: Path) -> None:
    path, (values, short) = tmp_path / "a.zarr", (np.arange(np.prod(SHAPE), dtype=np.float32), bytes(8))
    half = values.nbytes // 2
    frames = [codec("zstd").encode(values.tobytes()[part]) for part in (slice(half), slice(half, None))]
    for honest in (unstated(values.tobytes()), b"".join(frames)):
        store(path, 3, codecs_of(3, "zstd"), honest)
        with open_arrays(path) as file:
            np.testing.assert_array_equal(file.array("a").read().ravel(), values)
    store(path, 3, codecs_of(3, "zstd"), unstated(bytes(BOMB)))
    assert_refused(path, "its chunk a/c/0/0 does not hold the 2,097,152 bytes")
    store(path, 3, codecs_of(3, "zstd"), codec("zstd").encode(short) + bomb("zstd"))
    assert_refused(path, "its chunk a/c/0/0 holds more than")
    # A skippable frame of no bytes, in whose place uninitialized memory would be read.
    store(path, 3, codecs_of(3, "zstd"), struct.pack("<II", 0x184D2A50, 0) + codec("zstd").encode(short))
    with open_arrays(path) as file, pytest.raises(ValueError, match="reshape"):
        file.array("a").read()


def test_zarr_refuses_a_chunk_that_expands_within_filters(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    twice = [{"id": "zlib"}, {"id": "delta", "dtype": "<f4"}]
    store(path, 2, {"filters": twice[::-1], "compressor": {"id": "zstd"}})
    with open_arrays(path) as file:
        np.testing.assert_array_equal(file.array("a").read(), np.ones(SHAPE))
    nested = codec("zstd").encode(bomb("zlib"))
    store(path, 2, {"filters": twice[::-1], "compressor": {"id": "zstd"}}, nested)
    assert_refused(path, "its chunk a/0.0 holds more than the 2,097,152 bytes")


@pytest.mark.parametrize("part", [None, (slice(0, 1), slice(0, 1))])
def test_zarr_refuses_a_chunk_that_expands_within_a_shard(part: tuple[slice, ...] | None, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    inner = codecs_of(3, "zstd")["codecs"]
    configuration = {
        "chunk_shape": [SHAPE[0] // 2, SHAPE[1]], "codecs": inner, "index_location": "end", "index_codecs": inner[:1],
    }  # fmt: skip
    codecs = {"codecs": [{"name": "sharding_indexed", "configuration": configuration}]}
    store(path, 3, codecs)
    with open_arrays(path) as file:
        np.testing.assert_array_equal(file.array("a").read(part), np.ones(SHAPE)[part or ...])
    size = len(bomb("zstd"))
    store(path, 3, codecs, bomb("zstd") + struct.pack("<4Q", 0, size, 0, size))
    assert_refused(path, "its chunk a/c/0/0 holds more than the 1,048,576 bytes", part)


def test_zarr_refuses_a_shard_that_refers_to_one_part_many_times(tmp_path: Path) -> None:
    path, count = tmp_path / "a.zarr", 512
    inner = codecs_of(3, "zstd")["codecs"]
    configuration = {"chunk_shape": [1, SHAPE[1]], "codecs": inner, "index_location": "end", "index_codecs": inner[:1]}
    part = 2 << 20
    index = np.tile(np.array([0, part], "<u8"), count)
    store(
        path,
        3,
        {"codecs": [{"name": "sharding_indexed", "configuration": configuration}]},
        bytes(part) + index.tobytes(),
    )
    assert_refused(path, "its chunk a/c/0/0 has parts of more than 8,454,144 bytes", (slice(1, count), slice(0, 1)))


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_refuses_more_texts_than_a_chunk_has(version: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts are no part of the specification of format 3
        group = zarr.open_group(path, mode="w", zarr_format=version)
        array = group.create_array("a", shape=(2,), dtype=str, chunks=(2,), compressors=None)
        array[:] = np.array(["ä", "b"], object)
        with open_arrays(path) as file:
            assert file.array("a").texts() == ["ä", "b"]
        (path / "a" / array.metadata.encode_chunk_key((0,))).write_bytes(struct.pack("<I", BOMB // 8) + bytes(8))
        assert_refused(path, "holds 20,971,520 texts, but its array has chunks of 2")


def test_zarr_reads_no_more_of_a_zip_file_than_it_states(tmp_path: Path) -> None:
    node = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [4],
        "dtype": "<f8",
        "compressor": None,
        "filters": None,
        "order": "C",
        "fill_value": 0,
    }
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", json.dumps({"zarr_format": 2}))
        archive.writestr("a/.zarray", json.dumps(node))
        with archive.open("a/0", "w") as member:
            for _ in range(BOMB >> 20):
                member.write(bytes(1 << 20))
        archive.infolist()[-1].file_size = 32
    with little_memory(), open_arrays(tmp_path / "a.zarr.zip") as file, pytest.raises(zipfile.BadZipFile):
        file.array("a").read()
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(".zarray", json.dumps(node))
    with pytest.raises(UnusableFileError, match=r"member \.zarray is compressed by another method than deflate"):
        open_arrays(tmp_path / "b.zarr.zip")


def test_zarr_of_other_users_is_read_as_before(tmp_path: Path) -> None:
    before = zarr.config.get("codec_pipeline")
    store(tmp_path / "a.zarr", 3, codecs_of(3, "zstd"))
    with open_arrays(tmp_path / "a.zarr"):
        assert zarr.config.get("codec_pipeline") == before
        other = zarr.open_array(tmp_path / "a.zarr", path="a")
    assert type(other._async_array.codec_pipeline).__module__ == "zarr.core.codec_pipeline"


@functools.cache
def hdf5_bomb(compression: str, fletcher32: bool = False) -> bytes:
    """A chunk of zeros, as HDF5 compresses it."""
    size = BOMB // 4
    options: dict[str, Any] = {"compression": compression, "compression_opts": 1 if compression == "gzip" else None}
    with h5py.File("bomb", "w", driver="core", backing_store=False) as file:
        file.create_dataset("a", data=np.zeros(size, np.float32), chunks=(size,), fletcher32=fletcher32, **options)
        return bytes(file["a"].id.read_direct_chunk((0,))[1])


def hdf5(path: Path, name: str, shape: tuple[int, ...], compression: str = "gzip", **options: Any) -> None:
    """Write a dataset of one chunk, which expands."""
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset(name, shape, np.float32, chunks=shape, compression=compression, **options)
        dataset.id.write_direct_chunk((0,) * len(shape), hdf5_bomb(compression, **options))


HDF5: dict[str, tuple[str, dict[str, Any]]] = {
    "gzip": ("gzip", {}), "lzf": ("lzf", {}), "szip": ("szip", {}), "checksum": ("gzip", {"fletcher32": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_refuses_a_chunk_that_expands(kind: str, tmp_path: Path) -> None:
    compression, options = HDF5[kind]
    hdf5(tmp_path / "a.h5", "a", (1024, 1024), compression, **options)
    assert_refused(tmp_path / "a.h5", r"chunk of its array a at \(0, 0\) holds more than the 4,194,304 bytes")


@pytest.mark.parametrize("name", ["a", "_nc4_non_coord_a", "hidden/b"])
def test_netcdf_refuses_a_chunk_that_expands(name: str, tmp_path: Path) -> None:
    hdf5(tmp_path / "a.nc", name, SHAPE)
    if name == "hidden/b":
        with h5py.File(tmp_path / "a.nc", "a") as file:
            file["a"] = h5py.SoftLink("/hidden/b")
    assert_refused(tmp_path / "a.nc", "holds more than the 2,097,152 bytes", (slice(0, 1), slice(0, 1)))


@pytest.mark.parametrize("name", ["a", "phony_dim_0"])
def test_netcdf_refuses_a_coordinate_that_expands(name: str, tmp_path: Path) -> None:
    hdf5(tmp_path / "a.nc", name, (1 << 19,))
    if name == "a":
        with h5py.File(tmp_path / "a.nc", "a") as file:
            file["a"].make_scale("a")
    assert_refused(tmp_path / "a.nc", "holds more than the 2,097,152 bytes")


def deflate_then_shuffle(file: h5py.File, values: np.ndarray) -> None:
    """Write a dataset with filters in an order that programs in C choose by mistake."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(values.shape)
    properties.set_fletcher32()
    properties.set_deflate(1)
    properties.set_shuffle()
    space = h5py.h5s.create_simple(values.shape)
    h5py.Dataset(h5py.h5d.create(file.id, b"unusual", h5py.h5t.NATIVE_FLOAT, space, properties))[:] = values


@pytest.mark.parametrize("ending", [".h5", ".nc"])
def test_hdf5_reads_chunks_that_were_examined(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalities.hdf5_chunks.HARMLESS", -(1 << 30))  # all are
    path, values = tmp_path / f"a{ending}", np.arange(60, dtype=np.float32).reshape(10, 6)
    with h5py.File(path, "w") as file:
        deflate_then_shuffle(file, values)
        for kind, (compression, options) in HDF5.items():
            file.create_dataset(kind, data=values, chunks=(4, 4), compression=compression, shuffle=True, **options)
        file.create_dataset("part", (10, 6), np.float32, chunks=(4, 4), compression="gzip")[:4] = 1
        file.create_dataset("label", data=["a", "bb"], chunks=(2,), compression="gzip", dtype=h5py.string_dtype())
    with open_arrays(path) as opened:
        for kind in (*HDF5, "unusual"):
            for index in ((slice(0, 10), slice(0, 6)), (slice(1, 10, 4), slice(1, 2)), (slice(0, 0), slice(0, 6))):
                np.testing.assert_array_equal(opened.array(kind).read(index), values[index])
        np.testing.assert_array_equal(opened.array("part").read()[:, 0], [1] * 4 + [0] * 6)
        assert opened.array("label").texts() == ["a", "bb"]


def test_hdf5_refuses_what_is_compressed_twice(tmp_path: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((8,))
    properties.set_deflate(1)
    properties.set_deflate(1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((8,)), properties)
    with pytest.raises(UnusableFileError, match="its array a is compressed twice"):
        open_arrays(tmp_path / "a.h5")


def test_hdf5_examines_a_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalities.hdf5_chunks.HARMLESS", -(1 << 30))
    examined: list[Any] = []
    monkeypatch.setattr("modalities.hdf5_chunks._exceeds", lambda *words: examined.append(words))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=np.ones((8, 4)), chunks=(2, 4), compression="gzip")
    with open_arrays(tmp_path / "a.h5") as opened:
        for stop, count in ((1, 1), (2, 1), (5, 3), (8, 4), (8, 4)):
            opened.array("a").read((slice(0, stop), slice(0, 4)))
            assert len(examined) == count
