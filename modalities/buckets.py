"""Divide a dataset of files of several sizes into buckets, each of which is an ordinary dataset on one grid.

The size of every file is read from its header once, by `scan`. `with_extents` leaves out the files that the modality's
filters omit, and `bucketed` sorts the others into the bucket whose size suits them best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from modalities.base import Dataset
from modalities.reading import UnreadableFilesError
from modalities.sizes import Extent
from modalities.wrapped import WithExtents
from multisagd.libraries import failed_import

THREADS = 16
"""Number of threads that read headers: most of the time is spent waiting for storage."""
CHUNK = 4096
"""Number of files for which threads are scheduled at a time."""


def scan(dataset: Dataset, report: Callable[[int], None]) -> NDArray[np.float64]:
    """Return the sizes of all files of a dataset: height, width and seconds, float64 `(examples, 3)`.

    A part that a file does not have, or that cannot be read, is NaN: a file with a damaged header is reported when it
    is read. `report` is called with the number of files done.

    Raises:
        NotImplementedError: If the examples are not media files.
        UnreadableFilesError: If the storage fails.
        BrokenLibraryError: If a library cannot be imported.
    """
    extents = np.full((len(dataset), len(Extent._fields)), np.nan)

    def read(index: int) -> Extent:
        try:
            return dataset.extent(index)
        except (NotImplementedError, UnreadableFilesError):
            raise
        except Exception as error:  # decoders raise many kinds of errors
            if (failure := failed_import(error)) is not None:
                raise failure from error
            return Extent()

    with ThreadPoolExecutor(THREADS, thread_name_prefix="headers") as pool:
        for start in range(0, len(dataset), CHUNK):
            for index, extent in enumerate(pool.map(read, range(start, min(start + CHUNK, len(dataset)))), start):
                parts = np.array([np.nan if part is None else part for part in extent])
                extents[index] = np.where((parts > 0) & np.isfinite(parts), parts, np.nan)
                report(index + 1)
    return extents


def with_extents(dataset: Dataset, extents: NDArray[np.float64]) -> WithExtents:
    """Return a dataset whose sizes `scan` has read, without the files that its modality omits.

    Raises:
        ValueError: If no file would be left; the message names the filters.
    """
    whole = WithExtents(dataset, extents)
    reasons = [dataset.modality.omitted(whole.extent(index)) for index in range(len(dataset))]
    omitted = Counter(reason for reason in reasons if reason is not None)
    if not omitted:
        return whole
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    if not kept:
        listed = " and ".join(f"modality.{name} omits {count:,}" for name, count in omitted.items())
        raise ValueError(f"{listed} of {len(dataset):,} files, so that none is left: change it")
    part = whole.subset(kept)
    part.omitted = dict(omitted)
    return part


def members(dataset: Dataset) -> list[list[int]]:
    """Return the indices of the examples in each of the modality's buckets, in the order of `in_buckets`."""
    sizes = dataset.modality.in_buckets()
    if len(sizes) == 1:
        return [list(range(len(dataset)))]
    found: list[list[int]] = [[] for _ in sizes]
    for index in range(len(dataset)):
        found[dataset.modality.bucket_of(dataset.extent(index))].append(index)
    return found


def bucketed(dataset: Dataset) -> list[Dataset]:
    """Divide a dataset into one for each of the modality's buckets, in the order of `in_buckets`, without empty ones.

    A modality without buckets leaves it whole.
    """
    sizes = dataset.modality.in_buckets()
    if len(sizes) == 1:
        return [dataset]
    pairs = zip(sizes, members(dataset), strict=True)
    return [dataset.subset(indices).with_modality(size) for size, indices in pairs if indices]


def reference_bucket(dataset: Dataset) -> Dataset | None:
    """Return the examples that suit the modality's own size, on its grid; None if there are none.

    Without buckets these are all examples.
    """
    own = dataset.modality.in_buckets()[0]
    return next((part for part in bucketed(dataset) if part.modality == own), None)
