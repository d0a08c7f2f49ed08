"""Checkpoints: tensors in safetensors, everything else in JSON, nothing that can execute code.

    checkpoints/000000064000/network.safetensors, ema.safetensors, optimizer.safetensors, checkpoint.json

Sharded tensors are written by all ranks, each its own, into a folder in place of a file: network/shard-…safetensors.
A checkpoint is written into a temporary folder next to the others, flushed to disk and renamed: it is there completely
or not at all. One that it replaces is moved aside before and removed after, so that no moment is without either.
Where there are several ranks, every one calls `save` and `latest`; the first decides.

`checkpoint.json` holds the format version, and size and SHA-256 of every tensor file. That finds what was damaged, not
what was made to harm: whoever wrote the tensors may have written their sums too. So names, kinds and headers of files
are checked before any of them is read, and who knows the network can look at the shapes before tensors are.
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
MOST_SAMPLES = 10**18
"""Beyond any training, and within what a tensor can count."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names."""
Check = Callable[[Mapping[str, Shapes]], None]
"""Looks at the shapes of every part before its tensors are read, and raises what speaks against that."""
log = logging.getLogger("multisagd")


@dataclass
class State:
    """All that a run needs to continue: named groups of tensors, and a record that JSON can hold.

    `samples` is the number of samples seen in training, the only clock of what is learned; `by_clock` says that this
    state was saved because of the time that had passed, and not because of its samples.
    """

    samples: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    record: dict[str, Any] = field(default_factory=dict)
    by_clock: bool = False


class CheckpointError(RecipeError):
    """A checkpoint that cannot be read; the message names the file and the remedy."""


class VersionError(CheckpointError):
    """A checkpoint of a format this version of the program does not know."""


