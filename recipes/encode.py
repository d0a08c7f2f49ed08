"""Encode a dataset into latents once: `multisagd encode …`. Training uses the latents with `data=latents`.

The steps: build the autoencoder's modality and the dataset; encode the shards that are missing or damaged; measure the
mean and the standard deviation of each latent channel. `modalities/shard_index.py` describes the folder's files. Every
row depends only on the data, the seed and the row number, so on a CPU a command that was stopped and started again
writes the same bytes as an uninterrupted one.

Errors, each reported in one message: a modality without an autoencoder, weights that cannot be loaded, unreadable data,
latents that overflow the stored precision, a folder that contains latents of a different configuration or of other
data.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from modalities.base import Batch, Dataset
from modalities.encoding import differences
from modalities.latent import STATISTICS, Latent
from modalities.reading import UnreadableFilesError
from modalities.shard_index import INDEX, Index, grid_facts, joined, measured_scale, write_shard, write_whole
from multisagd.seeds import derive
from recipes.base.commands import setting
from recipes.base.errors import Interrupted, RecipeError, as_recipe_error, check_minimum
from recipes.base.progress import Display
from recipes.base.signals import StopRequest
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.config.groups import flatten, under
from recipes.config.sources import own_key
from recipes.data.dataset import build_dataset, colour_note
from recipes.data.order import prefetch
from recipes.data.parts import check_kept
from recipes.runs.lock import lock_run
from recipes.runs.run import data_metadata
from recipes.runs.settings import Group
from recipes.runtime.device import EngineSettings, Runtime

FREE = (
    "run_dir", "data.root", "data.urls", "data.name", "data.index", "data.threads", "engine", "batch", "allow_targets",
    "modality.autoencoder.device",
)  # fmt: skip
"""Keys, or groups of keys, that may change when encoding is continued; some of them may change rounding."""


@dataclass(frozen=True)
class EncodeSettings:
    """All keys of `configs/encode.yaml`. Raises ValueError if a count is below 1."""

    run_dir: Path
    seed: int
    passes: int
    batch: int
    shard_size: int
    dtype: Literal["float16", "bfloat16", "float32"]
    allow_targets: tuple[str, ...]
    engine: EngineSettings
    modality: Group
    data: Group

    def __post_init__(self) -> None:
        check_minimum(self, 1, "passes", "batch", "shard_size")


def encode(config: Config) -> None:
    """Encode the configured data; complete shards in the folder are kept.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
        Interrupted: After a stop request; finished shards are kept.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(EncodeSettings, config, "")
    Runtime.start(settings.engine)
    with lock_run(settings.run_dir):
        before = earlier(settings.run_dir, config)
        latent = builder.build(settings.modality, Latent, "modality")
        # The dataset yields the examples to be encoded, so any dataset can be used, and full batches are encoded.
        dataset = build_dataset(settings.data, latent.modality, builder)
        check_kept(dataset, "latents")
        with as_recipe_error((ValueError, UnreadableFilesError)):
            index = plan(config, settings, latent, dataset, before)
            with StopRequest() as stop:
                fill(index, settings, latent, dataset, stop)


def earlier(run_dir: Path, config: Config) -> Index | None:
    """Return the index of the shards from an earlier start, or None if there are no shards.

    Raises RecipeError if the folder contains other files, or latents of a different configuration (the message names
    the keys).
    """
    if not (run_dir / INDEX).exists():
        if any(not entry.name.startswith(".") and entry.suffix != ".partial" for entry in run_dir.iterdir()):
            raise RecipeError(f"{run_dir} is not empty and does not contain latents: choose another run_dir")
        return None
    with as_recipe_error(ValueError, after=", or use another run_dir"):
        index = Index.load(run_dir)
    if not index.shards:
        return None
    if different := differences(index.config, fixed(config)):
        raise RecipeError(
            f"{run_dir} contains latents from a different configuration; these keys differ: {different}. "
            "Use the same values to continue, or another run_dir to encode again"
        )
    return index


def fixed(config: Config) -> Config:
    """Return the keys of a configuration that must be equal for all shards of a folder."""
    return {key: value for key, value in flatten(config).items() if not under(own_key(key), FREE)}


