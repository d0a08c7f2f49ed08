"""Read files that may come from someone else: runs, models, checkpoints and samples.

No file that is read here can run code, block this process, or use more memory than its size. A refused file raises
OSError or ValueError; the caller adds its name and the remedy.
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
"""Maximum size of a saved configuration, in bytes; YAML is slow to parse."""
WANDB_LOG = "wandb/*/logs/debug-core.log"
"""The link in a Weights & Biases record to the log of its process, which is outside the run folder."""


@dataclass(frozen=True)
class Stored:
    """The description of a tensor in the header of a safetensors file; `dtype` is the format's name, such as `F32`."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stored]:
    """Return the dtype and shape of each tensor in a safetensors file, by name, from its header."""
    # With framework="pt", the file would be mapped as writable.
    with _opened(path, "np") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, or those with the given `names`, as copies.

    They are copies because the file may be replaced later. Raises ValueError if a name is missing.
    """
    with _opened(path, "pt") as file:
        mapped = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    return {name: tensor.clone() for name, tensor in mapped.items()}


def read_rows(path: Path, name: str, count: int) -> Tensor:
    """Return the first `count` rows of a tensor in a safetensors file. Raises the same errors as `read_tensors`."""
    with _opened(path, "pt") as file:
        rows: Tensor = file.get_slice(name)[:count]
    return rows.clone()


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file. Tensors are copied outside the context: lack of memory is not reported as damage."""
    check_file(path)
    try:
        with safe_open(str(path), framework=framework) as file:
            yield file
    # Shapes that overflow in torch raise TypeError, or RuntimeError for 4-bit numbers.
    except (SafetensorError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def read_object(path: Path, finite: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file; `finite=False` also accepts NaN and Infinity, which Python writes.

    Raises ValueError if it is too large, nested too deeply, not JSON or not an object.
    """
    content = read_json(path, finite=finite)
    if not isinstance(content, dict):
        raise ValueError("its content is not a JSON object")
    return content


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the configuration in a YAML file.

    Only plain values are read: interpolations remain text, and tags and aliases are refused.

    Raises:
        RecipeError: If the file is missing, not a YAML mapping, too large or nested too deeply.
    """
    try:
        # A safe loader: it creates plain values only.
        config = yaml.load(read_text(path, LARGEST_CONFIGURATION), Loader=_Loader)
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        message = f"cannot read the run's configuration {path}: {' '.join(str(error).split())}"
        raise RecipeError(f"{message}. Restore the file that training wrote") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path} does not contain a configuration: restore the file that training wrote")
    return config


class _Loader(yaml.SafeLoader):
    """A YAML loader that accepts only what training writes.

    It refuses duplicate names, deep nesting, and aliases, a few lines of which could expand to billions of values.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; refuse aliases and deep nesting."""
        self._depth += 1
        alias = self.check_event(yaml.AliasEvent)
        if alias or self._depth > DEEPEST:
            reason = "an alias (*): write the values out" if alias else "it is nested too deeply"
            raise yaml.composer.ComposerError(None, None, reason, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return an integer; refuse one with too many digits.

        Python refuses to print numbers of thousands of digits, and some YAML notations are slow to parse.
        """
        number = super().construct_yaml_int(node) if len(node.value) <= DIGITS else 10**DIGITS
        if abs(number) >= 10**DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number with too many digits", node.start_mark)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; refuse duplicate names."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a duplicate name in one group", node.start_mark)
        return mapping


# PyYAML looks up constructors in a table, not by method name.
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def inside(path: Path, folder: Path) -> bool:
    """Whether a path resolves to a location inside a folder: no file outside it may be copied or overwritten."""
    return path.resolve().is_relative_to(folder.resolve())


def check_own(folder: Path, root: Path) -> None:
    """Check that files written to `folder` cannot end up outside `root`, or outside `folder` if that is not in `root`.

    A folder from someone else may contain symbolic links to files outside it, and pipes, which block the writer. The
    root itself may be a link. The link that Weights & Biases leaves in each of its records, to its own log, is also
    allowed: nothing is written through it again.

    Raises:
        RecipeError: If there is such a link or pipe; the message names the first one.
    """
    if root in folder.parents:
        for each in (folder, *folder.parents[: folder.parents.index(root)]):
            _check_entry(each, root)
    else:
        root = folder
    # Links are checked but not followed, so the walk terminates.
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _check_entry(Path(parent, name), root)


def _check_entry(path: Path, root: Path) -> None:
    if path.is_symlink() and not inside(path, root) and not path.match(WANDB_LOG):
        problem = f"{path} is a symbolic link to {path.resolve()}, outside of {root}, where this command must not write"
        hint = "if space is short, move the entire folder and link to it"
        raise RecipeError(f"{problem}: replace it with its target ({hint})")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RecipeError(f"{path} is a pipe or a device, not a file: remove it")
