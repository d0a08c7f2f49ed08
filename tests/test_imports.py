"""Imports have no cycle of files, run one way between packages, and never both ways between two folders of recipes."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "multisagd": (),
    "modalities": ("multisagd",),
    "configs": (),
    "recipes": ("multisagd", "modalities", "configs"),
}
"""What each package may import of the others."""


def modules_of(root: Path, *packages: str) -> dict[str, Path]:
    """Return every module of some packages by its dotted name."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return which of the modules each one imports, also within its functions."""
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # A name may be a module of the package, or something in it.
                each = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[name] |= each & modules.keys() or {node.module}
        imports[name] = imports[name] & modules.keys() - {name}
    return imports


def folder_of(name: str, modules: dict[str, Path]) -> str:
    """Return the folder of a module of recipes; the files of the commands count as one folder."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or modules[name].name == "__init__.py" else "commands"


def imports_both_ways(imports: dict[str, set[str]], modules: dict[str, Path]) -> list[str]:
    """Return the imports between every two folders that import each other, in the direction that has fewer."""
    between: dict[tuple[str, str], list[str]] = {}
    for name, others in imports.items():
        for other in others:
            if (pair := (folder_of(name, modules), folder_of(other, modules)))[0] != pair[1]:
                between.setdefault(pair, []).append(f"{pair[0]} → {pair[1]}: {name} imports {other}")
    pairs = [pair for pair in between if pair[::-1] in between and len(between[pair]) <= len(between[pair[::-1]])]
    return sorted(line for pair in pairs for line in between[pair])


MODULES = modules_of(ROOT, *BELOW)
IMPORTS = imports_of(MODULES)


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' → '.join(error.args[1])}")


def test_imports_run_one_way_between_packages() -> None:
    wrong = []
    for name, others in IMPORTS.items():
        own = name.split(".")[0]
        wrong += [f"{name} imports {other}" for other in others if other.split(".")[0] not in (own, *BELOW[own])]
    assert not wrong, "\n".join(wrong)
    assert sum(map(len, IMPORTS.values())) > 500, "imports are not found"


def test_imports_run_one_way_between_folders_of_recipes() -> None:
    recipes = {name for name in IMPORTS if name.startswith("recipes.")}
    wrong = imports_both_ways({name: IMPORTS[name] & recipes for name in recipes}, MODULES)
    assert not wrong, "\n".join(wrong)
