"""The sets of an evaluation: samples, a reference of real examples, and other real examples.

The result compares samples with the reference. The noise floor compares the other real examples with the reference;
they have the same counts and class proportions as the samples. If data are padded, each sample gets the padding of one
of the other real examples of its class, because a model does not learn to generate padding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset, Modality, stack_masks
from modalities.buckets import bucketed
from modalities.reading import UnreadableFilesError, read_batch
from multisagd.metrics import matched_counts, take
from multisagd.seeds import derive
from recipes.base.console import tell
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.progress import Display
from recipes.base.untrusted import read_tensors
from recipes.config.build import Builder
from recipes.data.dataset import build_dataset
from recipes.data.extents import FILES, UNRECORDED, Record, of_reference_size
from recipes.data.order import order_of
from recipes.data.parts import Parts, hold_out, separate
from recipes.data.weighted_order import WeightedOrder
from recipes.runs.model import check_folder, located, run_settings
from recipes.runs.run import CONFIG, Run, data_metadata
from recipes.runs.settings import Group
from recipes.runtime.distribution import is_first

BATCH = 256


@dataclass(frozen=True, eq=False)
class Sets:
    """Samples `(count, channels, *grid)` and real examples `(reference_count + count, …)`, rounded as in decoded files.

    Real examples are the reference followed by the others. Rows are sorted by class: `sizes` is the number per class
    among the samples and among the others, `references` the number per class in the reference. `mask`
    `(reference_count + count, 1 or channels, *grid)` is True for data and False for padding, and its last `count` rows
    also apply to the samples; it is None if nothing is padded. `labels` are the samples' labels, or None. `requested`
    is the number of samples in the file.
    """

    samples: Tensor
    real: Tensor
    sizes: tuple[int, ...]
    references: tuple[int, ...]
    mask: Tensor | None
    labels: Tensor | None
    requested: int

    @property
    def count(self) -> int:
        """Number of samples compared."""
        return len(self.samples)

    @property
    def reference_count(self) -> int:
        """Number of real examples in the reference."""
        return sum(self.references)

    def halves(self, number: int) -> tuple[Tensor, Tensor]:
        """Return division `number` of the real examples: the indices of its reference and of the others.

        Each is sorted by class. Division 0 is the one with which the samples are compared; the others are random.
        """
        reference, others = torch.arange(len(self.real)).split([self.reference_count, self.count])
        if number:
            generator = torch.Generator().manual_seed(derive(0, "evaluate/halves", number))
            for own, theirs in zip(reference.split(self.references), others.split(self.sizes), strict=True):
                indices = torch.cat([own, theirs])
                indices = indices[torch.randperm(len(indices), generator=generator)]
                own[:], theirs[:] = indices.split([len(own), len(theirs)])
        return reference, others

    def alike(self) -> tuple[tuple[int, ...], Tensor, Tensor]:
        """Return equal numbers of items per class, and the indices of these items in the samples and the reference."""
        sizes = tuple(map(min, self.sizes, self.references))
        own, theirs = (take(torch.arange(sum(each)).split(each), sizes) for each in (self.sizes, self.references))
        return sizes, own, theirs

    def batches(self, real: bool) -> list[tuple[Tensor, Tensor | None]]:
        """Return the real examples or the samples in batches, each with its mask, or None if nothing is padded."""
        data = self.real if real else self.samples
        masks = [None] * -(-len(data) // BATCH) if self.mask is None else self.mask[-len(data) :].split(BATCH)
        return list(zip(data.split(BATCH), masks, strict=True))

    def scattered(self, count: int, stream: str) -> Tensor:
        """Return the sorted indices of up to `count` samples, drawn at random from all samples."""
        generator = torch.Generator().manual_seed(derive(0, stream))
        return torch.randperm(self.count, generator=generator)[:count].sort().values


def only_samples(samples: Tensor, labels: Tensor | None) -> Sets:
    """Return samples `(count, channels, *grid)` for metrics that compare no sets, without real examples."""
    return Sets(samples, samples[:0], (len(samples),), (0,), None, labels, len(samples))


def gather(real: Dataset, samples: Tensor, labels: Tensor | None, reference: int | None = None) -> Sets:
    """Return samples `(count, channels, *grid)` together with real examples of the same classes.

    The reference has `reference` examples, by default as many as there are samples. If a class has too few real
    examples for the reference and the others, all sets contain fewer items of that class.

    Raises:
        RecipeError: If a set would have fewer than four items, or too many examples cannot be read.
    """
    groups = 1 if labels is None else len(real.classes or ())
    ours = [samples] if labels is None else [samples[labels == number] for number in range(groups)]
    requested = [len(group) for group in ours]
    check_enough(real)
    # Rounded up; the examples to use are selected below.
    compared = requested if reference is None else [-(-reference * each // max(1, len(samples))) for each in requested]
    needed = [own + other for own, other in zip(requested, compared, strict=True)]
    examples, masks = read_real(real, needed, labels is not None)
    if reference is None:
        counts = references = [min(count, len(group) // 2) for count, group in zip(requested, examples, strict=True)]
        before, after = [0] * groups, references
    else:
        # The others are taken first, so that they are the same for every size of the reference.
        counts, references = matched_counts(requested, [len(group) for group in examples], reference)
        before, after = counts, [0] * groups
    if min(sum(counts), sum(references)) < 4:
        raise RecipeError(_too_few(requested, needed, [len(group) for group in examples], real, labels is not None))
    pool = torch.cat([take(examples, references, before), take(examples, counts, after)])
    mask = None if masks is None else torch.cat([take(masks, references, before), take(masks, counts, after)])
    kept = take(ours, counts)
    if mask is not None:
        # Not the padding of the reference: equal padding would make samples closer to it than real data are.
        kept = torch.where(mask[sum(references) :], kept, pool[sum(references) :])
    sorted_labels = None if labels is None else torch.repeat_interleave(torch.arange(groups), torch.tensor(counts))
    return Sets(kept, pool, tuple(counts), tuple(references), mask, sorted_labels, len(samples))


def check_enough(real: Dataset) -> None:
    """Check, before samples are drawn, that there are real examples for two sets. Raises RecipeError if not."""
    if len(real) < 8:
        raise RecipeError(
            f"there are too few real examples: {len(real)} in this split, but at least 8 are required, 4 in each of "
            "two sets. Choose the other split, if it is larger (reference_split=train or test), or more data"
        )


def _too_few(
    requested: Sequence[int], needed: Sequence[int], found: Sequence[int], real: Dataset, by_class: bool
) -> str:
    """Return the message for too small sets, from the numbers of samples, and of real examples needed and found."""
    samples, classes = sum(requested), real.classes or ()
    if samples < 4:
        return f"there are only {samples} samples, but at least 4 are required: draw more (multisagd sample count=…)"
    if list(found) == list(needed):
        return (
            "the reference is too small to contain 4 real examples in the proportions of the classes of the samples: "
            f"set reference={samples} or more, or reference=null"
        )
    if not by_class:
        return f"there are too few readable examples: {sum(found)} of {len(real)}, but at least 8 are required"
    scarce = min(
        (slot for slot, count in enumerate(requested) if count), key=lambda slot: found[slot] / requested[slot]
    )
    return (
        f"there are too few real examples of the classes of the {samples:,} samples: in total {sum(found):,} in this "
        f"split, and of {classes[scarce]!r} {found[scarce]}, but each of two sets needs at least 4. Draw samples of "
        f"other classes, or without classes: labels=null (and no samples_from) compares with all {len(real):,} examples"
    )


def fixed_order(dataset: Dataset, count: int) -> list[int]:
    """Return up to `count` indices of a dataset in a fixed random order, as files may be sorted by class or author.

    For a mixture, they are in the proportions of training, so there are fewer if one source is too small.
    """
    order = order_of(dataset, derive(0, "fidelity"))
    if isinstance(order, WeightedOrder):
        return order.distinct(count)
    generator = torch.Generator().manual_seed(derive(0, "fidelity"))
    indices: list[int] = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    return indices


def read_real(
    dataset: Dataset, counts: Sequence[int], by_class: bool, title: str = "reading real examples"
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return up to `counts` examples per class (or in total), and their masks if any example is padded.

    Examples are taken in a fixed order, without augmentation, and rounded as in decoded files. Raises RecipeError if
    too many cannot be read.
    """
    examples: list[list[Tensor]] = [[] for _ in counts]
    padded: list[list[Tensor | None]] = [[] for _ in counts]
    modality, shape = dataset.modality, dataset.modality.tensor_shape
    order, total, count = fixed_order(dataset, len(dataset)), sum(counts), 0
    with Display(title, min(total, len(dataset))) as display:
        for start in range(0, len(order), BATCH):
            if count == total:
                break
            with as_recipe_error(UnreadableFilesError):
                batch = read_batch(dataset, order[start : start + BATCH])
            for row, x0 in enumerate(batch.x0):
                group = int(batch.labels[row]) if by_class and batch.labels is not None else 0
                if len(examples[group]) < counts[group]:
                    examples[group].append(modality.encode(modality.decode(x0)))
                    padded[group].append(None if batch.mask is None else batch.mask[row])
            count = sum(map(len, examples))
            display.update(count)
    real = [torch.stack(group) if group else torch.empty(0, *shape) for group in examples]
    masks = stack_masks([mask for group in padded for mask in group], shape)
    return real, None if masks is None else list(masks.split([len(group) for group in padded]))


