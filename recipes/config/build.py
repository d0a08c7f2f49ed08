"""Build objects from a configuration, without executing arbitrary code that it names.

A `_target_` is a dotted path to a class (or to one of its class methods, such as `load`). An object is built only if
the class is in an allowed package and has the type expected at that key. Only the command line can allow more packages
(`allow_targets=[my_package]`), never a file that came with a checkpoint. Values are checked against the type hints of
the parameters that receive them, so that an error message can name the wrong key.
"""

import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from recipes.base.errors import MissingError, RecipeError, as_recipe_error, nearest
from recipes.config.addresses import check_addresses, strings
from recipes.config.groups import under

T = TypeVar("T")
PACKAGES = ("multisagd", "modalities", "recipes")
"""Packages that are always allowed."""
ADDRESSED = ("urls", "name")
"""Parameters that may be addresses or names on the Hub; a class that has one also has the parameter `trusted`."""
DOWNLOAD = "download"
CACHES = ("index", "cache")
"""Parameters that name cache folders."""
Nested = Callable[[Mapping[str, Any], tuple[type, ...], str], Any]
"""Builds the object that a mapping describes: `(mapping, types expected there, dotted key) -> object`."""


@dataclass(frozen=True)
class Builder:
    """Builds objects of expected types; `extra` are packages that the user allows in addition to the project's.

    For configurations that somebody else may have written, use the builder that `of_a_run` returns.
    """

    extra: tuple[str, ...] = ()
    repeated: frozenset[str] | None = None

    def of_a_run(self, *given: Any) -> Self:
        """Return a builder for a configuration that came with a run or model; the builder only reads plain paths.

        Objects that it builds fetch and write nothing, with two exceptions: an address is opened if it is among
        `given`, the values that the command line repeats, and a download is made if these contain `download: true`.
        """
        download = {DOWNLOAD for each in given if isinstance(each, Mapping) and each.get(DOWNLOAD) is True}
        return replace(self, repeated=frozenset(download | {text for _, text in strings(given, "")}))

    def build(self, node: Mapping[str, Any], expected: type[T], where: str, **context: Any) -> T:
        """Build the object that `node` describes.

        `context` contains values for parameters that the class has, but that the node omits or sets to null; for
        example, the configuration of a network need not repeat the channels of the modality.

        Raises:
            RecipeError: If the target is not allowed or does not have the expected type, a parameter is unknown,
                missing or of the wrong type, or the class itself refuses its arguments. The message names the key.
        """
        if self.repeated is not None:
            check_addresses(node, where, self.repeated)
        return cast(T, self._nested(node, (expected,), where, context))

    def settings(self, cls: type[T], node: Mapping[str, Any], where: str) -> T:
        """Build the dataclass `cls` from the keys of `node`, which is at the dotted key `where` ("" for the root).

        Raises the same errors as `build`.
        """
        return cast(T, self._construct(cls, node, where, {}))

    def check_keys(self, node: Mapping[str, Any], expected: type, where: str, keys: Iterable[str]) -> None:
        """Check that the class that `node` describes is allowed and takes these `keys`, without building an object."""
        _parameters(self.target(node, expected, where), keys, where)

    def target(self, node: Mapping[str, Any], expected: type, where: str) -> Callable[..., Any]:
        """Return the class (or class method) that `node` describes, without building an object."""
        return self._resolve(node.get("_target_"), (expected,), where)

    def _nested(
        self, node: Mapping[str, Any], expected: tuple[type, ...], where: str, context: Mapping[str, Any]
    ) -> Any:
        if not isinstance(node, Mapping):
            needed = f"a group of keys that describes a {_names(expected)}"
            raise RecipeError(f"{where}: expected {needed}, got {node!r:.80}")
        if node.get("_target_") is not None:
            target = self._resolve(node["_target_"], expected, where)
            built = self._construct(target, {k: v for k, v in node.items() if k != "_target_"}, where, context)
            if not any(_is_subclass(type(built), kind) for kind in expected):
                made = f"{node['_target_']} returned a {type(built).__name__}"
                raise RecipeError(f"{where}: {made}, expected {_names(expected)}")
            return built
        # An abstract base class cannot be built itself.
        if len(expected) == 1 and is_dataclass(expected[0]) and not expected[0].__subclasses__():
            return self._construct(expected[0], node, where, context)
        raise _no_target(where, expected)

    def _resolve(self, path: Any, expected: tuple[type, ...], where: str) -> Callable[..., Any]:
        if path is None:
            raise _no_target(where, expected)
        where = f"{where}._target_"
        allowed = (*PACKAGES, *self.extra)
        # The path is checked before the import, and the object after it: a module of this project also holds names
        # that it imported from elsewhere.
        if not isinstance(path, str) or not under(path, allowed):
            raise RecipeError(_refusal(where, str(path), str(path), allowed))
        if not all(part.isidentifier() for part in path.split(".")):
            raise RecipeError(f"{where}: {path!r} is not the import path of a {_names(expected)}")
        target = _import(path, where, allowed, self.extra)
        owner = target if inspect.isclass(target) else getattr(target, "__self__", None)
        if not inspect.isclass(owner) or not (target is owner or inspect.ismethod(target)):
            raise RecipeError(f"{where}: {path} is not a class; expected {_names(expected)}")
        if not under(owner.__module__, allowed):
            raise RecipeError(_refusal(where, path, f"{owner.__module__}.{owner.__qualname__}", allowed))
        if not any(_is_subclass(owner, kind) for kind in expected):
            raise RecipeError(f"{where}: {path} is not a {_names(expected)}")
        return cast(Callable[..., Any], target)

    def _construct(
        self, target: Callable[..., Any], values: Mapping[str, Any], where: str, context: Mapping[str, Any]
    ) -> Any:
        parameters = _parameters(target, values, where)
        hints, nested = _hints(target), partial(self._nested, context=context)
        arguments = {
            str(key): convert(value, hints.get(key, Any), f"{where}.{key}".removeprefix("."), nested)
            for key, value in values.items()
            if value is not None or context.get(key) is None
        }
        arguments |= {k: v for k, v in context.items() if k in parameters and k not in arguments}
        missing = [
            key for key, p in parameters.items()
            if key not in arguments and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]  # fmt: skip
        if missing:
            name, example = _name(target), f"{where}.{missing[0]}".removeprefix(".")
            message = f"{where or name}: {name} needs {', '.join(missing)}; for example {example}=…"
            raise MissingError(message, (*missing,))
        if self.repeated is not None:
            arguments |= {key: value for key, value in self._careful(values).items() if key in parameters}
        # Very large numbers may overflow in Python or torch; a library may be missing.
        kinds = (TypeError, ValueError, OSError, ImportError, ArithmeticError, MemoryError)
        with as_recipe_error(kinds, f"{where}: " if where else ""):
            return target(**arguments)

    def _careful(self, values: Mapping[str, Any]) -> dict[str, bool | None]:
        """Return the arguments that override those in a configuration from someone else."""
        addresses = {text for key in ADDRESSED for _, text in strings(values.get(key), "")}
        repeated = self.repeated or frozenset()
        careful = {"trusted": bool(addresses) and addresses <= repeated, DOWNLOAD: DOWNLOAD in repeated}
        return careful | {key: None for key in CACHES if careful["trusted"] and values.get(key) not in repeated}


