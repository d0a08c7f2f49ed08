"""The page: blocks of plain data, and one HTML file drawn from them that holds all it needs.

Each block is drawn by the macro of the same name in `blocks.html.j2`. Texts may come from a folder of someone else.
Jinja escapes every one; beyond that a content security policy lets the browser run and apply only the one script and
the one style whose hashes are given. Nothing is fetched.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from multisagd.addresses import without_secrets
from recipes.base.errors import RecipeError
from recipes.config.addresses import FROM_ENVIRONMENT
from recipes.plotting.curves import Chart
from recipes.reports.run import shortened

GENERATOR = "multisagd report"
HEAD = 400
"""Characters at the beginning of a page among which its generator is named."""


@dataclass(frozen=True)
class Note:
    """A remark, or what is missing, and the command that would make it."""

    kind: ClassVar[str] = "note"
    text: str
    command: str | None = None


@dataclass(frozen=True)
class Facts:
    """Names and values, a line each."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; its first column heads the rows. A row of a single cell parts groups."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Setting:
    """One key of a configuration, its value, and the default where that differs."""

    key: str
    value: str
    default: str | None = None


@dataclass(frozen=True)
class Settings:
    """A configuration that can be searched; `choices` are those of its groups."""

    kind: ClassVar[str] = "settings"
    choices: Sequence[tuple[str, str]]
    rows: Sequence[Setting]


@dataclass(frozen=True)
class Item:
    """Something to look at or to listen to; each address is a `data:` URI."""

    title: str
    picture: str | None = None
    sound: str | None = None
    clip: str | None = None
    about: str = ""
    small: bool = False


@dataclass(frozen=True)
class Gallery:
    """Items side by side; a `strip` is read from left to right, and is not wrapped."""

    kind: ClassVar[str] = "gallery"
    title: str
    items: Sequence[Item]
    strip: bool = False


@dataclass(frozen=True)
class Slider:
    """Galleries of which one is shown at a time; without scripts, all are."""

    kind: ClassVar[str] = "slider"
    label: str
    frames: Sequence[Gallery]


Block = Note | Facts | Table | Settings | Chart | Gallery | Slider


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    name: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    about: str
    sections: Sequence[Section] = ()


def unmade(error: BaseException) -> Note:
    """Return a note on why something could not be shown."""
    return Note(f"This could not be shown. {shortened(error)}")


def render(page: Page, footer: str, hidden: Sequence[str] = ()) -> str:
    """Return a page as HTML, without what others should not read: secrets in addresses, and the texts `hidden`."""

    def shared(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
            return value
        for text in hidden:
            value = value.replace(text, FROM_ENVIRONMENT)
        return without_secrets(value)

    environment = Environment(
        loader=PackageLoader("recipes.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=shared,
    )  # fmt: skip
    style, script = (_part(name) for name in ("page.css", "page.js"))
    return environment.get_template("page.html.j2").render(
        page=page, footer=footer, generator=GENERATOR, style=Markup(style), script=Markup(script),
        style_hash=_hash(style), script_hash=_hash(script),
    )  # fmt: skip


def is_report(text: str) -> bool:
    """Whether this is the beginning of a page that `render` made."""
    return f'<meta name="generator" content="{GENERATOR}">' in text[:HEAD]


def check_out(out: Path) -> None:
    """Check that a page may be written there.

    Raises:
        RecipeError: if something lies there that this command did not write.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"out={out}: the page is HTML, so its name should end in .html")
    for path in (out, out.with_name(f"{out.name}.partial")):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RecipeError(f"{path} is a link or no file, and the page would be written there: remove it")
    if out.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            if not is_report(file.read(HEAD)):
                raise RecipeError(f"{out} is not a page that this command wrote: remove it, or choose another out")


def _part(name: str) -> str:
    return (files("recipes.reports") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
