"""The index of a tar shard: the position of each example's media, its class and its captions, for random access.

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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from modalities.byte_ranges import any_hidden
from modalities.captions import LARGEST_SIDECAR, NOT_UNICODE, Captions, as_captions, is_unicode
from modalities.endings import other_ending
from modalities.tar_members import BLOCK, Member, Read, ReadAheadBuffer, members
from multisagd.files import parse_json

FORMAT_VERSION = 4
SIDECARS = ("cls", "txt", "caption", "json")
FACTS = 5
"""Number of fields of an index that are stored as JSON; the others are arrays."""


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
    is an index into `classes`, or -1 if there is no class; `texts` are the captions of all examples, one after the
    other, and `captions` is the number of captions up to and including those of each example; `names` are the names of
    the media. `length` (in bytes) and `state` identify the shard. `faults` contains the first
    reason, if any, why not all "labels" or "captions" could be read; `others` counts files that are part of no example
    by their endings.
    """

    length: int
    state: str
    classes: tuple[str, ...]
    faults: dict[str, str]
    others: Counter[str]
    header: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    label: NDArray[np.int32]
    captions: NDArray[np.int64]
    names: Texts
    texts: Texts

    def __len__(self) -> int:
        return len(self.header)

    @classmethod
    def build(cls, read: Read, size: int, state: str, options: ScanOptions, block: int) -> Self:
        """Build the index of a shard, reading `block` bytes at a time.

        Raises:
            ValueError: If the shard is damaged or ambiguous; the message names the member or position.
        """
        scan = _Scan(ReadAheadBuffer(read, size, block), options)
        for member in members(scan.read, size):
            scan.add(member)
        media, labels, texts = scan.media, scan.classes(), scan.captions()
        keys = list(media)
        classes = tuple(dict.fromkeys(labels[key] for key in keys if key in labels))
        numbers = {name: number for number, name in enumerate(classes)}
        chosen = [media[key] for key in keys]
        return cls(
            size,
            state,
            classes,
            scan.faults,
            scan.others,
            np.array([each.header for each in chosen], np.int64),
            np.array([each.size for each in chosen], np.int64),
            np.array([each.crc for each in chosen], np.uint32),
            np.array([numbers.get(labels.get(key, ""), -1) if key in labels else -1 for key in keys], np.int32),
            np.cumsum([len(texts.get(key, ())) for key in keys], dtype=np.int64),
            Texts.of([each.name for each in chosen]),
            Texts.of([text for key in keys for text in texts.get(key, ())]),
        )

    def captions_of(self, row: int) -> Captions:
        """Return the captions of one example."""
        first = int(self.captions[row - 1]) if row else 0
        return tuple(self.texts[index] for index in range(first, int(self.captions[row])))

    @property
    def captioned(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each example has captions, and whether one of them is not empty; two arrays of shape (examples,)."""
        counts = np.diff(self.captions, prepend=0)
        filled = np.cumsum(np.diff(self.texts.ends, prepend=0) > 0)
        before = np.concatenate([[0], filled])
        return counts > 0, before[self.captions] > before[self.captions - counts]

    def pack(self) -> bytes:
        """Return the content of an index file."""
        facts = json.dumps({each.name: getattr(self, each.name) for each in fields(self)[:FACTS]})
        arrays: dict[str, NDArray[Any]] = {"facts": np.frombuffer(facts.encode(), np.uint8)}
        for each in fields(self)[FACTS:]:
            value = getattr(self, each.name)
            if isinstance(value, Texts):
                arrays |= {f"{each.name}.data": value.data, f"{each.name}.ends": value.ends}
            else:
                arrays[each.name] = value
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
            parts: list[Any] = [arrays[name] for name in ("header", "size", "crc", "label", "captions")]
            parts += [Texts(arrays[f"{name}.data"], arrays[f"{name}.ends"]) for name in ("names", "texts")]
            faults = {str(kind): str(reason) for kind, reason in dict(facts["faults"]).items()}
            others = Counter({str(ending): int(count) for ending, count in dict(facts["others"]).items()})
            classes = tuple(map(str, facts["classes"]))
            index = cls(int(facts["length"]), str(facts["state"]), classes, faults, others, *parts)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"it is not an index: {error}") from error
        index._check()
        return index

    @property
    def digest(self) -> str:
        """A hash of the examples: their names, sizes, classes and captions."""
        hashed = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        arrays: tuple[NDArray[Any], ...] = (self.size, self.label, self.captions)
        for array in (*arrays, *(part for packed in (self.names, self.texts) for part in (packed.ends, packed.data))):
            hashed.update(array.tobytes())
        return hashed.hexdigest()

    def _check(self) -> None:
        count = len(self)
        kinds = {"header": np.int64, "size": np.int64, "crc": np.uint32, "label": np.int32, "captions": np.int64}
        valid = all(getattr(self, name).shape == (count,) for name in kinds)
        valid = valid and all(getattr(self, name).dtype == kind for name, kind in kinds.items())
        if valid and count:
            valid = self.header.min() >= 0 and self.size.min() >= 0 and self.header.max() < self.length < 1 << 62
            valid = valid and bool((self.size <= self.length - BLOCK - self.header).all())
            valid = valid and -1 <= self.label.min() <= self.label.max() < len(self.classes)
        total = 0
        if valid and count:
            total = int(self.captions[-1])
            # Differences of huge numbers wrap around, so the numbers are checked, too.
            valid = bool((np.diff(self.captions, prepend=0) >= 0).all()) and self.captions.min() >= 0
            valid = valid and self.captions.max() <= total
        for packed, number in ((self.names, count), (self.texts, total)):
            ends = packed.ends
            valid = valid and ends.shape == (number,) and ends.dtype == np.int64 and packed.data.dtype == np.uint8
            valid = valid and bool((np.diff(ends, prepend=0) >= 0).all())
            valid = valid and (ends[-1] if number else 0) == len(packed.data)
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


@dataclass
class _Scan:
    """What a pass over the members of a shard has found: the media and texts of each example.

    They are keyed by the name that the files of an example share, and texts by their ending, too.
    """

    read: Read
    options: ScanOptions
    media: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=lambda: {"cls": {}, "json": {}})
    texts: dict[str, dict[str, Captions]] = field(default_factory=lambda: {"txt": {}, "caption": {}, "json": {}})
    faults: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def add(self, member: Member) -> None:
        """Add a member, unless it is hidden or no file.

        Raises:
            ValueError: If it is outside the archive or in it twice, or its example has other media.
        """
        folder, base = posixpath.split(member.name)
        stem, _, ending = base.partition(".")
        key, ending = posixpath.join(folder, stem), ending.lower()
        # Hidden files, system files and WebDataset's own files are not examples; links and devices are never
        # followed.
        if member.kind != "file" or not stem or base.startswith("__") or any_hidden(member.name):
            return
        if ending not in self.options.media and ending not in SIDECARS:
            self.others[f"{'.*' if '.' in ending else ''}{other_ending(base)}"] += 1
            return
        # Nothing is unpacked here, but someone who reads a report may unpack a member by its name.
        if posixpath.isabs(member.name) or ".." in member.name.split("/"):
            raise ValueError(f"{member.name!r} points outside the archive: pack it again with relative names")
        if (key, ending) in self.seen:
            raise ValueError(f"{member.name!r} is in the archive twice: pack it again")
        self.seen.add((key, ending))
        if ending not in self.options.media:
            self._add_texts(key, ending, member)
        elif key in self.media:
            raise ValueError(
                f"{self.media[key].name!r} and {member.name!r} are media of the same example: choose one with "
                f"data.media={ending}"
            )
        else:
            self.media[key] = member

    def _add_texts(self, key: str, ending: str, member: Member) -> None:
        """Add the class or captions in a member; if they cannot be read, note why: they may not be needed."""
        label_key, text_key = self.options.label_key, self.options.text_key
        labels, texts = self.labels.get(ending), self.texts.get(ending)
        try:
            content = _content(self.read, member)
            values = _json(content, member) if ending == "json" else dict.fromkeys((label_key, text_key), content)
        except ValueError as error:
            targets = {"labels": labels, "captions": texts}
            self.faults = {what: str(error) for what, each in targets.items() if each is not None} | self.faults
            return
        if labels is not None:
            self._add_class(labels, key, values.get(label_key), f"{member.name!r}: {label_key}")
        if texts is not None:
            try:
                texts[key] = as_captions(values.get(text_key))
            except ValueError as error:
                self.faults.setdefault("captions", f"{member.name!r}: {text_key} {error}")

    def _add_class(self, labels: dict[str, str], key: str, value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            self.faults.setdefault("labels", f"{place} must be text or an integer, got {value!r:.100}")
        elif not is_unicode(str(value)):
            self.faults.setdefault("labels", f"{place}: {NOT_UNICODE}, got {value!r:.100}")
        elif value is not None and not str(value).strip():
            self.faults.setdefault("labels", f"the class of {key!r} is empty: fill in the class or remove it")
        elif value is not None:
            labels[key] = str(value).strip()

    def captions(self) -> dict[str, Captions]:
        """Return the captions of each example that has any, from one file: .txt before .caption before .json."""
        return {key: each for texts in reversed(self.texts.values()) for key, each in texts.items() if each}

    def classes(self) -> dict[str, str]:
        """Return the class of each example that has one."""
        return self.labels["json"] | self.labels["cls"]


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


def _json(text: str, member: Member) -> dict[str, Any]:
    """Return the values of a JSON object by their keys; other JSON has none.

    Raises:
        ValueError: If the text is not JSON.
    """
    try:
        values = parse_json(text, finite=False)  # NaN in other keys is harmless
    except ValueError as error:
        raise ValueError(f"{member.name!r} is not valid JSON: {error}") from error
    return values if isinstance(values, dict) else {}
