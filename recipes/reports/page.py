"""Blocks to one HTML page that holds all it needs: nothing is fetched, and no script runs but the page's own.

What the page says may come from a folder of someone else. Jinja escapes every text; beyond that the browser is told
(by a content security policy) to run and apply only the one script and the one style whose hashes are given.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from multisagd.addresses import without_secrets
from recipes.config.addresses import FROM_ENVIRONMENT
from recipes.reports.blocks import Page

GENERATOR = "multisagd report"
HEAD = 400
"""Characters at the beginning of a page among which its generator is named."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("recipes.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def render(page: Page, footer: str, hidden: Sequence[str] = ()) -> str:
    """Return a page as HTML, without what others should not read: secrets in addresses, and the texts `hidden`."""

    def shared(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
            return value
        for text in hidden:
            value = value.replace(text, FROM_ENVIRONMENT)
        return without_secrets(value)

    style, script = (_part(name) for name in ("page.css", "page.js"))
    return _environment().overlay(finalize=shared).get_template("page.html.j2").render(
        page=page, footer=footer, generator=GENERATOR, style=Markup(style), script=Markup(script),
        style_hash=_hash(style), script_hash=_hash(script),
    )  # fmt: skip


def is_report(text: str) -> bool:
    """Tell whether this is the beginning of a page that `render` made."""
    return f'<meta name="generator" content="{GENERATOR}">' in text[:HEAD]


def _part(name: str) -> str:
    return (files("recipes.reports") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
