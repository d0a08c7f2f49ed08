"""Checkpoints: tensors in safetensors, everything else in JSON, nothing that can execute code.

    checkpoints/000000064000/network.safetensors, ema.safetensors, optimizer.safetensors, checkpoint.json

Sharded tensors are written by all ranks, each its own, into a folder in place of a file: network/shard-…safetensors.
A checkpoint is written into a temporary folder beside the others, flushed to disk and renamed: it is there completely
or not at all. One that it replaces is moved aside before and removed after, so that no moment is without either.
`checkpoint.json` holds the format version, and size and SHA-256 of every tensor file. That finds what was damaged, not
what was made to harm: whoever wrote the tensors may have written their sums too. So names, kinds and headers of files
are checked before any of them is read, and who knows the network can look at the shapes before tensors are. Where there
are several ranks, every one calls `save` and `latest`; the first decides.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multisagd.files import check_file, digest, read_json
from recipes.engine.distribution import Group, from_first, is_first, raise_together, wait_patiently
from recipes.engine.errors import RecipeError
from recipes.engine.shards import ShardedTensors, are_sharded, save_shards

FORMAT_VERSION = 2
READABLE = (1, 2)  # the first knew no shards
INDEX = "checkpoint.json"
WRITING, REPLACED = ".writing-", ".replaced-"
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

    `samples` is the number of samples seen in training, the only clock.
    """

    samples: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    record: dict[str, Any] = field(default_factory=dict)


class CheckpointError(RecipeError):
    """A checkpoint that cannot be read; the message names the file and the remedy."""


class SaveError(RecipeError):
    """A checkpoint that cannot be written; the message names the folder and what is left."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Saving keeps the last `keep`, and for good the first at or after every multiple of `keep_every` samples (0: none).
    Ranks meet in `group`.
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
        target = self.folder / f"{state.samples:012d}"
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
            temporary.mkdir(parents=True)

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
        files = {part: {name: _facts(temporary / name) for name in _names(temporary, part)} for part in state.tensors}
        index = {"format_version": FORMAT_VERSION, "samples": state.samples, "files": files, "record": state.record}
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
        for old in self._superfluous():
            shutil.rmtree(old)

    def _superfluous(self) -> list[Path]:
        folders = self.folders()
        firsts: dict[int, Path] = {}
        for path in folders if self.keep_every else ():
            firsts.setdefault(_samples(path) // self.keep_every, path)
        kept = {path for multiple, path in firsts.items() if multiple > 0}
        return [path for path in folders[: -self.keep] if path not in kept]

    def _failed(self, target: Path, error: Exception) -> str:
        free = shutil.disk_usage(self.folder if self.folder.exists() else target.anchor or ".").free
        last = [path.name for path in self.folders() if path != target]
        return f"cannot write the checkpoint {target} ({error}; {free / 2**20:,.0f} MiB are free): make room. " + (
            f"The last one that is whole is {last[-1]}" if last else "There is none before it"
        )

    def folders(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first, with one moved aside that nothing has replaced."""
        aside = {path.name.removeprefix(REPLACED): path for path in self.folder.glob(f"{REPLACED}*")}
        placed = {path.name: path for path in self.folder.glob("[0-9]*") if path.is_dir()}
        return [path for name, path in sorted((aside | placed).items()) if re.fullmatch("[0-9]{12,18}", name)]

    def latest(self, parts: Collection[str] | None = None, check: Check | None = None) -> State | None:
        """Load the newest readable checkpoint, or only some parts of it; None if there is none at all.

        `check` is called by the first rank, for each checkpoint that is looked at. An unreadable one is passed over
        with a warning that names it.

        Raises:
            CheckpointError: if there are checkpoints and none can be read, or one has an unknown format version.
        """
        state = self._latest(parts, check) if is_first() else None
        wait_patiently()
        samples = torch.tensor(-1 if state is None else state.samples)
        from_first(samples)
        if is_first() or samples < 0:
            return state
        for path in self.folders():
            if _samples(path) == samples:
                return load(path, verify=False, parts=parts)
        raise CheckpointError(
            f"{self.folder} on this machine does not hold the checkpoint after {int(samples):,} samples that the first "
            "process found there: run_dir must be a folder that all machines share"
        )

    def _latest(self, parts: Collection[str] | None, check: Check | None) -> State | None:
        folders = self.folders()
        for folder in reversed(folders):
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


def _samples(folder: Path) -> int:
    return int(folder.name.removeprefix(REPLACED))


class VersionError(CheckpointError):
    """A checkpoint of a format this version of the program does not know."""