def _parameters(target: Callable[..., Any], keys: Iterable[str], where: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class; every key must be one of them, unless the class takes `**kwargs`."""
    with as_recipe_error((TypeError, ValueError), f"{where}: {_name(target)} cannot be built from keys (", ")"):
        parameters = inspect.signature(target).parameters
    for key in () if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else keys:
        if key not in parameters:
            full_key, near = f"{where}.{key}".removeprefix("."), nearest(str(key), parameters)
            raise RecipeError(f"unknown key {full_key}: {_name(target)} has no parameter of that name{near}")
    return parameters


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__qualname__", str(target))


def _import(path: str, where: str, allowed: Sequence[str], extra: Sequence[str]) -> Any:
    """Import the longest module prefix of a dotted path, and return the object that the rest names by attributes.

    Private attributes and modules of other packages are refused: some import modules when an attribute is accessed.
    """
    here = str(Path.cwd())
    if extra and here not in sys.path:
        # A user's module may be in the working folder, which the console command does not search by default.
        sys.path.append(here)
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            value: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                continue
            raise RecipeError(f"{where}: importing {module_name} failed: {error}") from error
        for part in parts[cut:]:
            if inspect.ismodule(value) and not under(value.__name__, allowed):
                raise RecipeError(_refusal(where, path, value.__name__, allowed))
            if part.startswith("_"):
                raise RecipeError(f"{where}: {path} is private: {part} begins with _")
            if not hasattr(value, part):
                public = [name for name in dir(value) if not name.startswith("_")]
                raise RecipeError(f"{where}: {path} does not exist{nearest(part, public)}")
            value = getattr(value, part)
        return value
    raise RecipeError(f"{where}: {path} does not exist: there is no module {parts[0]!r}")


def _refusal(where: str, path: str, real: str, allowed: Sequence[str]) -> str:
    shown = path if path == real else f"{path} (which is {real})"
    return (
        f"{where}: {shown} is not under an allowed package ({', '.join(allowed)}). "
        f"If it is yours and you trust it, add allow_targets=[{real.split('.')[0]}] to the command"
    )


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        # Inherited fields of a dataclass are annotated in the module of the class that defines them.
        own = inspect.isclass(target) and not is_dataclass(target)
        return get_type_hints(target.__init__ if own else target)
    except NameError:  # annotations that exist for the type checker only
        return {}


def _no_target(where: str, expected: tuple[type, ...]) -> RecipeError:
    return RecipeError(f"{where} has no _target_; expected the import path of a {_names(expected)}")


def _names(kinds: Sequence[type]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _is_subclass(cls: type, kind: type) -> bool:
    """Whether a class is a subclass of `kind`, or defines its methods if `kind` is a protocol."""
    if not getattr(kind, "_is_protocol", False):
        return issubclass(cls, kind)
    methods = [name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")]
    return all(callable(getattr(cls, name, None)) for name in methods)


def convert(value: Any, hint: Any, where: str, nested: Nested) -> Any:
    """Return `value` converted to the type `hint`, such as a list to a tuple, 2.0 to 2, or a mapping to an object."""
    if isinstance(value, Mapping):
        return _mapping(value, hint, where, nested)
    if hint is Any or hint is object:
        return value
    for option in _options(hint):
        fits, converted = _try(value, option, where, nested)
        if fits:
            return converted
    raise RecipeError(f"{where}: expected {describe(hint)}, got {value!r:.200}")


def describe(hint: Any) -> str:
    """Return a readable description of a type hint."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    options = _options(hint)
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    names = {type(None): "null", int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin = get_origin(hint)
    if origin in (dict, Mapping):
        return "a group of keys such as {key: value}"
    if origin in (tuple, list, Sequence):
        parts = get_args(hint)
        inner = [f"entries, each {describe(part)}" if get_origin(part) is Literal else describe(part)
                 for part in parts if part is not Ellipsis]  # fmt: skip
        size = f"{len(parts)} entries: " if origin is tuple and parts and Ellipsis not in parts else ""
        return f"a list of {size}{' and '.join(dict.fromkeys(inner))}" if inner else "a list"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _try(value: Any, hint: Any, where: str, nested: Nested) -> tuple[bool, Any]:
    """Return whether a value fits a hint that is not a union, and the converted value."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint), value
    if hint in (None, type(None)):
        return value is None, None
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool), value
    if hint is int:
        is_integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return is_integer, int(value) if is_integer else None
    if hint is float:
        # NaN would pass every range check, because all comparisons with it are false.
        number = isinstance(value, float) and not math.isnan(value)
        number = number or (isinstance(value, int) and abs(value) <= sys.float_info.max)
        return number, float(value) if number else None
    if hint is Path:
        return isinstance(value, str | Path), Path(value) if isinstance(value, str | Path) else None
    if (origin or hint) in (tuple, list, Sequence):
        return _sequence(value, hint, where, nested)
    return isinstance(hint, type) and isinstance(value, hint), value


def _sequence(value: Any, hint: Any, where: str, nested: Nested) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    inner = get_args(hint)
    of_each = get_origin(hint) is tuple and inner and inner[-1] is not Ellipsis
    hints = inner if of_each else (inner[0] if inner else Any,) * len(value)
    if len(hints) != len(value):
        return False, None
    try:
        parts = [convert(*pair, f"{where}[{i}]", nested) for i, pair in enumerate(zip(value, hints, strict=True))]
    except RecipeError:
        if any(isinstance(part, Mapping) for part in value):
            raise
        return False, None
    return True, parts if (get_origin(hint) or hint) is list else tuple(parts)


def _mapping(value: Mapping[str, Any], hint: Any, where: str, nested: Nested) -> Any:
    options = [get_origin(option) or option for option in _options(hint)]
    if any(option in (dict, Mapping, Any) for option in options):
        kinds_of_values = [get_args(option)[1:] for option in _options(hint) if get_origin(option) in (dict, Mapping)]
        kind = kinds_of_values[0][0] if kinds_of_values else Any
        return {key: convert(each, kind, f"{where}.{key}", nested) for key, each in value.items()}
    # A type hint such as Callable expects a callable object.
    kinds = tuple(option for option in options if isinstance(option, type) and option.__module__ != "builtins")
    if not kinds:
        raise RecipeError(f"{where}: expected {describe(hint)}, got a group of keys ({', '.join(map(str, value))})")
    return nested(value, kinds, where)
