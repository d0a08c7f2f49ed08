"""MkDocs hooks that build a site from the unchanged pages of this repository.

- README is the home page; CONTRIBUTING, CHANGELOG and the list of examples are pages too.
- Links to other files of the repository lead to pages that show them.
- The reference lists every public name.

Markdown has the same meaning as in the repository: comments for the tests are dropped, `<details>` may
contain Markdown, and code in a table may contain a pipe.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
INCLUDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""Pages from the repository, by their names on the site."""
SHOWN = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml", "": "text"}
"""Files that are shown on a page, by suffix, with their language; others are copied."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
PIPED = re.compile(r"`([^`]*\\\|[^`]*)`")
"""Code in a table with an escaped pipe; Python-Markdown would show the backslash."""
NAMES = "<!-- every public name -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside `docs`: the included ones, and all files that a page links to."""
    for path, name in INCLUDED.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    linked: set[str] = set()
    for file in files.documentation_pages():
        for _, target, _ in links(file.content_string):
            meant = resolved(origin(file.src_uri), target)
            if meant is not None and not meant.startswith("docs/") and meant not in INCLUDED:
                linked.add(meant)
    linked.update(*map(inside, tuple(linked)))
    for path in sorted(linked):
        source = ROOT / path
        if source.is_dir() or source.suffix in SHOWN:
            files.append(File.generated(config, page_of(path), content=shown(path)))
        else:
            files.append(File.generated(config, page_of(path), content=source.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages, and insert content that only the site has."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def rewritten(found: re.Match[str]) -> str:
        path = resolved(origin(uri), found[2])
        if path is None:
            return found[0]
        _, mark, anchor = found[2].partition("#")
        return f"{found[1]}{posixpath.relpath(page_of(path), posixpath.dirname(uri) or '.')}{mark}{anchor}{found[3]}"

    kept, parts = FENCED.findall(markdown), FENCED.split(markdown)
    parts = [re.sub(r"^ *<!-- not run: .* -->\n", "", LINK.sub(rewritten, part), flags=re.MULTILINE) for part in parts]
    markdown = "".join(text + block for text, block in zip(parts, [*kept, ""], strict=True))
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, names(Path(config.docs_dir) / "reference"))
    markdown = re.sub(r"^\|.*", lambda row: PIPED.sub(code, row[0]), markdown, flags=re.MULTILINE)
    return markdown.replace("<details>", '<details markdown="1">')


def code(found: re.Match[str]) -> str:
    """Return code with pipes in it as HTML."""
    return f"<code>{html.escape(found[1].replace(chr(92) + '|', '|')).replace('|', '&#124;')}</code>"


def links(markdown: str) -> Iterator[tuple[str, str, str]]:
    """Return the links and images outside fenced blocks, as text before the target, target, text after it."""
    return iter(LINK.findall(FENCED.sub("", markdown)))


def origin(uri: str) -> str:
    """Return the path of a page of the site in the repository."""
    return {name: path for path, name in INCLUDED.items()}.get(uri, f"docs/{uri}")


def resolved(page: str, target: str) -> str | None:
    """Return the repository file that a link points to; None for URLs and for anchors on the same page.

    Raises:
        PluginError: if the file does not exist, or is outside the repository.
    """
    target = target.split("#")[0]
    if not target or re.match(r"\w+:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if path.startswith((".", "/", "runs/")) or not (ROOT / path).exists():
        raise PluginError(f"{page} links to {target}, which is not there")
    return path


def page_of(path: str) -> str:
    """Return the name on the site of a file or folder of the repository."""
    if path in INCLUDED:
        return INCLUDED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}.md" if (ROOT / path).suffix in SHOWN else f"source/{path}"


def inside(path: str) -> list[str]:
    """Return the files of a folder that can be shown."""
    files = sorted((ROOT / path).iterdir()) if (ROOT / path).is_dir() else []
    return [file.relative_to(ROOT).as_posix() for file in files if file.is_file() and file.suffix in SHOWN]


def shown(path: str) -> str:
    """Return the Markdown of a page that shows a file, or lists a folder. Searches leave it out."""
    head = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n"
    if (ROOT / path).is_dir():
        return head + "".join(
            f"- [{posixpath.basename(file)}]({posixpath.basename(file)}.md)\n" for file in inside(path)
        )
    source = ROOT / path
    return f"{head}````{SHOWN[source.suffix]}\n{source.read_text(encoding='utf-8')}````\n"


def names(folder: Path) -> str:
    """Return a table of the public names of `multisagd`, with the first line of each docstring and a link."""
    pages = {
        module: page.name
        for page in folder.glob("*.md")
        for module in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    package = griffe.load("multisagd", search_paths=[ROOT])
    rows = ["| name | what it is |", "|---|---|"]
    for name in package.exports or ():
        found = package[str(name)]
        thing = found.final_target if found.is_alias else found
        module = thing.path if thing.is_module else thing.module.path
        if module not in pages:
            raise PluginError(f"no page under {folder} has ::: {module}, which defines multisagd.{name}")
        about = thing.docstring.value.splitlines()[0] if thing.docstring else ""
        rows.append(f"| [`{name}`]({pages[module]}#{thing.path}) | {about.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)
