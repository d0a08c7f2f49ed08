"""Arrays of zarr stores of format 2 and 3, in a folder or a zip file, and the check that reading them is safe.

Metadata are checked before zarr opens the store: only codecs and types in a list are accepted, so that none that
unpickles values or comes with another package is used. In folders, every entry must be a regular file or a folder: a
link could lead out of it, and reading a pipe never ends.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.named_arrays import (
    GROWTH,
    MAX_ARRAYS,
    MAX_CHUNK,
    ArrayFile,
    Index,
    NamedArray,
    Part,
    check_size,
    decoded,
    is_number,
    unit_of,
)
from modalities.netcdf_files import LAZY, of_dataset
from multisagd.files import LARGEST_TEXT, parse_json, read_json
from multisagd.libraries import check

CODECS = {
    "bytes", "transpose", "sharding_indexed", "crc32c", "blosc", "gzip", "zstd", "vlen-utf8", "zlib", "lz4", "shuffle",
    "delta",
}  # fmt: skip
"""Names of the accepted codecs; names of numcodecs may begin with its own name."""
TEXTS = ("string", "fixed_length_utf32", "null_terminated_bytes")
"""Types of texts in format 3."""
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
NESTED = 8
"""Maximum number of codecs within codecs."""


def is_store(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA[:3])


def open_zarr(path: Path) -> ArrayFile:
    """Open a zarr store: a folder, or a zip file with the content of such a folder.

    Names of arrays are their paths in the store. In a group whose arrays all have names of dimensions, each of one
    size, xarray reads them, as it reads NetCDF.

    Raises:
        UnusableFileError: If the store contains a link, a codec or a type that is not accepted, or chunks that are too
            large.
        BrokenLibraryError: If a library cannot be imported.
        Exception: If it is damaged; zarr raises errors of many kinds.
    """
    nodes = _folder_nodes(path) if path.is_dir() else _zip_nodes(path)
    groups: dict[str, list[str]] = {}
    for name, node in nodes.items():
        if _is_array(node):
            _check_array(name, node)
            groups.setdefault(name.rpartition("/")[0], []).append(name)
    if not groups:
        raise UnusableFileError("it contains no zarr array")
    check("zarr", "zarr stores")
    from zarr.storage import LocalStore, ZipStore

    from modalities.zarr_chunks import BoundedZipStore, bounded

    folder = path.is_dir()
    store = LocalStore(path, read_only=True) if folder else BoundedZipStore(ZipStore(path, mode="r"))
    with bounded():
        return _opened(store, nodes, groups)


def _opened(store: Any, nodes: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> ArrayFile:
    """Open the arrays of a store, of which `groups` names those of each group."""
    import zarr

    opened: Any = (
        zarr.open(store=store, mode="r", use_consolidated=False) if _is_group(nodes) else zarr.open_array(store)
    )
    arrays: list[NamedArray] = []
    others: dict[str, str] = {}
    for group, names in groups.items():
        if "" not in names and _are_named([nodes[name] for name in names]):
            found = _of_xarray(store, group)
        else:
            found = _of_zarr({name: (opened[name] if name else opened, nodes[name]) for name in names})
        arrays += found.arrays.values()
        others |= found.others
    return ArrayFile(arrays, others, close=store.close)


def _of_xarray(store: Any, group: str) -> ArrayFile:
    """Return the arrays of a group as xarray reads them, named after their paths in the store."""
    check("xarray", "zarr stores with named dimensions")
    import xarray

    options: dict[str, Any] = {"engine": "zarr", "consolidated": False, "group": group or None, **LAZY}
    found = of_dataset(xarray.open_dataset(store, **options))
    before = f"{group}/" if group else ""
    # Folders list their members in any order, and variables must not depend on it.
    arrays = [replace(found.arrays[name], name=f"{before}{name}") for name in sorted(found.arrays)]
    return ArrayFile(arrays, {f"{before}{name}": reason for name, reason in found.others.items()})


def _of_zarr(opened: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> ArrayFile:
    """Return arrays as zarr reads them, from each one and its metadata, by name."""
    arrays, others = [], {}
    for name, (array, node) in opened.items():
        text = array.dtype.kind in "USTO"
        if not (is_number(array.dtype) or text):
            others[name] = f"its values have the type {array.dtype}, and not real numbers"
            continue
        attributes, rows = dict(array.attrs), (array.chunks or (1,))[0]
        arrays.append(
            NamedArray(
                name, array.shape, np.dtype("U") if text else array.dtype, _part(array, attributes), _dimensions(node),
                unit_of(attributes.get("units", "")), int(rows),
            )
        )  # fmt: skip
    return ArrayFile(arrays, others)


def _are_named(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all dimensions of arrays have names, and each has one size, as xarray requires."""
    sizes: dict[str | None, set[int]] = {}
    for node in nodes:
        names = _dimensions(node)
        if len(set(names)) < len(names):
            return False
        for name, size in zip(names, node["shape"], strict=True):
            sizes.setdefault(name, set()).add(size)
    return None not in sizes and all(len(each) == 1 for each in sizes.values())


