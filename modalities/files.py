"""A folder of media files as a dataset."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from torch import Tensor

from modalities import captions as texts
from modalities import labels as sources
from modalities.base import Modality, Split
from modalities.byte_ranges import Source, local
from modalities.captions import SIDECARS, Captions, CaptionSource, MissingCaptions
from modalities.endings import ending_of, listed
from modalities.file_walk import find_files
from modalities.labels import LabelSource, SplitSource
from modalities.manifest import TABLES, Entry, check_listed, numbers_of, read_manifest, read_tables
from modalities.pairs import check_sizes, matching, read_condition
from modalities.reading import FileReport, MediaFiles

log = logging.getLogger("multisagd")
AUTO = "auto"


class Folder(MediaFiles):
    """The media files under `root`, at any depth, sorted by path, with their classes, captions, splits and groups.

    Hidden and system files (@eaDir, __MACOSX, Thumbs.db) are ignored; files without one of the modality's suffixes are
    passed over, and a warning counts them.
    Files are listed on construction and read on demand, by `threads` threads per batch. An unreadable file is
    reported and replaced by another file of this dataset, chosen by index and seed. Classes are sorted by name, with
    numbers in names compared by value (9 before 10).

    Args:
        modality: reads the files.
        root: the folder.
        labels: where classes come from. "folder": the folder on the path of a file, at the first level where the
            folders of the used files differ (root/train/cat/a.png has class cat if all files lie in train). "parent":
            the folder that contains the file, at any depth. "name": the part of the file's name that `pattern` selects.
            "manifest": the column `label`. "none": no classes. "auto": the manifest, if it has that column, or else
            "folder", if all files lie in two or more folders.
        pattern: for labels="name", a regular expression searched for in the file's name; its group `label`, or else
            its first group, is the class: `^(?P<label>[a-z]+)_`.
        manifest: a .csv or .jsonl file (its path is absolute or relative to `root`) in the format that
            `modalities.manifest` describes; only the files that it lists are used. "auto": every metadata.csv and
            metadata.jsonl under the root, if there are any, with paths relative to its own folder. None: no manifest.
            The attribute `listed_groups` is its column `group`, or None.
        match: a regular expression; only files whose path under the root contains a match are used, for example to
            select one part of a dataset.
        captions: where captions come from. "auto": the manifest, if it has a column `text`. "sidecar": photo.txt,
            photo.caption or photo.json next to photo.jpg. "labels": the names of the classes, with spaces for
            underscores. "none": no captions.
        missing_captions: what happens to files without a caption, if others have one. "error": an error. "empty": they
            have an empty caption. "skip": they are not used, nor are those with an empty caption.
        splits: where splits come from. "auto": the column `split` of the manifest, if there is one. "folders": the
            folders train, validation and test directly below the root; classes come from the folders below these. The
            attribute `splits` is the split of each file, or None.
        max_unreadable: maximum fraction of unreadable files.
        threads: number of threads that read a batch.
        condition_root: a folder with the condition of every example, a file of the same path under it up to the ending
            (see `modalities.pairs`). None: no conditions.
        condition_modality: reads the conditions. None: the same modality, which crops and mirrors both files alike.
            With another one, both files are read from their middle, without augmentation.

    Raises:
        FileNotFoundError: If `root` is not a folder, if it contains no file that the modality reads and `match`
            selects, or if a listed file or a condition is missing.
        ValueError: If settings are incompatible, a regular expression, a caption or the manifest is invalid, or a file
            has no class, caption or split although they are required.
    """

    def __init__(
        self,
        modality: Modality,
        root: str | Path,
        labels: LabelSource = "auto",
        pattern: str | None = None,
        manifest: str | Path | None = AUTO,
        match: str | None = None,
        captions: CaptionSource = "auto",
        missing_captions: MissingCaptions = "error",
        splits: SplitSource = "auto",
        max_unreadable: float = 0.05,
        threads: int = 4,
        condition_root: str | Path | None = None,
        condition_modality: Modality | None = None,
    ) -> None:
        for key, value, choices in (
            ("labels", labels, LabelSource), ("captions", captions, CaptionSource),
            ("missing_captions", missing_captions, MissingCaptions), ("splits", splits, SplitSource),
        ):  # fmt: skip
            if value not in get_args(choices):
                raise ValueError(f"{key} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if pattern is not None and labels != "name":
            raise ValueError(f"pattern={pattern!r} applies only to labels=name, but labels is {labels}")
        self.modality = modality
        self.root = Path(root)
        self.threads = threads
        fits = (lambda _: True) if match is None else sources.compiled("match", match).search
        if manifest is None or manifest == AUTO:
            files, entries = _found(self.root, modality.suffixes, captions, tables=manifest == AUTO)
        else:
            entries = read_manifest(self.root / manifest)
            files = [entry.file for entry in entries]
        self.files = [file for file in files if fits(file)]
        entries = [entry for entry in entries if fits(entry.file)]
        check_listed(self.root, entries, modality.suffixes)
        if not self.files:
            raise FileNotFoundError(f"match={match!r} selects no file under {self.root.absolute()}")
        self.splits: list[Split] | None
        self.splits, depth = sources.splits_of(splits, self.root, self.files, entries)
        names = sources.class_names(labels, self.root, self.files, entries, pattern, depth)
        self.listed_groups = [entry.group for entry in entries if entry.group is not None] or None
        self._numbers = self._own_numbers(entries)
        self.classes: tuple[str, ...] | None = None
        self.labels: Sequence[int | None] = [None] * len(self.files)
        self.texts = self._texts(captions, entries, names)
        if self.texts is not None:
            listed_in = entries if captions == AUTO else ()
            stated, filled = np.array([(bool(each), any(each)) for each in self.texts]).T
            used = texts.usable(stated, filled, missing_captions, partial(self._without_caption, listed_in)).tolist()
            self._keep(used)
            names = None if names is None else [names[index] for index in used]
        if names is not None:
            self.classes, self.labels = sources.number(names)
        self.report = FileReport(len(self.files), max_unreadable)
        self.condition_root = None if condition_root is None else Path(condition_root)
        self._modality_of_conditions = condition_modality
        self._conditions = self._paired()

    def _paired(self) -> dict[str, str] | None:
        """Return the file of the condition of each file, or None if there are no conditions.

        Raises ValueError or FileNotFoundError if the conditions do not fit the examples.
        """
        if self.condition_root is None or self.condition_modality is None:
            if self._modality_of_conditions is not None:
                raise ValueError("condition_modality is set, but there are no conditions: set condition_root")
            return None
        # Before a condition is read: its size may have been stated by someone else.
        check_sizes(self.modality, self.condition_modality)
        suffixes = self.condition_modality.suffixes
        partners = matching(self.root, self.files, self.modality.suffixes, self.condition_root, suffixes)
        return dict(zip(self.files, partners, strict=True))

    def _own_numbers(self, entries: Sequence[Entry]) -> dict[str, list[float]]:
        """Return the columns of numbers in the manifest, without those that have the name of a modality's scalar."""
        numbers = numbers_of(entries)
        if own := [name for name in self.modality.scalars if numbers.pop(name, None) is not None]:
            log.warning(
                "the columns %s of the manifest are not scalars, because these names mean what is measured when a "
                "file is read: rename the columns to use them", ", ".join(own),
            )  # fmt: skip
        return numbers

    def _texts(
        self, source: CaptionSource, entries: Sequence[Entry], names: Sequence[str] | None
    ) -> list[Captions] | None:
        """Return the captions of each file, none for a file without, or None if no file has captions."""
        if source == "sidecar":
            return texts.sidecars(self.root, self.files, self.modality.suffixes)
        if source == "labels":
            return texts.of_classes(names)
        if source == "auto" and any(entry.captions for entry in entries):
            return [entry.captions or () for entry in entries]
        return None

    def _without_caption(self, entries: Sequence[Entry], index: int) -> str:
        if entries:
            return f"{entries[index].place}: text is missing here, but other lines have one: add it"
        path = self.root / self.files[index]
        stem = path.name.removesuffix(ending_of(path.name, self.modality.suffixes))
        return (
            f"{path} has no caption: write it to {stem}.txt next to it (an empty file means no caption), or to "
            f"{stem}.json under the key {' or '.join(texts.KEYS)}, exclude the file with match"
        )

    def _keep(self, indices: Sequence[int]) -> None:
        """Reduce the dataset to these files."""
        self.files = [self.files[index] for index in indices]
        self.labels = [self.labels[index] for index in indices]
        self.texts = None if self.texts is None else [self.texts[index] for index in indices]
        self.splits = None if self.splits is None else [self.splits[index] for index in indices]
        groups = self.listed_groups
        self.listed_groups = None if groups is None else [groups[index] for index in indices]
        self._numbers = {name: [values[index] for index in indices] for name, values in self._numbers.items()}

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of one file under the root."""
        return self.files[index]

    def load(self, index: int, seed: int | None) -> Any:
        """Return the media of one file, as read by the modality."""
        return self.modality.load(self.root / self.files[index], self._seed(seed))

    def condition(self, index: int, seed: int | None, scalars: Mapping[str, float]) -> Tensor | None:
        """Return the condition of one file, (channels, *grid) in the units of its modality, or None."""
        modality = self.condition_modality
        if self._conditions is None or self.condition_root is None or modality is None:
            return None
        compared = scalars if self._modality_of_conditions is None else None
        path = self.condition_root / self._conditions[self.files[index]]
        return read_condition(path, modality, self._seed(seed), compared)

    @property
    def condition_modality(self) -> Modality | None:
        """The modality that reads the conditions, or None if there are none."""
        return None if self.condition_root is None else self._modality_of_conditions or self.modality

    def _seed(self, seed: int | None) -> int | None:
        """Return the seed of crops, which mean another place in the files of another modality."""
        return seed if self._modality_of_conditions is None else None

    def label(self, index: int) -> int | None:
        """Return the class of one file."""
        return self.labels[index]

    @property
    def scalars(self) -> Mapping[str, str]:
        """The scalars of the modality, each with its unit, and the columns of numbers in the manifest, without one."""
        return {**self.modality.scalars, **dict.fromkeys(self._numbers, "")}

    def numbers(self, index: int) -> Mapping[str, float]:
        """Return the numbers that the manifest states about one file."""
        return {name: values[index] for name, values in self._numbers.items()}

    def has_changed(self, name: str, since: float) -> bool:
        """Whether a file, or the one of its condition, was changed or replaced after a time, or removed."""
        paths = [self.root / name]
        if self.condition_root is not None and self._conditions is not None and name in self._conditions:
            paths.append(self.condition_root / self._conditions[name])
        return any(not path.is_file() or path.stat().st_ctime > since for path in paths)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these files only.

        It shares the report of unreadable files, so that the limit applies to the whole dataset.
        """
        part = copy.copy(self)
        part._keep(indices)
        return part

    def captions(self, index: int) -> Captions:
        """Return all captions of one file, without reading the file."""
        return () if self.texts is None else self.texts[index] or ("",)

    def stored(self) -> Iterable[Source]:
        """Return the media files, and those of their conditions."""
        yield from (local(self.root / name) for name in self.files)
        if self.condition_root is not None and self._conditions is not None:
            yield from (local(self.condition_root / self._conditions[name]) for name in self.files)

    @property
    def fingerprint(self) -> str:
        """A hash of the files' paths under the root, and of their classes, captions, splits, groups and conditions."""
        facts: list[Any] = [self.files, self.labels, *([] if self.texts is None else [self.texts])]
        if (self.splits or self.listed_groups) is not None:
            facts.append({"splits": self.splits, "groups": self.listed_groups})
        if self._numbers:
            facts.append(self._numbers)
        if self._conditions is not None:
            facts.append({"conditions": [self._conditions[name] for name in self.files]})
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _found(
    root: Path, suffixes: tuple[str, ...], captions: CaptionSource, tables: bool
) -> tuple[list[str], list[Entry]]:
    """Return the media to use under a root and, if `tables` are searched for and found, their entries."""
    found = find_files(root, suffixes, TABLES if tables else ())
    if found.tables:
        ignore = "manifest=null reads the folder without it"
        try:
            entries = read_tables(root, found.tables)
        except ValueError as error:
            raise ValueError(f"{error}. Mend this table; {ignore}") from error
        names, files = ", ".join(found.tables[:3]), [entry.file for entry in entries]
        log.warning(
            "%s under %s: %d of %d files are listed and used (%s)",
            f"{names}, …" if len(found.tables) > 3 else names, root, len(files), len({*found.media, *files}), ignore,
        )  # fmt: skip
        return files, entries
    if captions == "sidecar":
        for ending in SIDECARS:
            del found.others[ending]
    if found.others:
        log.warning(
            "%d of %d files under %s are passed over, because they do not end in %s: %s",
            found.others.total(), found.others.total() + len(found.media), root, ", ".join(suffixes),
            listed(found.others),
        )  # fmt: skip
    return found.media, []
