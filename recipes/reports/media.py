"""Media files of a run's folder, taken into a page within a budget of bytes."""

from dataclasses import dataclass, field
from pathlib import Path

from modalities.browser_media import address, clip, picture, sound
from multisagd.files import check_file
from recipes.base.untrusted import inside
from recipes.reports.page import Item
from recipes.reports.run import MALFORMED, shortened

LARGEST = 64 << 20
"""Bytes of one file that is looked at."""

MOST_LEFT_OUT = 20
"""Files that are named as left out; there may be thousands."""

DECODERS = ("PIL", "av")
"""Packages whose errors, of any kind, say that a file is damaged."""


@dataclass
class Budget:
    """How many bytes of media a page may still take in; `left_out` names what it did not."""

    left: int
    left_out: list[str] = field(default_factory=list)

    def take(self, kind: str, data: bytes, path: Path) -> str | None:
        """Return the address of a file's content, None if there is no room for it."""
        size = -(-len(data) // 3) * 4
        if size > self.left:
            self.note(f"{_where(path)}: beyond megabytes=…")
            return None
        self.left -= size
        return address(kind, data)

    def note(self, text: str) -> None:
        """Remember what was left out."""
        if len(self.left_out) == MOST_LEFT_OUT:
            self.left_out.append("…")
        elif len(self.left_out) < MOST_LEFT_OUT:
            self.left_out.append(text)


def item(title: str, path: Path, root: Path, budget: Budget, about: str = "") -> Item | None:
    """Return a file of media and those of the same name beside it: a picture, a sound, a clip; None if there are none.

    Nothing that leads out of the folder `root` is taken.
    """
    found: dict[str, str] = {}
    small = False
    for suffix, read in ((".png", picture), (".wav", sound), (".mp4", clip)):
        file = path.with_suffix(suffix)
        if not file.exists():
            continue
        try:
            if not inside(file, root):
                raise ValueError("a link to somewhere else")
            check_file(file, LARGEST)
            kind, data, shrunk = read(file)
            small = small or shrunk
            if (taken := budget.take(kind, data, file)) is not None:
                found[suffix] = taken
        except Exception as error:
            if not isinstance(error, MALFORMED) and type(error).__module__.partition(".")[0] not in DECODERS:
                raise
            budget.note(f"{_where(file)}: {shortened(error, 200)}")
    if not found:
        return None
    return Item(title, found.get(".png"), found.get(".wav"), found.get(".mp4"), about, small)


def _where(path: Path) -> str:
    return "/".join(path.parts[-3:])