def store_files(path: Path) -> Iterator[Path]:
    """Yield the files in the folder of a store, sorted by path."""
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)


def _is_array(node: Mapping[str, Any]) -> bool:
    return node.get("node_type") == "array" or "dtype" in node


def _is_group(nodes: Mapping[str, Any]) -> bool:
    return not ("" in nodes and _is_array(nodes[""]))


def _folder_nodes(root: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of the arrays and attributes in a folder, by path; all of its entries are checked."""
    found: dict[str, Any] = {}
    largest: list[tuple[int, str]] = [(0, "")]
    pending = [root]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(Path(entry.path))
                elif not stat.S_ISREG(mode):
                    raise UnusableFileError(
                        f"its member {Path(entry.path).relative_to(root)} is a link or a special file: a store must "
                        "contain only files and folders"
                    )
                elif entry.name in METADATA:
                    found[Path(entry.path).relative_to(root).as_posix()] = read_json(entry.path, finite=False)
                else:
                    largest.append(max(largest.pop(), (entry.stat().st_size, entry.path)))
                if len(found) > 4 * MAX_ARRAYS:
                    raise UnusableFileError(f"it has more than {MAX_ARRAYS:,} arrays")
    return _checked_nodes(found, *largest[0])


def _zip_nodes(path: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of the arrays and attributes in a zip file, by path; all of its members are checked."""
    found: dict[str, Any] = {}
    largest = (0, "")
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnusableFileError(
                    f"its member {member.filename} is compressed by another method than deflate: write the file again "
                    "without compression, since chunks are already compressed"
                )
            if PurePosixPath(member.filename).name in METADATA:
                if member.file_size > LARGEST_TEXT or len(found) > 4 * MAX_ARRAYS:
                    raise UnusableFileError(f"its metadata {member.filename} are too large")
                with archive.open(member) as content:
                    found[member.filename] = parse_json(content.read(member.file_size), finite=False)
            else:
                largest = max(largest, (member.file_size, member.filename))
    return _checked_nodes(found, *largest)


def _checked_nodes(files: Mapping[str, Any], size: int, name: str) -> dict[str, dict[str, Any]]:
    """Return the metadata of every node by its path, from those of the files; `size` is that of the largest chunk.

    Raises:
        UnusableFileError: If metadata are not mappings, or the largest stored chunk is much larger than any chunk.
    """
    nodes: dict[str, dict[str, Any]] = {}
    for file, content in sorted(files.items()):
        if not isinstance(content, dict):
            raise UnusableFileError(f"its metadata {file} are not a mapping")
        node = nodes.setdefault(file.rpartition("/")[0], {})
        if file.endswith(".zattrs"):
            node["attributes"] = content
        else:
            node |= content
    limit = max((_chunk_bytes(name, node) for name, node in nodes.items() if _is_array(node)), default=0)
    if size > 2 * limit + GROWTH:
        raise UnusableFileError(f"its chunk {name} has {size:,} bytes, but its arrays have chunks of {limit:,} bytes")
    return nodes


def _check_array(name: str, node: Mapping[str, Any]) -> None:
    """Check the codecs and the type of an array."""
    if node.get("zarr_format") == 2:
        used = [node.get("compressor"), *(node.get("filters") or [])]
        identifiers = [each.get("id") if isinstance(each, dict) else "?" for each in used if each is not None]
        objects = _type(node).hasobject
        if objects and identifiers[-1:] != ["vlen-utf8"] and "vlen-utf8" not in identifiers:
            raise UnusableFileError(f"its array {name} contains Python objects, which are not read")
    else:
        identifiers = list(_codec_names(node.get("codecs")))
        if node.get("storage_transformers"):
            raise UnusableFileError(f"its array {name} uses storage transformers, which are not read")
    for codec in identifiers:
        if not isinstance(codec, str) or codec.removeprefix("numcodecs.") not in CODECS:
            raise UnusableFileError(
                f"its array {name} uses the codec {codec!r:.60}, which is not accepted: store it with one of "
                f"{', '.join(sorted(CODECS))}"
            )
    _type(node)


def _codec_names(codecs: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the names of codecs, including those within the configuration of others, such as shards."""
    if not isinstance(codecs, list) or depth > NESTED:
        raise UnusableFileError("the codecs of an array are not a list, or are nested too deeply")
    for codec in codecs:
        yield codec.get("name") if isinstance(codec, dict) else codec
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        for key in ("codecs", "index_codecs"):
            if isinstance(inner, dict) and key in inner:
                yield from _codec_names(inner[key], depth + 1)


def _type(node: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the type that an array's metadata state. Raises UnusableFileError if it is not accepted."""
    stated = node.get("dtype", node.get("data_type"))
    name = stated.get("name") if isinstance(stated, dict) else stated
    if "data_type" in node and name in TEXTS:
        return np.dtype("U")
    try:
        return np.dtype(name if isinstance(name, str) else "?!")
    except TypeError as error:
        raise UnusableFileError(f"an array has values of the type {stated!r:.80}, which is not accepted") from error


def _chunk_bytes(name: str, node: Mapping[str, Any]) -> int:
    """Return the size of a chunk in memory, after checking it."""
    grid = node.get("chunk_grid")
    inner = grid.get("configuration", {}) if isinstance(grid, dict) else {}
    chunks = node.get("chunks", inner.get("chunk_shape") if isinstance(inner, dict) else None)
    shape = node.get("shape")
    if not all(isinstance(each, list) and all(type(size) is int for size in each) for each in (chunks, shape)):
        raise UnusableFileError(f"its array {name} does not state its shape and chunks")
    check_size(name, shape or (), np.dtype("u1"), 1 << 62)
    check_size(name, _inner_chunk(node) or chunks or (), _type(node), MAX_CHUNK)
    # The length of texts is not stated.
    return MAX_CHUNK if _type(node).kind in "UO" else math.prod(chunks) * _type(node).itemsize


def _inner_chunk(node: Mapping[str, Any]) -> list[int] | None:
    """Return the shape of the chunks within a shard, which are decompressed one by one, or None without shards."""
    codecs = node.get("codecs")
    for codec in codecs if isinstance(codecs, list) else ():
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inner, dict) and isinstance(shape := inner.get("chunk_shape"), list):
            return shape if all(type(size) is int for size in shape) else None
    return None


def _dimensions(node: Mapping[str, Any]) -> tuple[str | None, ...]:
    attributes = node.get("attributes")
    names = node.get("dimension_names") or (attributes or {}).get("_ARRAY_DIMENSIONS")
    size = len(node["shape"])
    if not isinstance(names, list) or len(names) != size:
        return (None,) * size
    return tuple(each if isinstance(each, str) and each else None for each in names)


def _part(array: Any, attributes: Mapping[str, Any]) -> Part:
    def part(index: Index) -> NDArray[Any]:
        values = np.asarray(array[index])
        return values if values.dtype.kind in "USTO" else decoded(values, attributes)

    return part
