"""The page: blocks of plain data, media within a size budget, and one self-contained HTML file.

A block is rendered by the macro in `blocks.html.j2` with the name of its class. Text may come from someone else's
folder: Jinja escapes it, and a content security policy allows only the script and the style with the given hashes.
Nothing is fetched.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modalities.browser_media import audio_content, data_url, image_content, video_content
from multisagd.addresses import without_secrets
from multisagd.files import check_file
from recipes.base.errors import RecipeError
from recipes.base.untrusted import inside
from recipes.config.addresses import FROM_ENVIRONMENT
from recipes.plotting.curves import Chart
from recipes.reports.run import MALFORMED, shortened

GENERATOR = "multisagd report"
HEAD = 400
"""Number of characters at the beginning of a page that include its generator."""
LARGEST = 64 << 20
"""Maximum size of a media file, in bytes."""
MAX_OMITTED = 20
"""Maximum number of omitted files whose names are listed."""
DECODERS = ("PIL", "av")
"""Packages whose errors mean that a file is damaged."""


@dataclass(frozen=True)
class Note:
    """A remark; if it is about a missing part, `command` is the command that creates this part."""

    text: str
    command: str | None = None


@dataclass(frozen=True)
class Facts:
    """Names and values, one per line."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table whose first column contains row headers. A row with a single cell is the heading of a group of rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Setting:
    """One key of a configuration, its value, and its default if different."""

    key: str
    value: str
    default: str | None = None


@dataclass(frozen=True)
class Settings:
    """A searchable configuration; `choices` are the choices of its groups."""

    choices: Sequence[tuple[str, str]]
    rows: Sequence[Setting]


@dataclass(frozen=True)
class Item:
    """An image, audio clip or video clip; each address is a `data:` URI."""

    title: str
    image: str | None = None
    audio: str | None = None
    video: str | None = None
    description: str = ""
    small: bool = False


@dataclass(frozen=True)
class Gallery:
    """Items side by side. The items of a `strip` are in order from left to right, in a single line."""

    title: str
    items: Sequence[Item]
    strip: bool = False


@dataclass(frozen=True)
class Slider:
    """Galleries that the page shows one at a time, or all at once if scripts are disabled."""

    label: str
    frames: Sequence[Gallery]


Block = Note | Facts | Table | Settings | Chart | Gallery | Slider


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    name: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass
class Budget:
    """Number of bytes left for media in a page; `omitted` names the omitted files."""

    left: int
    omitted: list[str] = field(default_factory=list)

    def data_uri(self, kind: str, data: bytes) -> str:
        """Return a file's content as a data URI. Raises ValueError if it exceeds the budget."""
        size = -(-len(data) // 3) * 4
        if size > self.left:
            raise ValueError("the page would exceed the limit megabytes=…")
        self.left -= size
        return data_url(kind, data)

    def note(self, text: str) -> None:
        """Record an omitted file."""
        if len(self.omitted) <= MAX_OMITTED:
            self.omitted.append(text if len(self.omitted) < MAX_OMITTED else "…")


def item(title: str, path: Path, root: Path, budget: Budget, description: str = "") -> Item | None:
    """Return an item with a media file and the files of the same name next to it (image, audio, video).

    Return None if none of them can be read. Files that resolve to a path outside `root` are refused.
    """
    addresses: dict[str, str] = {}
    small = False
    for suffix, read in ((".png", image_content), (".wav", audio_content), (".mp4", video_content)):
        file = path.with_suffix(suffix)
        if not file.exists():
            continue
        try:
            if not inside(file, root):
                raise ValueError("a symbolic link that points outside the run")
            check_file(file, LARGEST)
            kind, data, shrunk = read(file)
            small = small or shrunk
            addresses[suffix] = budget.data_uri(kind, data)
        except Exception as error:
            if not isinstance(error, MALFORMED) and type(error).__module__.partition(".")[0] not in DECODERS:
                raise
            budget.note(f"{'/'.join(file.parts[-3:])}: {shortened(error, 200)}")
    if not addresses:
        return None
    return Item(title, addresses.get(".png"), addresses.get(".wav"), addresses.get(".mp4"), description, small)


def failure_note(error: BaseException) -> Note:
    """Return a note that gives the reason why something cannot be shown."""
    return Note(f"This could not be shown. {shortened(error)}")


def render(title: str, description: str, sections: Sequence[Section], footer: str, hidden: Sequence[str] = ()) -> str:
    """Return a page as HTML, without secrets in addresses and without the strings `hidden`."""

    def shared(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shared(each) for key, each in value.items()}
        if isinstance(value, list):
            return [shared(each) for each in value]
        if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
            return value
        for text in hidden:
            value = value.replace(text, FROM_ENVIRONMENT)
        return without_secrets(value)

    environment = Environment(
        loader=PackageLoader("recipes.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=shared,
    )  # fmt: skip
    environment.filters["shared"] = shared
    environment.filters["macro"] = lambda block: type(block).__name__.lower()
    parts: dict[str, str] = {}
    for name, file in (("style", "page.css"), ("script", "page.js")):
        text = (files("recipes.reports") / "templates" / file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        parts |= {name: Markup(text), f"{name}_hash": f"sha256-{digest}"}
    page = {"title": title, "description": description, "sections": sections, "footer": footer, "generator": GENERATOR}
    return environment.get_template("page.html.j2").render(page | parts)


def is_report(text: str) -> bool:
    """Whether text begins like a page written by `render`."""
    return f'<meta name="generator" content="{GENERATOR}">' in text[:HEAD]


def check_out(out: Path) -> None:
    """Check that a page may be written to `out`. Raises RecipeError if another file is there."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"out={out}: the page is HTML, so its name must end in .html or .htm")
    for path in (out, out.with_name(f"{out.name}.partial")):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RecipeError(f"{path} is a symbolic link or not a file, so the page cannot replace it: remove it")
    if out.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            if not is_report(file.read(HEAD)):
                raise RecipeError(f"{out} was not written by this command: remove it, or choose another out")
