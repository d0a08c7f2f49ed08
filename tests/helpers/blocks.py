"""The fenced blocks of README, CONTRIBUTING, examples and docs, and the reasons why some are not run.

`test_docs.py` checks all blocks, and runs them page by page and in order, unless an HTML comment on the line before
gives the reason why not, such as <!-- not run: trains for an hour -->.
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
BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<reason>\S.{8,}) -->\n)?(?P<fence> *```)(?P<language>[^\s`]*)[^`\n]*\n"
    r"(?P<text>(?:.*\n)*?) *```$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its place, language and text, and the reason why it is not run, if there is one."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name in a first line such as `# ecg.py`: the block is a file of that name."""
        first = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return first and first[1]

    def commands(self) -> list[str]:
        """Return the commands of a shell block, each on one line."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Return the blocks of a page in order.

    Raises:
        ValueError: for a fence that is not closed, and a comment `not run` without a reason or a block after it.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    rest = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    if wrong := re.search(r"^ *(```|<!-- not run).*", rest, re.MULTILINE):
        line = rest.count("\n", 0, wrong.start()) + 1
        raise ValueError(f"{page}:{line}: close the fence, or give a reason and a block on the next line: {wrong[0]}")
    blocks = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        inner = re.sub(f"^{match['fence'][:-3]}", "", match["text"], flags=re.MULTILINE)
        blocks.append(Block(page, line, match["language"], inner, match["reason"]))
    return tuple(blocks)
