"""The index of a tar shard: the position of each example's media, its class and its caption, for random access.

It is built in one pass over the shard's headers and stored in a separate safetensors file:
`000000.tar.KEY.index` next to the shard, where KEY identifies the suffixes and JSON keys that the scan looks for. An
index that is damaged, or does not match the current content of the shard, counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from modalities.byte_ranges import any_hidden
from modalities.tar_members import BLOCK, Member, Read, ReadAheadBuffer, members
from multisagd.files import parse_json

FORMAT_VERSION = 2
LARGEST_SIDECAR = 1 << 20
"""Maximum size of a file with a class, a caption or JSON, in bytes."""

SIDECARS = ("cls", "txt", "json")


@dataclass(frozen=True)
class ScanOptions:
    """What a scan looks for: suffixes of media, in lower case and without the dot, and keys in JSON files."""

    media: tuple[str, ...]
    label_key: str = "label"
    text_key: str = "text"

    @property
    def key(self) -> str:
        """A short hash of these options, for the file names of indices."""
        facts = [FORMAT_VERSION, sorted(self.media), self.label_key, self.text_key]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


class Texts:
    """A sequence of strings stored in two arrays, with eight bytes of overhead per string."""

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Pack strings into a `Texts` object."""
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class ShardIndex:
    """The examples of one shard in the order of their media, one entry of each array per example.

    `header` is the position of the media's header block, `crc` its CRC-32 and `size` the size of the media; `label`
    is an index into `classes`, or -1 if there is no class; `texts` are the captions, empty where `captioned` is False;
    `names` are the names of the media. `length` (in bytes) and `state` identify the shard.
    """

    length: int
    state: str
    classes: tuple[str, ...]
    header: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    label: NDArray[np.int32]
    captioned: NDArray[np.bool_]
    names: Texts
    texts: Texts

    def __len__(self) -> int:
        return len(self.header)

    @classmethod
    def build(cls, read: Read, size: int, state: str, options: ScanOptions, block: int) -> Self:
        """Build the index of a shard, reading `block` bytes at a time.

        Raises:
            ValueError: If the shard is damaged or ambiguous, or a class or caption cannot be read; the message names
                the member or position.
        """
        media, labels, texts = _examples(ReadAheadBuffer(read, size, block), size, options)
        keys = list(media)
        classes = tuple(dict.fromkeys(labels[key] for key in keys if key in labels))
        numbers = {name: number for number, name in enumerate(classes)}
        members = [media[key] for key in keys]
        return cls(
            size,
            state,
            classes,
            np.array([each.header for each in members], np.int64),
            np.array([each.size for each in members], np.int64),
            np.array([each.crc for each in members], np.uint32),
            np.array([numbers.get(labels.get(key, ""), -1) if key in labels else -1 for key in keys], np.int32),
            np.array([key in texts for key in keys], np.bool_),
            Texts.of([each.name for each in members]),
            Texts.of([texts.get(key, "") for key in keys]),
        )

    def pack(self) -> bytes:
        """Return the content of an index file."""
        facts = json.dumps({"length": self.length, "state": self.state, "classes": self.classes})
        arrays: dict[str, NDArray[Any]] = {"facts": np.frombuffer(facts.encode(), np.uint8)}
        for field in fields(self)[3:]:
            value = getattr(self, field.name)
            if isinstance(value, Texts):
                arrays |= {f"{field.name}.data": value.data, f"{field.name}.ends": value.ends}
            else:
                arrays[field.name] = value
        return safetensors.numpy.save(arrays)

    @classmethod
    def unpack(cls, content: bytes) -> Self:
        """Return the index that `content`, the bytes of an index file, represents.

        Raises:
            ValueError: If the content is damaged, or contains positions outside the shard.
        """
        try:
            arrays = safetensors.numpy.load(content)
            facts = parse_json(arrays["facts"].tobytes())
            parts: list[Any] = [arrays[name] for name in ("header", "size", "crc", "label", "captioned")]
            parts += [Texts(arrays[f"{name}.data"], arrays[f"{name}.ends"]) for name in ("names", "texts")]
            index = cls(int(facts["length"]), str(facts["state"]), tuple(map(str, facts["classes"])), *parts)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"it is not an index: {error}") from error
        index._check()
        return index

    @property
    def digest(self) -> str:
        """A hash of the examples: their names, sizes, classes and captions."""
        hashed = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        arrays: tuple[NDArray[Any], ...] = (self.size, self.label, self.captioned)
        for array in (*arrays, *(part for packed in (self.names, self.texts) for part in (packed.ends, packed.data))):
            hashed.update(array.tobytes())
        return hashed.hexdigest()

    def _check(self) -> None:
        count = len(self)
        kinds = {"header": np.int64, "size": np.int64, "crc": np.uint32, "label": np.int32, "captioned": np.bool_}
        valid = all(getattr(self, name).shape == (count,) for name in kinds)
        valid = valid and all(getattr(self, name).dtype == kind for name, kind in kinds.items())
        if valid and count:
            valid = self.header.min() >= 0 and self.size.min() >= 0 and self.header.max() < self.length < 1 << 62
            valid = valid and bool((self.size <= self.length - BLOCK - self.header).all())
            valid = valid and -1 <= self.label.min() <= self.label.max() < len(self.classes)
        for packed in (self.names, self.texts):
            ends = packed.ends
            valid = valid and ends.shape == (count,) and ends.dtype == np.int64 and packed.data.dtype == np.uint8
            valid = valid and bool((np.diff(ends, prepend=0) >= 0).all())
            valid = valid and (ends[-1] if count else 0) == len(packed.data)
        if not valid:
            raise ValueError("its entries are invalid")