def plan(config: Config, settings: EncodeSettings, latent: Latent, dataset: Dataset, before: Index | None) -> Index:
    """Return the index to fill, with the intact shards of `before`. Raises RecipeError if those contain other data."""
    new = Index(
        encoding=latent.encoding(),
        config=fixed(config),
        source=data_metadata(dataset),
        classes=None if dataset.classes is None else list(dataset.classes),
        channels=latent.channels,
        grid=grid_facts(latent),
        dtype=settings.dtype,
        examples=len(dataset),
        passes=settings.passes,
        shard_size=settings.shard_size,
    )
    if before is None:
        return new
    for what, then, now in (("data", before.source, new.source), ("settings", before.encoding, new.encoding)):
        if different := differences(then, now):
            raise RecipeError(
                f"the {what} of {settings.run_dir} have changed; {different}. "
                "Restore them to continue, or use another run_dir to encode again"
            )
    intact = [shard for shard in before.shards if shard.is_intact(settings.run_dir)]
    return replace(new, shards=intact, unreadable=before.unreadable)


def fill(index: Index, settings: EncodeSettings, latent: Latent, dataset: Dataset, stop: StopRequest) -> None:
    """Encode the missing shards, and write the statistics of all shards.

    Raises Interrupted after a stop request, without saving the current shard.
    """
    run_dir, done = settings.run_dir, sum(shard.rows for shard in index.shards)
    with Display("encoding", index.examples * index.passes, done) as display:
        display.say(introduction(index, latent, done))
        if not done and (note := colour_note(dataset)) is not None:
            display.say(f"note: {note}")
        for number in index.missing:
            parts = []
            for part in batches(dataset, index.rows(number), settings):
                x0 = latent.compress(part.x0).to(getattr(torch, settings.dtype))
                parts.append(part._replace(x0=x0, mask=None if part.mask is None else latent.coarser_mask(part.mask)))
                done += len(part.x0)
                display.update(done)
                if stop.signal_number is not None:
                    kept = f"{len(index.shards)} of {index.count} shards are in {run_dir}"
                    raise Interrupted(f"stopped; {kept}. Run the same command to continue.", stop.signal_number)
            if not index.shards:
                index.save(run_dir)  # marks the folder as an output of this command
            shard = write_shard(run_dir, number, *joined(parts))
            shards = sorted([*index.shards, shard], key=lambda each: each.file)
            index = replace(index, shards=shards, unreadable={**index.unreadable, **dataset.unreadable})
            index.save(run_dir)
        scale = measured_scale(index)
        write_whole(run_dir / STATISTICS, lambda partial: partial.write_text(scale.text(), encoding="utf-8"))
        display.say(ending(index, run_dir))


def batches(dataset: Dataset, rows: range, settings: EncodeSettings) -> Iterator[Batch]:
    """Return an iterator over batches of rows, prefetched in threads; rows after the first pass are augmented."""
    examples = len(dataset)
    # A batch never contains rows from two passes.
    starts = [row for row in rows if (row - rows.start) % settings.batch == 0 or row % examples == 0]
    pieces = [range(*ends) for ends in pairwise([*starts, rows.stop])]

    def read(number: int) -> Batch:
        pass_number = pieces[number].start // examples
        indices = [row % examples for row in pieces[number]]
        seeds = [derive(settings.seed, "augmentation", pass_number, index) for index in indices]
        return dataset.batch(indices, seeds if pass_number else None)

    return prefetch(read, range(len(pieces)), settings.engine.workers)


def introduction(index: Index, latent: Latent, done: int) -> str:
    """Return a line that describes the work to be done."""
    again = f"continuing after {done:,} rows; " if done else ""
    inner, outer = latent.modality.tensor_shape, latent.tensor_shape
    times = "" if index.passes == 1 else f" in {index.passes} passes"
    return f"{again}{index.examples:,} examples{times}, from {inner} to {outer}, as {index.dtype}"


def ending(index: Index, run_dir: Path) -> str:
    """Return a message with the folder and the command that trains on it."""
    size = sum(shard.bytes for shard in index.shards)
    count = len(index.unreadable)
    unreadable = f"{count} files could not be read; {run_dir / INDEX} lists them\n" if count else ""
    return (
        f"done. {index.count} shards, {size / 1e6:,.1f} MB, and their statistics are in {run_dir}\n{unreadable}"
        "Train on them, with the same modality settings as this command:\n"
        f"  multisagd train modality=… data=latents {setting('data.root', run_dir)} run_dir=…"
    )


main = command("encode", encode)

if __name__ == "__main__":
    sys.exit(main())
