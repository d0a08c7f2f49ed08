"""The sizes of the files of a run, read from their headers once, and stored in the run's folder.

A continued run takes them from there, so that it sorts the same files into the same buckets without reading their
headers again, and so do the commands that read the data of a run.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from modalities.base import Dataset, Modality
from modalities.buckets import bucketed, reference_bucket, scan, with_extents
from modalities.reading import UnreadableFilesError
from modalities.sizes import Extent
from modalities.wrapped import WithExtents, Wrapped
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import replace_file
from recipes.base.progress import SOON, Display
from recipes.base.untrusted import Stored, read_header, read_tensors
from recipes.runtime.distribution import broadcast_from_rank0, is_first, long_barrier

FILES = ("extents.safetensors", "extents_validation.safetensors")
"""Names of the records in a run's folder: of its data, and of those in `validation.root`."""
DIGEST = 32
PARTS = len(Extent._fields)
log = logging.getLogger("multisagd")


class Record(NamedTuple):
    """The record of a dataset's sizes at `path`, if there is one; if `shared`, the first rank reads for all others."""

    path: Path | None = None
    shared: bool = False


UNRECORDED = Record()


def sorted_files(dataset: Dataset, record: Record) -> Dataset:
    """Return a dataset whose modality sorts its files by size, with the sizes of all files, without those it omits.

    The sizes are those in the `record`, if it exists and belongs to these files; else the headers are read. Any other
    dataset is returned as it is. If the record is shared, every rank must call this.

    Raises:
        RecipeError: If the examples are not files, the storage fails, or no file is left.
    """
    if not dataset.modality.sorts_files:
        return dataset
    extents = torch.full((len(dataset), PARTS), np.nan, dtype=torch.float64)
    if is_first() or not record.shared:
        extents.copy_(torch.from_numpy(_read(dataset, record.path)))
    if record.shared:
        long_barrier()
        broadcast_from_rank0(extents)
    with as_recipe_error(ValueError):
        result = with_extents(dataset, extents.numpy())
    if result.omitted and is_first():
        listed = ", ".join(f"{count:,} by modality.{name}" for name, count in sorted(result.omitted.items()))
        log.warning("%d of %d files are not used: %s", sum(result.omitted.values()), len(dataset), listed)
    return result


def omitted_counts(dataset: Dataset) -> dict[str, int]:
    """Return the number of files that each filter of the modality leaves out of a dataset, such as `min_size=64`."""
    known = _with_extents(dataset)
    return {} if known is None else dict(known.omitted)


def _with_extents(dataset: Dataset) -> WithExtents | None:
    """Return the dataset with sizes that a dataset wraps, or None."""
    while isinstance(dataset, Wrapped) and not isinstance(dataset, WithExtents):
        dataset = dataset.inner
    return dataset if isinstance(dataset, WithExtents) else None


def keep(path: Path, dataset: Dataset) -> None:
    """Write the sizes of a dataset's files, if they were read. If that is not possible, log a warning."""
    known = _with_extents(dataset)
    if known is None:
        return
    tensors: dict[str, NDArray[Any]] = {"extents": known.scanned, "fingerprint": _digest(known.whole)}
    try:
        replace_file(path, lambda target: safetensors.numpy.save_file(tensors, target))
    except OSError as error:
        log.warning("cannot write %s (%s): a continued run reads the headers of all files again", path, error)


def size_in_words(modality: Modality) -> str:
    """Return a modality's size as it is written in commands, such as `size=[48,80]` or `seconds=4`."""

    def text(value: Any) -> str:
        return f"[{','.join(map(text, value))}]" if isinstance(value, tuple) else f"{value:g}"

    return " ".join(f"{key}={text(getattr(modality, key))}" for key in modality.size_keys)


def bucket_counts(dataset: Dataset) -> dict[str, int]:
    """Return the number of examples of each bucket of a modality, by its size in words; the reference is first."""
    counts = {size_in_words(size): 0 for size in dataset.modality.in_buckets()}
    for part in bucketed(dataset):
        counts[size_in_words(part.modality)] = len(part)
    return counts


def buckets_in_words(dataset: Dataset) -> str:
    """Return a sentence about the sizes of the examples, and the size at which samples are drawn."""
    counts = bucket_counts(dataset)
    listed = ", ".join(f"{count:,} at {size}" for size, count in counts.items())
    return f"buckets: {listed}; samples are drawn at {next(iter(counts))} unless another size is requested"


def of_reference_size(dataset: Dataset) -> Dataset:
    """Return the examples of the bucket of the modality's own size, on its grid; without buckets all examples.

    Samples are compared with these: examples of other shapes would have to be cropped to this size.

    Raises:
        RecipeError: If there are none.
    """
    part = reference_bucket(dataset)
    if part is None:
        size = size_in_words(dataset.modality)
        raise RecipeError(
            f"samples are compared with examples of their own size, but none of {len(dataset):,} examples belongs to "
            f"the bucket {size}: set this key of modality to the size of another bucket, and train again"
        )
    return part


def _read(dataset: Dataset, path: Path | None) -> NDArray[np.float64]:
    """Return the sizes of all files, from the record if it belongs to them."""
    if path is not None and path.exists():
        try:
            return _load(path, dataset)
        except (OSError, ValueError) as error:
            log.warning("cannot use %s (%s): the headers of all files are read again", path, error)
    with Display("reading the sizes of the files", len(dataset), after=SOON) as display:
        try:
            return scan(dataset, display.update)
        except NotImplementedError as error:
            keys = "modality.buckets, modality.min_size and similar filters"
            raise RecipeError(f"{error}, which {keys} need: set them to null, or use a folder of files") from error
        except UnreadableFilesError as error:
            raise RecipeError(f"data: {error}") from error


def _load(path: Path, dataset: Dataset) -> NDArray[np.float64]:
    """Return the sizes in a record, which may come from someone else. Raises ValueError if it is not of these files."""
    expected = {"extents": Stored("F64", (len(dataset), PARTS)), "fingerprint": Stored("U8", (DIGEST,))}
    header = read_header(path)
    if header != expected:
        raise ValueError(f"it has unexpected tensors: {header}")
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    if (arrays["fingerprint"] != _digest(dataset.fingerprint)).any():
        raise ValueError("it belongs to other files")
    extents: NDArray[np.float64] = arrays["extents"]
    if not (np.isnan(extents) | ((extents > 0) & np.isfinite(extents))).all():
        raise ValueError("a size in it is not positive and finite")
    return extents


def _digest(fingerprint: str) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(fingerprint.encode("utf-8", "surrogateescape")).digest(), np.uint8)