def as_files(modality: Modality, x0: Tensor, report: Callable[[int], None] | None = None) -> Tensor:
    """Return data rounded as when saved: decoded, and encoded again.

    `report` is called with the number of items done so far.
    """
    rounded = torch.empty_like(x0, dtype=torch.float32)
    for number, each in enumerate(x0):
        rounded[number] = modality.encode(modality.decode(each))
        if report is not None:
            report(number + 1)
    return rounded


def real_data(
    run_dir: Path, builder: Builder, given: Group | None = None, seed: int | None = None,
    sizes: Mapping[str, Any] | None = None, reference_root: str | None = None,
) -> tuple[Dataset, Dataset | None]:  # fmt: skip
    """Return the run's training examples, and its test set or else its held-out examples (None if it has neither).

    `given` are keys of the data from the command line, such as their location. With a `seed`, examples are held out as
    in a run with that seed. With `sizes`, as in `Modality.at`, examples have another size than the modality's own. If
    the run has buckets, they are those of one bucket: see `of_size`. If `reference_root` is given, the test set is the
    data in this folder.

    Raises:
        RecipeError: If there is no run, its data cannot be built, or their classes differ from the run's.
    """
    check_folder(run_dir)
    source, given = Run(run_dir), given or {}
    if not source.begun:
        raise RecipeError(
            f"{run_dir} is an exported model, which does not name its training data: specify the run that it was "
            "exported from"
        )
    builder = builder.of_a_run(given)
    config = located(source.config, source.noted_metadata, run_dir, given, builder)
    run = run_settings(config if seed is None else {**config, "seed": seed}, run_dir / CONFIG, builder)
    modality = builder.build(run.modality, Modality, "modality")  # type: ignore[type-abstract]
    if sizes and modality.buckets is None:
        with as_recipe_error(ValueError):
            modality = modality.at(**sizes)
    known, other = (Record(run_dir / name) for name in FILES)
    dataset = build_dataset(run.data, modality, builder, extents=known)
    check_same(dataset, source.noted_metadata)
    parts = hold_out(dataset, run, builder, other)
    if parts.separate is not None:
        check_same(parts.separate, source.noted_metadata, "validation")
    if reference_root is not None:
        test: Dataset | None = separate(dataset, reference_root, "reference_root", run, builder, UNRECORDED)
    else:
        test = evaluation_set(parts, run.data, modality, builder)
    return of_size(parts.training, sizes), None if test is None else of_size(test, sizes)


