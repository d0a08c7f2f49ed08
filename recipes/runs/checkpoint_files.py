"""One checkpoint as it lies in its folder: what its index says, and its tensors, read and checked.

`checkpoint.json` holds the format version, and size and SHA-256 of every tensor file. That finds what was damaged, not
what was made to harm: whoever wrote the tensors may have written their sums too. So names, kinds and headers of files
are checked before any of them is read, and who knows the network can look at the shapes before tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from multisagd.files import digest, read_json
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_header, read_tensors
from recipes.runs.sharded import ShardedTensors

FORMAT_VERSION = 1
INDEX = "checkpoint.json"
MOST_SAMPLES = 10**18
"""Beyond any training, and within what a tensor can count."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names."""
Check = Callable[[Mapping[str, Shapes]], None]
"""Looks at the shapes of every part before its tensors are read, and raises what speaks against that."""


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


def saved_by_clock(folder: Path) -> bool:
    """Tell whether the time of day had a checkpoint saved; one that cannot be read was not."""
    try:
        return read_json(folder / INDEX)["by_clock"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def looks_whole(folder: Path) -> bool:
    """Tell whether a checkpoint's files are there and as long as they should be; their sums are not compared."""
    try:
        files = read_json(folder / INDEX)["files"]
        facts = [(name, each) for part in files.values() for name, each in part.items()]
        return all((folder / name).stat().st_size == each["bytes"] for name, each in facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


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
    if type(version) is not int or version != FORMAT_VERSION:
        raise VersionError(
            f"{folder / INDEX} has format version {version!r:.80}, this program reads version {FORMAT_VERSION}: "
            "use the version of multisagd that wrote it, or train anew in another run_dir"
        )
    if not isinstance(files, dict) or not isinstance(record, dict):
        raise CheckpointError(_unreadable(folder / INDEX, "its entries have the wrong form"))
    if type(samples) is not int or not 0 <= samples < MOST_SAMPLES:
        raise CheckpointError(_unreadable(folder / INDEX, f"{samples!r:.80} is no number of samples seen"))
    for part, facts in files.items():
        _check_names(folder, part, facts)
    chosen = {part: facts for part, facts in files.items() if parts is None or part in parts}
    shapes = {part: _shapes(folder, part, facts) for part, facts in chosen.items()}
    if check is not None:
        check(shapes)
    tensors = {part: _load_part(folder, part, facts, verify) for part, facts in chosen.items()}
    return State(samples, tensors, record, index.get("by_clock") is True)


def part_files(folder: Path, part: str) -> list[str]:
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
        if path.is_dir():
            if sorted(files) != part_files(folder, part):
                raise ValueError("its files are not those that the index names")
            return ShardedTensors(path).shapes
        return {name: each.shape for name, each in read_header(path).items()}
    except (OSError, ValueError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _load_part(folder: Path, part: str, files: Mapping[str, Mapping[str, Any]], verify: bool) -> Mapping[str, Tensor]:
    for name, facts in files.items() if verify else ():
        _verify(folder / name, facts)
    path = _place(folder, part, files)
    try:
        if path.is_dir():
            return ShardedTensors(path)
        return read_tensors(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _place(folder: Path, part: str, files: Mapping[str, Any]) -> Path:
    """Return the file of a part, or its folder of shards."""
    single = f"{part}.safetensors"
    return folder / single if single in files else folder / part


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