def load(folder: Path, verify: bool = True, parts: Collection[str] | None = None, check: Check | None = None) -> State:
    """Load one checkpoint, or only some parts of it, the tensor files verified unless another rank has done so.

    Raises:
        VersionError: for an unknown format version.
        CheckpointError: for a missing, truncated or altered file.
    """
    try:
        index = read_json(folder / INDEX)
        version, samples, files = index["format_version"], index["samples"], index["files"]
        record = index["record"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(_unreadable(folder / INDEX, error)) from error
    if type(version) is not int or version not in READABLE:
        raise VersionError(
            f"{folder / INDEX} has format version {version!r:.80}, this program reads versions up to {FORMAT_VERSION}: "
            "use the version of multisagd that wrote it, or train anew in another run_dir"
        )
    if not isinstance(files, dict) or not isinstance(record, dict):
        raise CheckpointError(_unreadable(folder / INDEX, "its entries have the wrong form"))
    if type(samples) is not int or not 0 <= samples < MOST_SAMPLES:
        raise CheckpointError(_unreadable(folder / INDEX, f"{samples!r:.80} is no number of samples seen"))
    if version == 1:
        files = {part: {f"{part}.safetensors": facts} for part, facts in files.items()}
    for part, facts in files.items():
        _check_names(folder, part, facts)
    chosen = {part: facts for part, facts in files.items() if parts is None or part in parts}
    shapes = {part: _shapes(folder, part, facts) for part, facts in chosen.items()}
    if check is not None:
        check(shapes)
    return State(samples, {part: _load_part(folder, part, facts, verify) for part, facts in chosen.items()}, record)


def _holds(folder: Path, index: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds a readable checkpoint with this very index, and so the same content."""
    try:
        load(folder)
        return bool(read_json(folder / INDEX) == json.loads(json.dumps(index)))
    except CheckpointError:
        return False


def _names(folder: Path, part: str) -> list[str]:
    """Return the files of a part, relative to the checkpoint's folder."""
    shards = sorted(path.relative_to(folder).as_posix() for path in (folder / part).glob("*.safetensors"))
    return shards or [f"{part}.safetensors"]


def _check_names(folder: Path, part: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    if Path(part).name != part or not isinstance(files, dict) or not files:
        raise CheckpointError(_unreadable(folder / INDEX, f"{part!r} is not the name of a part"))
    if strange := [
        name for name in files if name != f"{part}.safetensors" and Path(name) != Path(part) / Path(name).name
    ]:
        raise CheckpointError(_unreadable(folder / INDEX, f"{strange[0]!r} is not the name of a file of {part}"))


def _shapes(folder: Path, part: str, files: Mapping[str, Mapping[str, Any]]) -> Shapes:
    """Return what the headers of a part say; files have the size that their headers ask for, so that bounds memory."""
    path = _place(folder, part, files)
    try:
        for name in files:
            check_file(folder / name)
        if path.is_dir():
            if sorted(files) != _names(folder, part):
                raise ValueError("its files are not those that the index names")
            return ShardedTensors(path).shapes
        with safe_open(path, framework="np") as file:  # for torch the file would be mapped as if it were to be written
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _load_part(folder: Path, part: str, files: Mapping[str, Mapping[str, Any]], verify: bool) -> Mapping[str, Tensor]:
    for name, facts in files.items() if verify else ():
        _verify(folder / name, facts)
    path = _place(folder, part, files)
    try:
        if path.is_dir():
            return ShardedTensors(path)
        # Copies, because what safetensors returns is the mapped file itself, which a later checkpoint may replace.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _place(folder: Path, part: str, files: Mapping[str, Any]) -> Path:
    """Return the file of a part, or its folder of shards."""
    single = f"{part}.safetensors"
    return folder / single if single in files else folder / part


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def _verify(path: Path, facts: Mapping[str, Any]) -> None:
    try:
        if path.stat().st_size != facts["bytes"]:
            raise CheckpointError(_unreadable(path, f"it has {path.stat().st_size} bytes, expected {facts['bytes']}"))
        if digest(path) != facts["sha256"]:
            raise CheckpointError(_unreadable(path, "its content was altered"))
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _unreadable(path: Path, reason: object) -> str:
    folder = path.parent if path.parent.name.isdigit() else path.parent.parent  # a shard lies one deeper
    return f"cannot read {path} ({reason}): remove {folder} to go on from an earlier checkpoint"


def _flush(path: Path) -> None:
    """Force a file or folder to disk, so that the rename which follows cannot overtake its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
