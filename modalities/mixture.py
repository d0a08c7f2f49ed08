"""A dataset that mixes several sources, such as folders and tar shards, in given proportions."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from modalities.base import Batch, Dataset, Example, Groups, Modality, Split, collate, pair
from modalities.byte_ranges import Source
from modalities.captions import Captions
from modalities.labels import number
from modalities.reading import MediaFiles, save_report
from modalities.sizes import Extent
from multisagd.addresses import without_secrets

log = logging.getLogger("multisagd")
LARGEST_SHARE = 1e12
"""Maximum weight, and maximum number of repeats: sources with a much smaller share would never be seen."""


class Mixture(Dataset):
    """The examples of several sources, source by source; their classes are matched by name.

    Every source needs classes, or none; the same applies to captions and to splits. Sources are named in the paths of
    files, as in `photos/cat/1.jpg`.

    Args:
        modality: the modality of all sources.
        sources: the datasets by their names, which consist of letters, digits, - and _.
        weights: the share of each source in the samples that training sees, up to a common factor; the length of a
            source is then irrelevant.
        repeats: how often each example of a source counts, 1 for sources that are not named. An example counts in this
            way in training only: no example is both trained on and held out, however often it counts.

    Raises:
        ValueError: If there are no sources, a name, a weight or a number of repeats is invalid, sources have different
            shapes, or only some have classes, captions or splits.
    """

    def __init__(
        self,
        modality: Modality,
        sources: Mapping[str, Dataset],
        weights: Mapping[str, float] | None = None,
        repeats: Mapping[str, int] | None = None,
    ) -> None:
        self.modality = modality
        self.names, self.sources = list(sources), list(sources.values())
        self._check_sources()
        self._shares = self._checked_shares(weights, repeats)
        self._repeated = repeats is not None
        self._source: NDArray[np.int32] = np.repeat(
            np.arange(len(self.sources), dtype=np.int32), [len(each) for each in self.sources]
        )
        self._rows: NDArray[np.int64] = np.concatenate([np.arange(len(each), dtype=np.int64) for each in self.sources])
        self.classes: tuple[str, ...] | None = None
        self._labels: list[list[int]] = []
        if self._agree("classes", lambda each: each.classes is not None, "labels=none"):
            self.classes, _ = number([name for each in self.sources for name in each.classes or ()])
            numbers = {name: label for label, name in enumerate(self.classes)}
            self._labels = [[numbers[name] for name in each.classes or ()] for each in self.sources]
        self._agree("captions", lambda each: bool(each.captions(0)), "captions=none")
        self.splits: list[Split] | None = None
        if self._agree("splits", lambda each: each.splits is not None, "splits=auto, without a column split,"):
            self.splits = [split for each in self.sources for split in each.splits or ()]
        conditioned = self._agree("conditions", lambda each: each.condition_modality is not None, "condition_root=null")
        shapes = {each.condition_modality.tensor_shape for each in self.sources if each.condition_modality is not None}
        if conditioned and len(shapes) > 1:
            raise ValueError(f"the conditions of the sources have the shapes {sorted(shapes)}: use one for all sources")
        self._warn_of_shared_files()

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example.

        Raises:
            IndexError: If the index is outside `[0, len(self))`.
        """
        source, row = self._find(index)
        example = self.sources[source].example(row, seed)
        return example._replace(label=self._number(source, example.label))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch (see `Dataset.batch`); each source reads its examples together."""
        places = [self._find(index) for index, _ in pair(indices, seeds)]
        examples: dict[int, Example] = {}
        for source in sorted({each[0] for each in places}):
            slots = [slot for slot, each in enumerate(places) if each[0] == source]
            rows = [places[slot][1] for slot in slots]
            part = self.sources[source].batch(rows, None if seeds is None else [seeds[slot] for slot in slots])
            for n, slot in enumerate(slots):
                label = None if part.labels is None else int(part.labels[n])
                mask, text = None if part.mask is None else part.mask[n], None if part.texts is None else part.texts[n]
                scalars = {name: float(values[n]) for name, values in (part.scalars or {}).items()}
                condition = None if part.dense is None else part.dense[n]
                number = self._number(source, label)
                examples[slot] = Example(part.x0[n], number, mask, text, scalars or None, condition)
        return collate([examples[slot] for slot in range(len(places))])

    def label(self, index: int) -> int | None:
        """Return the class of one example."""
        source, row = self._find(index)
        return self._number(source, self.sources[source].label(row))

    def captions(self, index: int) -> Captions:
        """Return all captions of one example."""
        source, row = self._find(index)
        return self.sources[source].captions(row)

    def path(self, index: int) -> str:
        """Return the path of one file, after the name of its source. Raises ValueError if a source has no files."""
        source, row = self._find(index)
        files = self.sources[source]
        if not isinstance(files, MediaFiles):
            raise ValueError(f"the source {self.names[source]} has no files")
        return f"{self.names[source]}/{files.path(row)}"

    @property
    def scalars(self) -> Mapping[str, str]:
        """The names of the scalars of any source, each with its unit; they are unknown for the others."""
        return {name: unit for each in self.sources for name, unit in each.scalars.items()}

    @property
    def condition_modality(self) -> Modality | None:
        """The modality of the conditions of all sources, or None if they have none."""
        return self.sources[0].condition_modality

    @property
    def listed_groups(self) -> list[str] | None:
        """The group of each example in the manifests; None unless all sources are folders with a column `group`."""
        listed = [each.listed_groups if isinstance(each, MediaFiles) else None for each in self.sources]
        if None in listed:
            return None
        return [(listed[source] or [])[row] for source, row in zip(self._source, self._rows, strict=True)]

    def with_modality(self, modality: Modality) -> Self:
        """Return this dataset with another modality of the same medium, also in all sources."""
        part = super().with_modality(modality)
        part.sources = [each.with_modality(modality) for each in self.sources]
        return part

    def extent(self, index: int) -> Extent:
        """Return the size of the file of one example, as its header states it."""
        source, row = self._find(index)
        return self.sources[source].extent(row)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only; they share the reports of unreadable files."""
        part, chosen = copy.copy(self), np.asarray(indices, np.int64)
        part._source, part._rows = self._source[chosen], self._rows[chosen]
        part.splits = None if self.splits is None else [self.splits[index] for index in indices]
        return part

    @property
    def groups(self) -> Groups | None:
        """The groups of the sources, if all sources have groups and are seen equally often."""
        if self._shares is not None:
            return None
        groups = [self.sources[source].subset(rows.tolist()).groups for source, rows in self._blocks()]
        if None in groups:
            return None
        known = [each for each in groups if each is not None]
        return Groups([length for each in known for length in each.lengths], min(each.window for each in known))

    @property
    def weights(self) -> Sequence[tuple[int, float]] | None:
        """The length of each block of examples from one source, and its share of the samples, up to a factor."""
        if self._shares is None:
            return None
        counts, blocks = Counter(self._source.tolist()), [(source, len(rows)) for source, rows in self._blocks()]
        if self._repeated:
            return [(length, self._shares[source] * length) for source, length in blocks]
        return [(length, self._shares[source] * length / counts[source]) for source, length in blocks]

    @property
    def fingerprint(self) -> str:
        """A hash of the fingerprints of the sources, the examples in use and their classes."""
        facts = [self.names, [each.fingerprint for each in self.sources], self.classes]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self._source.tobytes() + self._rows.tobytes())
        return digest.hexdigest()

    def stored(self) -> Iterable[Source]:
        """Return the files of all sources."""
        return itertools.chain.from_iterable(each.stored() for each in self.sources)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """A mapping from the source and name of each file that could not be read so far to the reason."""
        named = zip(self.names, self.sources, strict=True)
        return {f"{name}/{file}": reason for name, each in named for file, reason in each.unreadable.items()}

    @property
    def remarks(self) -> Mapping[str, int]:
        """Remarks about the files read so far, each with the number of files in all sources."""
        return sum((Counter(each.remarks) for each in self.sources), Counter[str]())

    def recall_unreadable(self, reasons: Mapping[str, str], since: float) -> None:
        """Add files that could not be read in another process, except those that have changed `since` (a time)."""
        for name, each in zip(self.names, self.sources, strict=True):
            start = f"{name}/"
            own = {file.removeprefix(start): reason for file, reason in reasons.items() if file.startswith(start)}
            each.recall_unreadable(own, since)

    def save_unreadable(self, path: Path) -> None:
        """Write the report of all sources if any file could not be read so far."""
        if reasons := self.unreadable:
            reports = [each.report for each in self.sources if isinstance(each, MediaFiles)]
            save_report(path, sum(each.total for each in reports), sum(each.allowed for each in reports), reasons)

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of an example's source, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for a mixture of {len(self)} examples")
        return int(self._source[index]), int(self._rows[index])

    def _number(self, source: int, label: int | None) -> int | None:
        return None if label is None or self.classes is None else self._labels[source][label]

    def _blocks(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the blocks of consecutive examples from one source: its number, and their indices there."""
        ends = np.flatnonzero(np.diff(self._source)) + 1
        starts = [0, *ends.tolist()]
        return [
            (int(self._source[first]), rows) for first, rows in zip(starts, np.split(self._rows, ends), strict=True)
        ]

    def _check_sources(self) -> None:
        if not self.sources:
            raise ValueError("a mixture needs sources: add data.sources.NAME={data:folder,root:FOLDER} for each")
        for name, each in zip(self.names, self.sources, strict=True):
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"the name of a source consists of letters, digits, - and _, got {name!r}")
            if isinstance(each, Mixture):
                raise ValueError(f"the source {name} is a mixture: add its sources to this one instead")
            if each.modality.tensor_shape != self.modality.tensor_shape:
                raise ValueError(
                    f"the source {name} has examples of shape {each.modality.tensor_shape}, but the modality produces "
                    f"{self.modality.tensor_shape}: use sources with one shape"
                )

    def _warn_of_shared_files(self) -> None:
        """Log a warning for files that are in two sources: one copy may be held out while training uses the other."""
        folder = lru_cache(maxsize=None)(os.path.realpath)
        owners: dict[str, str] = {}
        shared: dict[tuple[str, str], list[str]] = {}
        for name, each in zip(self.names, self.sources, strict=True):
            for source in each.stored() if isinstance(each, MediaFiles) else ():
                parent, base = os.path.split(source.path)
                path = f"{folder(parent)}/{base}" if source.local else source.url
                if (owner := owners.setdefault(path, name)) != name:
                    shared.setdefault((owner, name), []).append(path)
        for (one, other), paths in shared.items():
            log.warning(
                "%d files are in both sources %s and %s, such as %s: examples of validation may also be trained on. "
                "Remove them from one source; data.repeats shows a source more often",
                len(paths), one, other, without_secrets(paths[0]),
            )  # fmt: skip

    def _checked_shares(
        self, weights: Mapping[str, float] | None, repeats: Mapping[str, int] | None
    ) -> list[float] | None:
        """Return the share of each source, or with repeats of each of its examples, or None if all are equal."""
        if weights is not None and repeats is not None:
            raise ValueError("weights and repeats contradict each other: remove one")
        key, given = ("weights", weights) if weights is not None else ("repeats", repeats)
        if given is None:
            return None
        known = ", ".join(self.names)
        for name, share in given.items():
            if name not in self.names:
                raise ValueError(f"{key} names {name!r}, but the sources are {known}")
            if not 0 < share <= LARGEST_SHARE or (key == "repeats" and share != int(share)):
                kind = "a number above 0" if key == "weights" else "a whole number, at least 1"
                raise ValueError(
                    f"{key}.{name} must be {kind}, and at most {LARGEST_SHARE:g}, got {share}: remove a source that is "
                    "not used"
                )
        if weights is not None and (missing := next((name for name in self.names if name not in weights), None)):
            raise ValueError(f"weights has no value for {missing}: give each of the sources {known} a weight")
        return [float(given.get(name, 1)) for name in self.names]

    def _agree(self, what: str, has: Callable[[Dataset], bool], remedy: str) -> bool:
        """Return whether the sources have classes, captions or splits. Raises ValueError if only some have them."""
        having = {name: has(each) for name, each in zip(self.names, self.sources, strict=True)}
        if len(set(having.values())) > 1:
            one, other = (next(name for name, held in having.items() if held is each) for each in (True, False))
            raise ValueError(
                f"the source {one} has {what}, but {other} has none: add them there, or use none (for a folder, "
                f"data.sources.{one}.{remedy})"
            )
        return all(having.values())
