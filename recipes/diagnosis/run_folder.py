"""Check whether training can continue from a run folder, and whether sampling works."""

import shutil
from pathlib import Path

from recipes.base.commands import setting
from recipes.base.errors import RecipeError
from recipes.base.untrusted import check_own
from recipes.config.build import Builder
from recipes.diagnosis.check import Finding
from recipes.diagnosis.environment import writable
from recipes.runs.checkpoint import CheckpointError, load
from recipes.runs.lock import is_locked
from recipes.runs.model import NOTES, check_folder, open_model
from recipes.runs.run import Run, versions
from recipes.runs.settings import weights_in_words


def run_folder(run_dir: str) -> Finding:
    """Check that a folder is writable, and read the run or exported model in it as the commands do."""
    folder, space = Path(run_dir), writable(run_dir)
    if space.state == "broken":
        return space
    if not folder.exists() or all(entry.name.startswith(".") for entry in folder.iterdir()):
        return Finding("ok", f"no run yet: `multisagd train {setting('run_dir', folder)}` creates one")
    try:
        check_folder(folder)
        check_own(folder, folder)
        if not (folder / NOTES).exists():
            return _trained(folder)
        model = open_model(folder, Builder())
        weights = model.weights(model.exported or "ema", lambda shapes: None)
        which = weights_in_words(weights.which)
        return Finding("ok", f"exported after {weights.samples:,} samples, weights {which}, intact")
    except RecipeError as error:
        return Finding("broken", str(error))


def _trained(folder: Path) -> Finding:
    """Read the configuration, record, statistics, lock and newest intact checkpoint of a run."""
    run = Run(folder)
    settings, metadata, _ = run.config, run.metadata, run.statistics  # each is read and checked
    before, now = (metadata.get("starts") or [{}])[-1].get("versions", {}), versions()
    changed = [name for name in ("multisagd", "torch") if before.get(name, now[name]) != now[name]]
    notes = [
        f"last started with {name} {before[name]}, now {now[name]}: results will not be bit-for-bit identical"
        for name in changed
    ]
    in_use = is_locked(folder)
    if in_use:
        notes.append("another process is using the folder, so a second one would be refused")
    elif in_use is None:
        notes.append("on this file system it is unknown whether another process is using the folder")
    checkpoints = run.checkpoints.folders()
    for checkpoint in reversed(checkpoints):
        try:
            state = load(checkpoint)
            break
        except CheckpointError as error:
            notes.append(str(error))
    else:
        notes.append(
            "no checkpoint is intact"
            if checkpoints
            else "no checkpoint yet: the same command starts from the beginning"
        )
        return Finding("broken" if checkpoints else "warning", "; ".join(notes))
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    if shutil.disk_usage(folder).free < 2 * size:
        message = f"two more checkpoints of {size / 2**20:,.1f} MiB do not fit on the disk"
        return Finding("broken", message, "set keep=1, free some space, or move the run folder")
    total = (settings.get("training") or {}).get("samples")
    intact = (
        f"checkpoint after {state.samples:,} of {total} samples, {size / 2**20:,.1f} MiB, intact (SHA-256 compared)"
    )
    return Finding("warning" if notes else "ok", "; ".join([intact, *notes]))