class SaveError(RecipeError):
    """A checkpoint that cannot be written; the message names the folder and what is left."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Saving keeps the last `keep`, and for good the first at or after every multiple of `keep_every` samples (0: none).
    Those by the clock count among the last alone, and the last that is none stays beside them, so that training can
    always go back to a state that does not depend on how fast it went. Ranks meet in `group`.
    """

    folder: Path
    keep: int = 2
    keep_every: int = 0
    group: Group = None

    def save(self, state: State) -> Path:
        """Write a checkpoint unless this very one is there, drop those not to be kept; return its folder.

        Raises:
            SaveError: if it cannot be written, a full disk for example; what was there before is still there.
            FailedElsewhereError: if another rank cannot write its part.
        """
        target = self.place(state.samples)
        temporary = self.folder / f"{WRITING}{target.name}"
        for stage in (self._begin, self._write, self._commit):
            problem = None
            try:
                stage(state, temporary, target)
            except (OSError, SafetensorError) as error:
                problem = SaveError(self._failed(target, error))
                if is_first():
                    shutil.rmtree(temporary, ignore_errors=True)
            raise_together(problem, self.group)
        return target

    def _begin(self, state: State, temporary: Path, target: Path) -> None:
        if is_first():
            self._clear_leftovers()
            self.folder.mkdir(exist_ok=True)  # and not the run's folder: one that has vanished is not made up
            temporary.mkdir()

    def _write(self, state: State, temporary: Path, target: Path) -> None:
        for part, tensors in state.tensors.items():
            if are_sharded(tensors):
                save_shards(tensors, temporary / part, self.group)
            elif is_first():
                whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                safetensors.torch.save_file(whole, temporary / f"{part}.safetensors")

    def _commit(self, state: State, temporary: Path, target: Path) -> None:
        """Give complete tensor files their index and their place."""
        if not is_first():
            return
        files: dict[str, dict[str, Any]] = {part: {} for part in state.tensors}
        for part, facts in files.items():
            for name in part_files(temporary, part):
                facts[name] = {"bytes": (temporary / name).stat().st_size, "sha256": digest(temporary / name)}
        index = {
            "format_version": FORMAT_VERSION, "samples": state.samples, "by_clock": state.by_clock,
            "files": files, "record": state.record,
        }  # fmt: skip
        (temporary / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        if _holds(target, index):
            shutil.rmtree(temporary)
            return
        for path in (*temporary.rglob("*"), temporary):
            _flush(path)
        if target.exists():  # an unreadable one that this run fell back from, or the same weights with another record
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
        firsts: dict[int, Path] = {}
        for path in counted if self.keep_every else ():
            firsts.setdefault(samples_of(path) // self.keep_every, path)
        kept = {path for multiple, path in firsts.items() if multiple > 0} | {newest, *counted[-1:]}
        return [path for path in folders[: -self.keep] if path not in kept]

    def _failed(self, target: Path, error: Exception) -> str:
        free = shutil.disk_usage(self.folder if self.folder.exists() else target.anchor or ".").free
        last = self.newest(but=target)
        return f"cannot write the checkpoint {target} ({error}; {free / 2**20:,.0f} MiB are free): make room. " + (
            f"The last one that is whole is {last.name}" if last else "There is none before it"
        )

    def place(self, samples: int) -> Path:
        """Return the folder of the checkpoint after so many samples, whether it is there or not."""
        return self.folder / f"{samples:012d}"

    def newest(self, but: Path | None = None) -> Path | None:
        """Return the newest that looks whole: its files are there, as long as they should be (sums take minutes)."""
        return next((path for path in reversed(self.folders()) if path != but and looks_whole(path)), None)

    def set_aside(self, samples: int) -> list[Path]:
        """Put aside the checkpoints after so many samples, from where a run goes on; return where they lay.

        They are unreadable, or of a future that will not be. If they stayed they would be kept in place of newer ones
        that are whole, and one that can be read again by then would be taken for the newest. They are removed once
        training has passed them.
        """
        newer = [path for path in self.folders() if samples_of(path) > samples] if is_first() else []
        for path in newer:
            aside = self.folder / f"{ASIDE}{samples_of(path):012d}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        return newer

    def folders(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first, with one moved aside that nothing has replaced."""
        aside = {path.name.removeprefix(REPLACED): path for path in self.folder.glob(f"{REPLACED}*")}
        placed = {path.name: path for path in self.folder.glob("[0-9]*") if path.is_dir()}
        return [path for name, path in sorted((aside | placed).items()) if re.fullmatch("[0-9]{12,18}", name)]

    def latest(
        self, parts: Collection[str] | None = None, check: Check | None = None, counted: bool = False
    ) -> State | None:
        """Load the newest readable checkpoint, or only some parts of it; None if there is none at all.

        `check` is called by the first rank, for each checkpoint that is looked at. An unreadable one is passed over
        with a warning that names it. If it should be one `counted` in samples, those by the clock come last.

        Raises:
            CheckpointError: if there are checkpoints and none can be read, or one has an unknown format version.
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
            f"{self.folder} on this machine does not hold the checkpoint after {int(samples):,} samples that the first "
            "process found there: run_dir must be a folder that all machines share"
        )

    def chosen(self, samples: int, parts: Collection[str] | None = None, check: Check | None = None) -> State:
        """Load the checkpoint after so many samples, or only some parts of it; `check` is as for `latest`.

        Raises:
            CheckpointError: if it is not there, naming those that are, or cannot be read.
        """
        folders = {samples_of(path): path for path in self.folders()}
        if samples not in folders:
            known = ", ".join(map(str, folders)) or "none yet"
            raise CheckpointError(f"there is no checkpoint after {samples} samples in {self.folder}; there are {known}")
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
                log.warning("%s; falling back to the checkpoint before it", error)
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.folder} can be read: remove that folder to start over"
            )
        return None

    def _clear_leftovers(self) -> None:
        """Remove half-written and replaced checkpoints; put back one whose replacement was killed half-way."""
        for path in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(path)
        for path in self.folder.glob(f"{REPLACED}*"):
            target = path.with_name(path.name.removeprefix(REPLACED))
            if target.exists():
                shutil.rmtree(path)
            else:
                path.rename(target)


def samples_of(folder: Path) -> int:
    """Return after how many samples a checkpoint was saved."""
    return int(folder.name.removeprefix(REPLACED).removeprefix(ASIDE))


