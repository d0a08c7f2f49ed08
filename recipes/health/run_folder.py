"""A run's folder: whether it can be continued and sampled from here."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from recipes.engine.outline import flatten
from recipes.health.findings import Finding, Wishes, needed
from recipes.health.places import size, writable


def folder(wishes: Wishes) -> Iterator[Finding]:
    """Look at the folder that the person named, if any: what is in it, and whether it can be read."""
    if (run_dir := wishes.run_dir) is None:
        return
    needed("torch")
    from recipes.base.untrusted import check_own
    from recipes.engine.errors import RecipeError
    from recipes.engine.words import setting

    if not run_dir.exists():
        yield writable("folder", run_dir, vital=True)
        command = f"multisagd train {setting('run_dir', run_dir)}"
        yield Finding("absent", "run", f"{run_dir} does not exist yet: `{command}` makes it")
        return
    yield writable("folder", run_dir, vital=True)
    if not run_dir.is_dir():
        return
    if not any((run_dir / name).exists() for name in ("config.yaml", "model.json")):
        others = [entry.name for entry in run_dir.iterdir() if not entry.name.startswith(".")]
        told = f"it holds no run, but {', '.join(sorted(others)[:5])}" if others else "it is empty"
        yield Finding(
            "warning" if others else "absent", "run", told, "training needs a folder of its own" if others else ""
        )
        return
    try:
        check_own(run_dir, run_dir)
        yield from _exported(run_dir) if (run_dir / "model.json").exists() else _trained(run_dir)
    except RecipeError as error:
        yield Finding("broken", "run", str(error))


def _exported(run_dir: Path) -> Iterator[Finding]:
    """Read all of an exported model."""
    from recipes.engine.build import Builder
    from recipes.runs.model import open_model

    model = open_model(run_dir, Builder())
    which = model.exported or "ema"
    weights = model.weights(which, lambda shapes: None)
    parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    yield Finding(
        "ok", "model", f"exported after {weights.samples:,} samples, {parameters:,} weights ({which}), intact"
    )


def _trained(run_dir: Path) -> Iterator[Finding]:
    """Read configuration, record, statistics and the newest checkpoint of a run."""
    from recipes.runs import record
    from recipes.runs.run import Run

    run = Run(run_dir)
    config = run.config
    yield Finding("ok", "configuration", f"{len(flatten(config))} settings in config.yaml")
    facts = run.facts
    starts = facts.get("starts") or [{}]
    before, now = starts[-1].get("versions", {}), record.versions()
    changed = [
        f"{name} {before[name]} -> {now[name]}"
        for name in ("multisagd", "torch")
        if before.get(name, now[name]) != now[name]
    ]
    if changed:
        told = f"last started with other versions: {', '.join(changed)}; continuing works, but not bit for bit"
        yield Finding("warning", "record", told)
    else:
        yield Finding("ok", "record", f"started {len(starts)} times, with the versions that are here")
    run.statistics  # noqa: B018 - reads and checks them
    yield Finding("ok", "statistics", "of the data, readable")
    yield _lock(run_dir)
    yield from _checkpoints(run_dir, config)


def _lock(run_dir: Path) -> Finding:
    """Tell whether a process works in a run's folder now."""
    lock = run_dir / ".lock"
    if not lock.is_file():
        return Finding("ok", "in use", "no")
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("warning", "in use", "a process works in it now: a second one would be refused")
        except OSError as error:
            return Finding("warning", "in use", f"that cannot be told on this file system ({error})")
    return Finding("ok", "in use", "no")


def _checkpoints(run_dir: Path, config: dict[str, object]) -> Iterator[Finding]:
    """Read checkpoints, the newest first, until one is intact, with sums; and look whether the next will fit."""
    from recipes.engine.checkpoint import Checkpoints, samples_of
    from recipes.engine.checkpoint_files import CheckpointError, load

    folders = Checkpoints(run_dir / "checkpoints").folders()
    if not folders:
        yield Finding("absent", "checkpoint", "none yet: the same `multisagd train` command begins anew")
        return
    for number, each in enumerate(reversed(folders)):
        try:
            state = load(each)
        except CheckpointError as error:
            last = number + 1 == len(folders)
            yield Finding("broken" if last else "warning", f"checkpoint {samples_of(each):,}", str(error))
            continue
        bytes_each = sum(file.stat().st_size for file in each.rglob("*") if file.is_file())
        total = (config.get("training") or {}).get("samples")  # type: ignore[attr-defined]
        told = (
            f"after {state.samples:,} of {total:,} samples"
            if isinstance(total, int)
            else f"after {state.samples:,} samples"
        )
        yield Finding(
            "ok", "checkpoint", f"{told}, {size(bytes_each)}, intact (SHA-256 compared); {len(folders)} are kept"
        )
        if shutil.disk_usage(run_dir).free < 2 * bytes_each:
            told = f"two more of {size(bytes_each)} do not fit on the disk"
            yield Finding("broken", "space", told, "keep=1, or make room, or move the run folder")
        return
