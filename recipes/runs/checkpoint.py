"""Checkpoints: tensors in safetensors, everything else in JSON, nothing that can execute code.

    checkpoints/000000064000/network.safetensors, ema.safetensors, optimizer.safetensors, checkpoint.json

Sharded tensors are written by all ranks into a folder instead of a file: network/shard-…safetensors. A checkpoint is
written to a temporary folder next to the others, flushed to disk and renamed, so it exists completely or not at all.
A checkpoint that it replaces is moved aside before that and removed afterwards, so that one of the two always exists.
With several ranks, every rank calls `save` and `latest`; the first rank decides.

`checkpoint.json` contains the format version, and the size and SHA-256 of every tensor file. The hashes detect damage,
not malicious files, whose author may also have written the hashes. So the names, types and headers of files are checked
before they are read, and a caller that knows the network can check the shapes before tensors are read.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from multisagd.files import digest, read_json
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import as_stored
from recipes.base.untrusted import read_header, read_tensors
from recipes.runs.best import Selected, read_best
from recipes.runs.state import ShardedTensors, save_shards
from recipes.runtime.distribution import (
    Group,
    are_sharded,
    broadcast_from_rank0,
    is_first,
    long_barrier,
    raise_together,
)

FORMAT_VERSION = 1
INDEX = "checkpoint.json"
WRITING, REPLACED, ASIDE = ".writing-", ".replaced-", ".aside-"
MAX_SAMPLES = 10**18
"""Maximum number of samples: more than any training run sees, and within the range of int64."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""
Check = Callable[[Mapping[str, Shapes]], None]
"""A function that checks the shapes of all parts before tensors are read, and raises an error if they are wrong."""
log = logging.getLogger("multisagd")


@dataclass
class State:
    """Everything that is needed to continue a run: `tensors` by part and name, and a JSON-compatible `record`.

    `samples` is the number of samples seen in training. `by_clock` says whether the state was saved because of the
    elapsed time, and not because of the number of samples. `only_best` says whether it was saved only because it was
    the best so far, between two regular checkpoints.
    """

    samples: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    record: dict[str, Any] = field(default_factory=dict)
    by_clock: bool = False
    only_best: bool = False


class CheckpointError(RecipeError):
    """A checkpoint cannot be read; the message names the file and the remedy."""


class VersionError(CheckpointError):
    """A checkpoint has an unknown format version."""


