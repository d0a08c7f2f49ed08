"""The fenced blocks of README, CONTRIBUTING, examples and docs, and what is said of those that are not run.

Every block is run by `test_pages_run.py`, page by page and in order, unless an HTML comment on the line before it gives
the reason why not; it shows in no rendering:

    <!-- not run: trains for an hour -->

`test_docs.py` checks what can be checked of the others too: their commands compose, their verbs of make and their
extras exist.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
]
RUNNABLE = ("python", "bash", "yaml")
REASON = re.compile(r"<!-- not run: (\S.{8,}) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its lines, and the reason why it is not run, if it is not."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """Return the name in a first line such as `# ecg.py`: the block is a file of that name."""
        found = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return found and found[1]

    def commands(self) -> list[str]:
        """Return the commands of a block for a shell, each on one line."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Return the blocks of a page in order.

    Raises:
        ValueError: for a fence that is not closed, and a comment `not run` that no block follows.
    """
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    start, indent = None, ""
    for number, line in enumerate(lines, start=1):
        fence = re.match(r"(\s*)```(.*)$", line)
        if start is None:
            if "<!-- not run" in line and not (
                REASON.fullmatch(line.strip()) and number < len(lines) and lines[number].lstrip().startswith("```")
            ):
                raise ValueError(f"{page}:{number}: give a reason, and a block on the next line: {line}")
            if fence:
                start, indent = number, fence[1]
        elif fence and not fence[2]:
            reason = REASON.fullmatch(lines[start - 2].strip()) if start > 1 else None
            text = "".join(f"{inner.removeprefix(indent)}\n" for inner in lines[start : number - 1])
            language = lines[start - 1].strip().removeprefix("```").split(" ")[0]
            found.append(Block(page, start, language, text, reason and reason[1]))
            start = None
    if start is not None:
        raise ValueError(f"{page}:{start}: the fence is not closed")
    return tuple(found)