def of_size(dataset: Dataset, sizes: Mapping[str, Any] | None) -> Dataset:
    """Return the examples in buckets of a dataset that are compared with samples of one size, on one grid.

    These are the examples of the bucket of this size, by default the modality's own size. If no bucket has this size,
    they are all examples, each at this size. A dataset without buckets is returned as it is.

    Raises:
        RecipeError: If the modality does not have such a size, or its own bucket is empty.
    """
    if dataset.modality.buckets is None:
        return dataset
    if not sizes:
        return of_reference_size(dataset)
    with as_recipe_error(ValueError):
        modality = dataset.modality.at(**sizes)
    bucket = next((part for part in bucketed(dataset) if part.modality == modality), None)
    return dataset.with_modality(modality) if bucket is None else bucket


def evaluation_set(parts: Parts, data: Group, modality: Modality, builder: Builder) -> Dataset | None:
    """Return the test set of divided data, or else their held-out examples (None if they have neither)."""
    if parts.separate is not None:
        return parts.held_out
    return published_test_set(data, modality, builder) or parts.test or parts.held_out


def published_test_set(data: Group, modality: Modality, builder: Builder) -> Dataset | None:
    """Return the test set of data that are published in two parts, or None for other data."""
    if data.get("train") is not True:
        return None
    return build_dataset({**data, "train": False}, modality, builder)


