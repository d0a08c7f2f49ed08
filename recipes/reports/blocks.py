"""What a page is made of: a few kinds of blocks, each drawn by the macro of the same name in `blocks.html.j2`.

Everything here is plain data; all text may come from a folder that someone else made, and is escaped where it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from recipes.plotting.curves import Chart


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
    """A table; its first column heads the rows. A row of a single cell parts groups. `folded` ones open on a click."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


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
class Frame:
    """One place of a slider: what it is called there, and what is shown."""

    title: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Slider:
    """Frames of which one is shown at a time; without scripts, all are."""

    kind: ClassVar[str] = "slider"
    label: str
    frames: Sequence[Frame]


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
    sections: Sequence[Section] = field(default_factory=tuple)
