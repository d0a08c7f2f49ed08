"""Pack a folder of files into tar shards in WebDataset's layout: `multisagd pack …`.

`run_dir` then contains the shards 000000.tar and so on, an index of each (000000.tar.KEY.index), so that training need
not scan it, and pack.json with the source and the settings. The same files, settings and seed give the same bytes. A
shard is written completely or not at all, so a command that was stopped and started again continues with the first
missing shard.

Errors, each reported in one message: data that are not a folder of files, files that cannot be read or change during
packing, an output folder with shards of other data or settings or with other contents.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modalities.base import Modality
from modalities.byte_ranges import find
from modalities.encoding import differences
from modalities.files import Folder
from modalities.shard_index import write_whole
from modalities.tar_catalogue import indexed
from modalities.tar_index import ScanOptions
from modalities.tar_packing import Packed, Packing, shard_size, write_tar
from modalities.wrapped import untouched
from recipes.base.commands import setting
from recipes.base.errors import Interrupted, RecipeError, as_recipe_error, check_minimum
from recipes.base.files import write_text
from recipes.base.progress import Display
from recipes.base.signals import StopRequest
from recipes.base.untrusted import read_object
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.dataset import build_dataset
from recipes.data.order import Order
from recipes.data.parts import check_kept
from recipes.runs.lock import lock_run
from recipes.runs.run import data_metadata
from recipes.runs.settings import Group

RECORD = "pack.json"


@dataclass(frozen=True)
class PackSettings:
    """All keys of `configs/pack.yaml`. Raises ValueError if `shard_bytes` is below 1."""

    run_dir: Path
    seed: int
    shuffle: bool
    shard_bytes: int
    allow_targets: tuple[str, ...]
    modality: Group
    data: Group

    def __post_init__(self) -> None:
        check_minimum(self, 1, "shard_bytes")


def pack(config: Config) -> None:
    """Pack the configured folder; existing shards are kept.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
        Interrupted: After a stop request; finished shards are kept.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(PackSettings, config, "")
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    folder = untouched(build_dataset(settings.data, modality, builder))
    if not isinstance(folder, Folder):
        raise RecipeError(f"data: {type(folder).__name__} is not a folder of files: use data=folder data.root=…")
    check_kept(folder, "tar shards")
    count, run_dir = len(folder), settings.run_dir
    with as_recipe_error((OSError, ValueError)):
        order = Order(count, settings.seed).indices(0, count) if settings.shuffle else range(count)
        packing = Packing(folder, order, settings.shard_bytes)
        with lock_run(run_dir), StopRequest() as stop, Display("packing", count) as display:
            begin(run_dir, record(settings, packing))
            fill(run_dir, packing, modality, display, stop)
            display.say(
                f"done. {count:,} examples, {sum(packing.sizes) / 1e6:,.1f} MB, in {len(packing.shards)} shards in "
                f"{run_dir}\nTrain on them, with the same modality settings as this command:\n"
                f"  multisagd train … data=webdataset {setting('data.urls', run_dir)} run_dir=…"
            )


def record(settings: PackSettings, packing: Packing) -> dict[str, Any]:
    """Return the values that must not change while a folder is packed."""
    return {
        "seed": settings.seed,
        "shuffle": settings.shuffle,
        "shard_bytes": settings.shard_bytes,
        **data_metadata(packing.folder),
        "sizes": hashlib.sha256(np.array(packing.sizes, np.int64).tobytes()).hexdigest(),
        "shards": len(packing.shards),
    }


def begin(run_dir: Path, record: dict[str, Any]) -> None:
    """Write the record of the source and the settings, unless the same record exists.

    Raises RecipeError if the folder has other contents.
    """
    path = run_dir / RECORD
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in run_dir.iterdir()):
            raise RecipeError(f"{run_dir} is not empty and does not contain shards: choose another run_dir")
        write_text(path, json.dumps(record, indent=1) + "\n")
        return
    with as_recipe_error((OSError, ValueError), f"cannot read {path} (", "): choose another run_dir"):
        before = read_object(path)
    if different := differences(before, record):
        raise RecipeError(
            f"{run_dir} contains shards made from other files or settings; these differ: {different}. Restore them "
            "to continue, or choose another run_dir"
        )


def fill(run_dir: Path, packing: Packing, modality: Modality, display: Display, stop: StopRequest) -> None:
    """Write the missing and truncated shards, and an index of each. Raises Interrupted after a stop request."""

    def until_stopped(examples: Sequence[Packed], done: int) -> Iterator[Packed]:
        for number, example in enumerate(examples, done):
            if stop.signal_number is not None:
                kept = f"{len(list(run_dir.glob('*.tar')))} shards are in {run_dir}"
                raise Interrupted(f"stopped; {kept}. Run the same command to continue.", stop.signal_number)
            yield example
            display.update(number)

    options = ScanOptions(tuple(suffix.removeprefix(".") for suffix in modality.suffixes))
    for number, indices in enumerate(packing.shards):
        path = run_dir / f"{number:06d}.tar"
        examples = [packing.example(index) for index in indices]
        if not path.exists() or path.stat().st_size != shard_size(examples):
            write_whole(path, partial(write_tar, examples=until_stopped(examples, indices.start)))
        indexed(find(str(path), ".tar")[0], options, None)
        display.update(indices.stop)


main = command("pack", pack)

if __name__ == "__main__":
    sys.exit(main())