def write_index(path: Path, content: bytes) -> None:
    """Write an index atomically; several processes may write the same one.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _examples(read: Read, size: int, options: ScanOptions) -> tuple[dict[str, Member], dict[str, str], dict[str, str]]:
    """Return the media, class and caption of each example, keyed by the name that its files share."""
    media: dict[str, Member] = {}
    labels: dict[str, dict[str, str]] = {"cls": {}, "json": {}}
    texts: dict[str, dict[str, str]] = {"txt": {}, "json": {}}
    seen: set[tuple[str, str]] = set()
    for member in members(read, size):
        folder, base = posixpath.split(member.name)
        stem, _, ending = base.partition(".")
        key, ending = posixpath.join(folder, stem), ending.lower()
        # Hidden files, system files and WebDataset's own files are not examples; links and devices are never
        # followed.
        if member.kind != "file" or not stem or base.startswith("__") or any_hidden(member.name):
            continue
        if ending not in options.media and ending not in SIDECARS:
            continue
        # Nothing is unpacked here, but someone who reads a report may unpack a member by its name.
        if posixpath.isabs(member.name) or ".." in member.name.split("/"):
            raise ValueError(f"{member.name!r} points outside the archive: pack it again with relative names")
        if (key, ending) in seen:
            raise ValueError(f"{member.name!r} is in the archive twice: pack it again")
        seen.add((key, ending))
        if ending in options.media:
            if key in media:
                raise ValueError(
                    f"{media[key].name!r} and {member.name!r} are media of the same example: choose one with "
                    f"data.media={ending}"
                )
            media[key] = member
        elif ending == "json":
            values = _json(read, member)
            for key_of, target in ((options.label_key, labels["json"]), (options.text_key, texts["json"])):
                if (value := values.get(key_of)) is not None:
                    if isinstance(value, bool) or not isinstance(value, str | int):
                        raise ValueError(f"{member.name!r}: {key_of} must be text or an integer, got {value!r}")
                    target[key] = str(value).strip()
        else:
            (labels if ending == "cls" else texts)[ending][key] = _content(read, member)
    classes = labels["json"] | labels["cls"]
    if empty := next((key for key, label in classes.items() if not label), None):
        raise ValueError(f"the class of {empty!r} is empty: fill in the class or remove it")
    return media, classes, texts["json"] | texts["txt"]


def _content(read: Read, member: Member) -> str:
    if member.size > LARGEST_SIDECAR:
        raise ValueError(
            f"{member.name!r} has {member.size} bytes, but a class or caption has at most {LARGEST_SIDECAR}"
        )
    try:
        return read(member.start, member.start + member.size).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{member.name!r} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def _json(read: Read, member: Member) -> dict[str, Any]:
    text = _content(read, member)
    try:
        values = parse_json(text, finite=False)  # NaN in other keys is harmless
    except ValueError as error:
        raise ValueError(f"{member.name!r} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{member.name!r} must be one JSON object, got {text[:40]!r}")
    return values