def saved_by_clock(folder: Path) -> bool:
    """Whether a checkpoint was saved because of the time that had passed; False for one that cannot be read."""
    try:
        return read_json(folder / INDEX)["by_clock"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def looks_whole(folder: Path) -> bool:
    """Whether a checkpoint's files are there and as long as they should be; their sums are not compared."""
    try:
        files = read_json(folder / INDEX)["files"]
        facts = [(name, each) for part in files.values() for name, each in part.items()]
        return all((folder / name).stat().st_size == each["bytes"] for name, each in facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load(folder: Path, verify: bool = True, parts: Collection[str] | None = None, check: Check | None = None) -> State:
    """Load one checkpoint, or only some parts of it, the tensor files verified unless another rank has done so.

    Raises:
        VersionError: for an unknown format version.
        CheckpointError: for a missing, truncated or altered file.
    """
    path = folder / INDEX
    with _reading(path):
        index = read_json(path)
        version, samples, files, record = (index[key] for key in ("format_version", "samples", "files", "record"))
        if type(version) is not int or version != FORMAT_VERSION:
            raise VersionError(
                f"{path} has format version {version!r:.80}, this program reads version {FORMAT_VERSION}: "
                "use the version of multisagd that wrote it, or train anew in another run_dir"
            )
        if not isinstance(files, dict) or not isinstance(record, dict):
            raise ValueError("its entries have the wrong form")
        if type(samples) is not int or not 0 <= samples < MOST_SAMPLES:
            raise ValueError(f"{samples!r:.80} is no number of samples seen")
        for part, facts in files.items():
            _check_names(part, facts)
    chosen = {part: facts for part, facts in files.items() if parts is None or part in parts}
    shapes = {part: _shapes(folder, part, facts) for part, facts in chosen.items()}
    if check is not None:
        check(shapes)
    tensors = {part: _tensors(folder, part, facts, verify) for part, facts in chosen.items()}
    return State(samples, tensors, record, index.get("by_clock") is True)


def part_files(folder: Path, part: str) -> list[str]:
    """Return the files of a part, relative to the checkpoint's folder."""
    shards = sorted(path.relative_to(folder).as_posix() for path in (folder / part).glob("*.safetensors"))
    return shards or [f"{part}.safetensors"]


def _check_names(part: str, files: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[\w-]+", part) or not isinstance(files, dict) or not files:
        raise ValueError(f"{part!r} is not the name of a part")
    for name in files:
        if name != f"{part}.safetensors" and Path(name) != Path(part) / Path(name).name:
            raise ValueError(f"{name!r} is not the name of a file of {part}")


def _place(folder: Path, part: str, files: Mapping[str, Any]) -> Path:
    """Return the file of a part, or its folder of shards."""
    single = f"{part}.safetensors"
    return folder / single if single in files else folder / part


def _shapes(folder: Path, part: str, files: Mapping[str, Any]) -> Shapes:
    """Return what the headers of a part say; files have the size that their headers ask for, so that bounds memory."""
    path = _place(folder, part, files)
    with _reading(path):
        if path.is_dir():
            if sorted(files) != part_files(folder, part):
                raise ValueError("its files are not those that the index names")
            return ShardedTensors(path).shapes
        return {name: each.shape for name, each in read_header(path).items()}


def _tensors(folder: Path, part: str, files: Mapping[str, Any], verify: bool) -> Mapping[str, Tensor]:
    for name, facts in files.items() if verify else ():
        with _reading(path := folder / name):
            if path.stat().st_size != facts["bytes"]:
                raise ValueError(f"it has {path.stat().st_size} bytes, expected {facts['bytes']}")
            if digest(path) != facts["sha256"]:
                raise ValueError("its content was altered")
    with _reading(path := _place(folder, part, files)):
        return ShardedTensors(path) if path.is_dir() else read_tensors(path)


def _reading(path: Path) -> AbstractContextManager[None]:
    """Say which file of a checkpoint it is that cannot be read, and the remedy."""
    folder = path.parent if path.parent.name.isdigit() else path.parent.parent  # a shard lies one deeper
    remedy = f"): remove {folder} to go on from an earlier checkpoint"
    return as_recipe_error((OSError, ValueError, KeyError, TypeError), f"cannot read {path} (", remedy, CheckpointError)


def _holds(folder: Path, index: Mapping[str, Any]) -> bool:
    """Whether a folder holds a readable checkpoint with this very index, and so the same content."""
    with suppress(CheckpointError):
        load(folder)
        return bool(read_json(folder / INDEX) == as_stored(index))
    return False


def _flush(path: Path) -> None:
    """Force a file or folder to disk, so that the rename which follows cannot overtake its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
