"""The door for files that may come from someone else: runs, models, checkpoints and samples are read through it.

Nothing that is read here can run code, make this process wait, or take more memory than the file is long. What is
refused raises OSError or ValueError, so that readers say in their own words which file it was and what to do about it.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multisagd.files import DEEPEST, DIGITS, check_file, read_json, read_text
from recipes.base.errors import RecipeError

LARGEST_CONFIGURATION = 1 << 20
"""Maximum size of a saved configuration, in bytes: YAML is slow to read."""
WANDB_LOG = "wandb/*/logs/debug-core.log"
"""The link in a record of Weights & Biases to the log of the process that wrote it, among the user's own files."""


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its safetensors file describes it; `dtype` is the format's name, such as `F32`."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stored]:
    """Return what the header of a safetensors file says of its tensors, by name, without reading them."""
    # With the framework torch, the file would be mapped as if it were to be written.
    with _opened(path, "np") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or those of some names, as copies: the file may be replaced later.

    ValueError is raised also where it has no tensor of a name.
    """
    with _opened(path, "pt") as file:
        mapped = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    return {name: tensor.clone() for name, tensor in mapped.items()}


def read_rows(path: Path, name: str, count: int) -> Tensor:
    """Return the first `count` rows of a tensor in a safetensors file; ValueError as in `read_tensors`."""
    with _opened(path, "pt") as file:
        rows: Tensor = file.get_slice(name)[:count]
    return rows.clone()


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file; what it maps is copied after that, so that a lack of memory is not called damage."""
    check_file(path)
    try:
        with safe_open(str(path), framework=framework) as file:
            yield file
    # Shapes beyond what torch counts are a TypeError, and with numbers of four bits a RuntimeError.
    except (SafetensorError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def read_object(path: Path, finite: bool = True) -> dict[str, Any]:
    """Return the object that a JSON file holds; `finite` False takes NaN and Infinity too, which Python writes.

    ValueError is raised where it is too large, nested too deeply, not JSON or not an object.
    """
    found = read_json(path, finite=finite)
    if not isinstance(found, dict):
        raise ValueError("its content is not what it should be")
    return found


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the configuration that a YAML file holds.

    It holds values and nothing else: what looks like an interpolation is a text, and tags and aliases are refused.

    Raises:
        RecipeError: if the file is missing, is not a YAML mapping, or is larger or deeper than any that is written.
    """
    try:
        # A safe loader: it makes plain values only.
        config = yaml.load(read_text(path, LARGEST_CONFIGURATION), Loader=_Loader)
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        message = f"cannot read the run's configuration {path}: {' '.join(str(error).split())}"
        raise RecipeError(f"{message}. Restore the file that training wrote") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path} does not hold a configuration")
    return config


class _Loader(yaml.SafeLoader):
    """Reads what training writes: no alias, by which a few lines stand for billions, and every name once."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node, unless it is one that is never written."""
        self._depth += 1
        alias = self.check_event(yaml.AliasEvent)
        if alias or self._depth > DEEPEST:
            reason = "an alias (*): write the values out" if alias else "it is nested too deeply"
            raise yaml.composer.ComposerError(None, None, reason, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer, unless it has more digits than make sense.

        Python refuses to print numbers of thousands of digits, and YAML has notations that take long to read.
        """
        found = super().construct_yaml_int(node) if len(node.value) <= DIGITS else 10**DIGITS
        if abs(found) >= 10**DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping of names, each of them there once."""
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a name is there twice in one group", node.start_mark)
        return found


# PyYAML finds constructors in a table, not by name.
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def inside(path: Path, folder: Path) -> bool:
    """Whether a path in a folder leads to something that lies in it, so that no other file is carried away."""
    return path.resolve().is_relative_to(folder.resolve())


def check_own(folder: Path, root: Path) -> None:
    """Check that whatever is written into `folder`, which may lie in `root`, ends up in there.

    A folder from elsewhere may hold links to files outside it, and pipes, which wait for a reader. The root itself may
    be a link. So may the link be that Weights & Biases leaves in each of its records, to a log of its own: nothing is
    written there again.

    Raises:
        RecipeError: naming the first entry that is either.
    """
    if root in folder.parents:
        for each in (folder, *folder.parents[: folder.parents.index(root)]):
            _check_entry(each, root)
    else:
        root = folder
    # Links are not followed, so this ends, and they are judged themselves.
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _check_entry(Path(parent, name), root)


def _check_entry(path: Path, root: Path) -> None:
    if path.is_symlink() and not inside(path, root) and not path.match(WANDB_LOG):
        leads = f"{path} is a link to {path.resolve()}, outside of {root}, where this command would write"
        room = "where space is short, move the whole folder, and link to that"
        raise RecipeError(f"{leads}: replace it by what it leads to ({room})")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RecipeError(f"{path} is a pipe or a device and not a file: remove it")