class SaveError(RecipeError):
    """A checkpoint cannot be written; the message names the folder and the last intact checkpoint."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Saving keeps the last `keep` checkpoints, and permanently the first checkpoint at or after every multiple of
    `keep_every` samples (0: none). Checkpoints saved by the clock are never permanent. The last checkpoint saved by
    samples is always kept, so that training can return to a state that does not depend on its speed. The best one
    (`recipes.runs.best`) is kept in addition, and those that the last checkpoints record as the best, from which
    training may continue. Ranks synchronise in `group`.
    """

    folder: Path
    keep: int = 2
    keep_every: int = 0
    group: Group = None

    def save(self, state: State) -> Path:
        """Write a checkpoint unless it exists already, remove superfluous checkpoints, and return the folder written.

        Raises:
            SaveError: If it cannot be written, for example because the disk is full; earlier checkpoints stay intact.
            FailedElsewhereError: If another rank cannot write its part.
        """
        target = self.place(state.samples)
        temporary = self.folder / f"{WRITING}{target.name}"
        for stage in (self._begin, self._write, self._commit):
            problem = None
            try:
                stage(state, temporary, target)
            except (OSError, SafetensorError) as error:
                problem = SaveError(self._save_message(target, error))
                if is_first():
                    shutil.rmtree(temporary, ignore_errors=True)
            raise_together(problem, self.group)
        return target

    def _begin(self, state: State, temporary: Path, target: Path) -> None:
        if is_first():
            self._clear_leftovers()
            self.folder.mkdir(exist_ok=True)  # without parents: a run folder that has vanished is not created again
            temporary.mkdir()

    def _write(self, state: State, temporary: Path, target: Path) -> None:
        for part, tensors in state.tensors.items():
            if are_sharded(tensors):
                save_shards(tensors, temporary / part, self.group)
            elif is_first():
                copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                safetensors.torch.save_file(copies, temporary / f"{part}.safetensors")

    def _commit(self, state: State, temporary: Path, target: Path) -> None:
        """Write the index of the complete tensor files, and rename their folder to the final name."""
        if not is_first():
            return
        files: dict[str, dict[str, Any]] = {part: {} for part in state.tensors}
        for part, entries in files.items():
            for name in part_files(temporary, part):
                entries[name] = {"bytes": (temporary / name).stat().st_size, "sha256": digest(temporary / name)}
        index = {
            "format_version": FORMAT_VERSION, "samples": state.samples, "by_clock": state.by_clock,
            "only_best": state.only_best, "files": files, "record": state.record,
        }  # fmt: skip
        (temporary / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        if _contains(target, index):
            shutil.rmtree(temporary)
            return
        for path in (*temporary.rglob("*"), temporary):
            _flush(path)
        if target.exists():  # an unreadable checkpoint, or the same weights with a different record
            target.rename(target.with_name(f"{REPLACED}{target.name}"))
        temporary.rename(target)
        _flush(self.folder)
        self._clear_leftovers()
        passed = [path for path in self.folder.glob(f"{ASIDE}*") if samples_of(path) <= state.samples]
        for old in (*self._superfluous(target), *passed):
            try:
                shutil.rmtree(old)
            except OSError as error:
                log.warning("cannot remove %s: %s", old, error)

    def _superfluous(self, newest: Path) -> list[Path]:
        folders = self.folders()
        counted = [path for path in folders if not saved_by_clock(path)]
        regular = [path for path in folders if not saved_only_as_best(path)]
        firsts: dict[int, Path] = {}
        for path in counted if self.keep_every else ():
            if path in regular:
                firsts.setdefault(samples_of(path) // self.keep_every, path)
        recent = {*regular[-self.keep :], newest, *counted[-1:]}
        kept = {path for multiple, path in firsts.items() if multiple > 0} | recent | self._best(recent)
        return [path for path in folders if path not in kept]

    def _best(self, recent: Collection[Path]) -> set[Path]:
        """Return the best checkpoint, and those that some `recent` ones record as the best; ignore damaged records."""
        found = []
        with suppress(RecipeError):
            found.append(read_best(self.folder))
        for path in recent:
            with suppress(RecipeError, OSError, ValueError, KeyError, TypeError, AttributeError):
                found.append(Selected.of(read_json(path / INDEX)["record"]).best)
        return {self.place(each.samples) for each in found if each is not None}

    def _save_message(self, target: Path, error: Exception) -> str:
        free = shutil.disk_usage(self.folder if self.folder.exists() else target.anchor or ".").free
        last = self.newest(but=target)
        return (
            f"cannot write the checkpoint {target} ({error}; {free / 2**20:,.0f} MiB are free): free some space. "
            + (f"The last intact one is {last.name}" if last else "There is no earlier one")
        )

    def place(self, samples: int) -> Path:
        """Return the folder of the checkpoint after `samples` samples; it need not exist."""
        return self.folder / f"{samples:012d}"

    def newest(self, but: Path | None = None) -> Path | None:
        """Return the newest checkpoint, other than `but`, whose files have the right sizes. Hashes are not compared."""
        return next((path for path in reversed(self.folders()) if path != but and looks_complete(path)), None)

    def set_aside(self, samples: int) -> list[Path]:
        """Rename the checkpoints later than the state from which a run continues, and return their old folders.

        They are unreadable or no longer valid. Under their old names, they would be kept instead of newer intact ones,
        and one that becomes readable again would count as the newest. They are removed once training has passed them.
        """
        newer = [path for path in self.folders() if samples_of(path) > samples] if is_first() else []
        for path in newer:
            aside = self.folder / f"{ASIDE}{samples_of(path):012d}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        return newer

    def folders(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first, including one that is being replaced."""
        aside = {path.name.removeprefix(REPLACED): path for path in self.folder.glob(f"{REPLACED}*")}
        placed = {path.name: path for path in self.folder.glob("[0-9]*") if path.is_dir()}
        return [path for name, path in sorted((aside | placed).items()) if re.fullmatch("[0-9]{12,18}", name)]

    def latest(
        self, parts: Collection[str] | None = None, check: Check | None = None, counted: bool = False
    ) -> State | None:
        """Load the newest readable checkpoint, or the given `parts` of it. Return None if there are no checkpoints.

        `check` is called by the first rank, for each checkpoint that is tried. An unreadable checkpoint is skipped with
        a warning that names it. With `counted`, checkpoints saved by the clock are tried last.

        Raises:
            CheckpointError: If there are checkpoints but none can be read, or one has an unknown format version.
        """
        state = self._latest(parts, check, counted) if is_first() else None
        long_barrier()
        samples = torch.tensor(-1 if state is None else state.samples)
        broadcast_from_rank0(samples)
        if is_first() or samples < 0:
            return state
        for path in self.folders():
            if samples_of(path) == samples:
                return load(path, verify=False, parts=parts)
        raise CheckpointError(
            f"{self.folder} on this machine does not contain the checkpoint after {int(samples):,} samples that the "
            "first process found there: run_dir must be a folder that all machines share"
        )

    def chosen(self, samples: int, parts: Collection[str] | None = None, check: Check | None = None) -> State:
        """Load the checkpoint after `samples` samples, or the given `parts` of it. `check` is as for `latest`.

        Raises:
            CheckpointError: If it is missing (the message names the existing ones) or unreadable.
        """
        folders = {samples_of(path): path for path in self.folders()}
        if samples not in folders:
            known = ", ".join(map(str, folders)) or "none yet"
            raise CheckpointError(
                f"there is no checkpoint after {samples} samples in {self.folder}; existing checkpoints: {known}"
            )
        state = load(folders[samples], parts=parts, check=check) if is_first() else None
        long_barrier()
        return state or load(folders[samples], verify=False, parts=parts)

    def _latest(self, parts: Collection[str] | None, check: Check | None, counted: bool) -> State | None:
        folders = self.folders()[::-1]
        for folder in sorted(folders, key=saved_by_clock) if counted else folders:
            try:
                return load(folder, parts=parts, check=check)
            except VersionError:
                raise
            except CheckpointError as error:
                log.warning("%s; falling back to the previous checkpoint", error)
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.folder} can be read: remove that folder to start over"
            )
        return None

    def _clear_leftovers(self) -> None:
        """Remove incomplete and replaced checkpoints; restore a checkpoint whose replacement was interrupted."""
        for path in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(path)
        for path in self.folder.glob(f"{REPLACED}*"):
            target = path.with_name(path.name.removeprefix(REPLACED))
            if target.exists():
                shutil.rmtree(path)
            else:
                path.rename(target)


def samples_of(folder: Path) -> int:
    """Return the number of samples seen at a checkpoint, from its folder's name."""
    return int(folder.name.removeprefix(REPLACED).removeprefix(ASIDE))


def saved_by_clock(folder: Path) -> bool:
    """Whether a checkpoint is readable and was saved because of the elapsed time."""
    return _is_marked(folder, "by_clock")


def saved_only_as_best(folder: Path) -> bool:
    """Whether a checkpoint is readable and was saved only because it was the best so far."""
    return _is_marked(folder, "only_best")


def _is_marked(folder: Path, name: str) -> bool:
    try:
        return read_json(folder / INDEX)[name] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def looks_complete(folder: Path) -> bool:
    """Whether a checkpoint's files exist with the right sizes, without comparing hashes."""
    try:
        files = read_json(folder / INDEX)["files"]
        entries = [(name, each) for part in files.values() for name, each in part.items()]
        return all((folder / name).stat().st_size == each["bytes"] for name, each in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load(folder: Path, verify: bool = True, parts: Collection[str] | None = None, check: Check | None = None) -> State:
    """Load one checkpoint, or the given `parts` of it; `verify` compares the hashes of its tensor files first.

    Raises:
        VersionError: If the format version is unknown.
        CheckpointError: If a file is missing, truncated or altered.
    """
    path = folder / INDEX
    with _reading(path):
        index = read_json(path)
        version, samples, files, record = (index[key] for key in ("format_version", "samples", "files", "record"))
        if type(version) is not int or version != FORMAT_VERSION:
            raise VersionError(
                f"{path} has format version {version!r:.80}, but this program reads version {FORMAT_VERSION}: "
                "use the version of multisagd that wrote it, or train again in another run_dir"
            )
        if not isinstance(files, dict) or not isinstance(record, dict):
            raise ValueError("its entries have the wrong types")
        if type(samples) is not int or not 0 <= samples < MAX_SAMPLES:
            raise ValueError(f"{samples!r:.80} is not a number of samples seen")
        for part, entries in files.items():
            _check_names(part, entries)
    selected = {part: entries for part, entries in files.items() if parts is None or part in parts}
    shapes = {part: _shapes(folder, part, entries) for part, entries in selected.items()}
    if check is not None:
        check(shapes)
    tensors = {part: _tensors(folder, part, entries, verify) for part, entries in selected.items()}
    return State(samples, tensors, record, index.get("by_clock") is True, index.get("only_best") is True)


def part_files(folder: Path, part: str) -> list[str]:
    """Return the names of a part's files, relative to the checkpoint's folder."""
    shards = sorted(path.relative_to(folder).as_posix() for path in (folder / part).glob("*.safetensors"))
    return shards or [f"{part}.safetensors"]


def _check_names(part: str, files: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[\w-]+", part) or not isinstance(files, dict) or not files:
        raise ValueError(f"{part!r} is not a valid name for a part of a checkpoint")
    for name in files:
        if name != f"{part}.safetensors" and Path(name) != Path(part) / Path(name).name:
            raise ValueError(f"{name!r} is not a valid name for a file of the part {part}")


def _part_path(folder: Path, part: str, files: Mapping[str, Any]) -> Path:
    """Return the file of a part, or its folder of shards."""
    single = f"{part}.safetensors"
    return folder / single if single in files else folder / part


def _shapes(folder: Path, part: str, files: Mapping[str, Any]) -> Shapes:
    """Return the shapes of a part's tensors, after checking that its files have the sizes that their headers state."""
    path = _part_path(folder, part, files)
    with _reading(path):
        if path.is_dir():
            if sorted(files) != part_files(folder, part):
                raise ValueError("its files do not match the index")
            return ShardedTensors(path).shapes
        return {name: each.shape for name, each in read_header(path).items()}


def _tensors(folder: Path, part: str, files: Mapping[str, Any], verify: bool) -> Mapping[str, Tensor]:
    for name, entry in files.items() if verify else ():
        with _reading(path := folder / name):
            if path.stat().st_size != entry["bytes"]:
                raise ValueError(f"it has {path.stat().st_size} bytes instead of {entry['bytes']}")
            if digest(path) != entry["sha256"]:
                raise ValueError("its content was altered")
    with _reading(path := _part_path(folder, part, files)):
        return ShardedTensors(path) if path.is_dir() else read_tensors(path)


def _reading(path: Path) -> AbstractContextManager[None]:
    """Inside the context, add the name of the unreadable file and the remedy to errors."""
    folder = path.parent if path.parent.name.isdigit() else path.parent.parent  # a shard is one folder deeper
    remedy = f"): remove {folder} to continue from an earlier checkpoint"
    return as_recipe_error((OSError, ValueError, KeyError, TypeError), f"cannot read {path} (", remedy, CheckpointError)


def _contains(folder: Path, index: Mapping[str, Any]) -> bool:
    """Whether a folder contains a readable checkpoint with this index, and therefore with the same content."""
    with suppress(CheckpointError):
        load(folder)
        return bool(read_json(folder / INDEX) == as_stored(index))
    return False


def _flush(path: Path) -> None:
    """Flush a file or folder to disk, so that a later rename cannot precede its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