def check_same(dataset: Dataset, metadata: Mapping[str, Any], key: str = "data") -> None:
    """Compare data with the record of the run's data in `run.json`, and print a note if they differ.

    `key` is the record's key: `data`, or `validation` for the data in `validation.root`.

    Raises:
        RecipeError: If their classes differ, because the labels of samples would not match.
    """
    before, now = metadata.get(key), data_metadata(dataset)
    if before is None:
        return
    changed = [key for key in now if before[key] != now[key]]
    if "classes" in changed:
        raise RecipeError(
            f"the classes of these data differ from those of the run's training data: {now['classes']!r:.200} instead "
            f"of {before['classes']!r:.200}. Specify the run's training data: data.root=…, or data.urls=…"
        )
    if changed and is_first():
        these, used = "these data", "trained on"
        if key != "data":
            these, used = "the data in validation.root", "validated on"
        tell(
            f"note: {these} are not the files that the run was {used}, so training examples and held-out examples may "
            f"be mixed (the run had {before['examples']:,} examples, now there are {now['examples']:,})"
        )


def load_samples(path: Path, dataset: Dataset, maximum: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Read a file of samples, and return its first `maximum` samples x0 `(count, channels, *grid)` and their labels.

    Labels are `(count,)` int64, or None.

    Raises:
        RecipeError: If the file is unreadable, or does not contain finite samples with the dataset's shape and classes.
    """
    with as_recipe_error(
        (OSError, KeyError, ValueError), f"cannot read samples from {path} (", "): draw samples with multisagd sample"
    ):
        tensors = read_tensors(path)
        x0, labels = tensors["x0"], tensors.get("labels")
        if not len(x0) or not x0.is_floating_point() or (labels is not None and labels.dtype != torch.int64):
            raise ValueError("x0 is empty, or x0 or labels are not of the right type")
    if tuple(x0.shape[1:]) != (shape := dataset.modality.tensor_shape):
        raise RecipeError(f"{path} holds samples of shape {tuple(x0.shape[1:])}, but the run's data have shape {shape}")
    if broken := int((~x0.flatten(1).isfinite()).any(1).sum()):
        raise RecipeError(f"{broken} of {len(x0)} samples in {path} are not finite: sample again with more steps")
    if labels is not None and (
        labels.shape != x0.shape[:1] or not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes or ())
    ):
        raise RecipeError(
            f"the labels in {path} do not match its samples, or the run's {len(dataset.classes or ())} classes: use "
            "samples of this run"
        )
    return x0[:maximum], None if labels is None else labels[:maximum]
