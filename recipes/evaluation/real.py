"""The real examples that samples are compared with: a run's own data, in an order that never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset, Modality, stack_masks
from modalities.reading import UnreadableFilesError, read_batch
from multisagd.seeds import derive
from recipes.base.console import tell
from recipes.base.errors import RecipeError
from recipes.base.progress import Display
from recipes.config.build import Builder
from recipes.data.dataset import build_dataset, hold_out
from recipes.runs.located import located
from recipes.runs.model import check_folder, run_settings
from recipes.runs.record import data_facts
from recipes.runs.run import CONFIG, Run
from recipes.runs.settings import Group
from recipes.runtime.distribution import is_first

BATCH = 256


def real_data(
    run_dir: Path, builder: Builder, given: Group | None = None, seed: int | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return the run's training examples, and its dataset's own test set or else what it held out, if any.

    `given` are keys of its data that the command line gives, such as where they are now. With a `seed`, what is held
    out is what a run of that seed would have held out.

    Raises:
        RecipeError: if there is no run, its data cannot be built, or they have other classes than it learned.
    """
    check_folder(run_dir)
    if not Run(run_dir).begun:
        raise RecipeError(
            f"{run_dir} is an exported model, which does not say what data it learned from: give the run that it was "
            "exported from"
        )
    source, given = Run(run_dir), given or {}
    builder, path = builder.of_a_run(given), run_dir / CONFIG
    config = located(source.config, source.noted_facts, run_dir, given, builder)
    run = run_settings(config if seed is None else {**config, "seed": seed}, path, builder)
    modality = builder.build(run.modality, Modality, "modality")  # type: ignore[type-abstract]
    dataset = build_dataset(run.data, modality, builder)
    check_same(dataset, source.noted_facts)
    train, held_out = hold_out(dataset, run)
    if run.data.get("train") is not True:
        return train, held_out
    return train, build_dataset({**run.data, "train": False}, modality, builder)


def check_same(dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """Check that data are those that a run was trained on, as far as `run.json` tells; say so if they differ.

    Raises:
        RecipeError: if they have other classes: labels of samples would mean something else.
    """
    before, now = facts.get("data"), data_facts(dataset)
    if before is None:
        return
    changed = [key for key in now if before[key] != now[key]]
    if "classes" in changed:
        raise RecipeError(
            f"these data have other classes than those that the run was trained on: {now['classes']!r:.200} in place "
            f"of {before['classes']!r:.200}. Name those it was trained on: data.root=…, or data.urls=…"
        )
    if changed and is_first():
        tell(
            "note: these data are not the same files that the run was trained on, so examples that it learned from and "
            f"examples that it held out may be mixed; {before['examples']:,} examples then, {now['examples']:,} now"
        )


def fixed_order(dataset: Dataset, count: int) -> list[int]:
    """Return `count` indices of a dataset in an order that never changes: files may be sorted by class or writer."""
    generator = torch.Generator().manual_seed(derive(0, "fidelity"))
    indices: list[int] = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    return indices


def read_real(
    dataset: Dataset, wanted: Sequence[int], by_class: bool, title: str = "reading real examples"
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return up to `wanted` examples of each class, or of all in one group, as files, and their masks if any is padded.

    Examples are taken in an order that never changes, without augmentation, until all are found.

    Raises:
        RecipeError: if too many cannot be read.
    """
    found: list[list[Tensor]] = [[] for _ in wanted]
    padded: list[list[Tensor | None]] = [[] for _ in wanted]
    missing = list(wanted)
    shape = (dataset.modality.channels, *dataset.modality.grid().shape)
    order, total = fixed_order(dataset, len(dataset)), sum(wanted)
    with Display(title, min(total, len(dataset))) as display:
        for start in range(0, len(order), BATCH):
            if not any(missing):
                break
            try:
                batch = read_batch(dataset, order[start : start + BATCH])
            except UnreadableFilesError as error:
                raise RecipeError(str(error)) from error
            for place, x0 in enumerate(batch.x0):
                group = int(batch.labels[place]) if by_class and batch.labels is not None else 0
                if missing[group]:
                    missing[group] -= 1
                    found[group].append(dataset.modality.encode(dataset.modality.decode(x0)))
                    padded[group].append(None if batch.mask is None else batch.mask[place])
            display.update(total - sum(missing))
    real = [torch.stack(group) if group else torch.empty(0, *shape) for group in found]
    masks = stack_masks([mask for group in padded for mask in group], shape)
    return real, None if masks is None else list(masks.split([len(group) for group in padded]))
