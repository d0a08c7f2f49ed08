"""Refuse addresses in a configuration that came with a run or model, unless the command line repeats them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from multisagd.addresses import is_address, without_secrets
from recipes.base.errors import RecipeError
from recipes.config.groups import flatten
from recipes.config.sources import own_key

FROM_ENVIRONMENT = "(from the environment)"
PATTERNS = ("match", "pattern")
"""Keys whose values are regular expressions, which may look like addresses."""


def check_addresses(node: Any, where: str, repeated: Collection[str]) -> None:
    """Raise RecipeError for the first address in a configuration group that is not among the `repeated` ones."""
    for key, text in strings(node, where):
        if is_address(text) and text not in repeated and key.rsplit(".", 1)[-1] not in PATTERNS:
            shown, remedy = without_secrets(text)[:200], "Use a folder or file on this machine instead"
            if key.startswith("data.") and own_key(key).count(".") == 1:
                remedy = f"If you trust it, repeat it: add \"{key}='{shown}'\" to the command"
            rule = "a configuration that came with a run opens files on this machine by their plain paths"
            raise RecipeError(f"{key}={shown}: {rule}, and must not contact any other address. {remedy}")


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that may be published: without secrets in addresses, and without environment values."""
    return dict(mapped(config, without_secrets, frozenset(_hidden(config))))


def hidden_values(config: Mapping[str, Any]) -> list[str]:
    """Return the strings in a configuration that come from environment variables, longest first."""
    flat = flatten(config)
    values = {text for key in _hidden(config) for _, text in strings(flat.get(key), key) if len(text) > 3}
    return sorted(values, key=len, reverse=True)


def mapped(node: Any, change: Callable[[str], str], hidden: Collection[str] = (), where: str = "") -> Any:
    """Return nested values with `change` applied to every string, and values at the dotted keys `hidden` replaced."""
    if where in hidden:
        return FROM_ENVIRONMENT
    if isinstance(node, str):
        return change(node)
    if isinstance(node, Mapping):
        return {key: mapped(each, change, hidden, f"{where}.{key}".removeprefix(".")) for key, each in node.items()}
    return [mapped(each, change) for each in node] if isinstance(node, list | tuple) else node


def _hidden(config: Mapping[str, Any]) -> list[str]:
    keys = config.get("environment")
    return [each for each in keys if isinstance(each, str)] if isinstance(keys, list | tuple) else []


def strings(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the value of every string in nested values; strings in a list have the list's key."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from strings(value, f"{where}.{key}".removeprefix("."))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from strings(value, where)
