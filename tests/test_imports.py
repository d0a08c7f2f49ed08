"""The floor plan, computed from the imports: no circle of files, one way between packages, no two rooms both ways."""

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


def modules_of(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Return every module of some packages by its dotted name."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return which modules each one imports, also where it does so within a function."""
    return {name: imported(file, modules) - {name} for name, file in modules.items()}


def imported(file: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules among `modules` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of the package, or something in it.
            each = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= each & modules.keys() or {node.module}
    return found & modules.keys()


def room(name: str, modules: dict[str, Path]) -> str:
    """Return the room of a module of recipes: its folder; the files of the commands are one room."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or modules[name].name == "__init__.py" else "commands"


def both_ways(imports: dict[str, set[str]], modules: dict[str, Path]) -> list[str]:
    """Return the imports of every two rooms that import each other, of the direction that has fewer."""
    between: dict[tuple[str, str], list[str]] = {}
    for name, others in imports.items():
        for other in others:
            if (pair := (room(name, modules), room(other, modules)))[0] != pair[1]:
                between.setdefault(pair, []).append(f"{pair[0]} → {pair[1]}: {name} imports {other}")
    pairs = [pair for pair in between if pair[::-1] in between and len(between[pair]) <= len(between[pair[::-1]])]
    return sorted(line for pair in pairs for line in between[pair])


MODULES = modules_of(ROOT, tuple(BELOW))
IMPORTS = imports_of(MODULES)
RECIPES = {name: others for name, others in IMPORTS.items() if name.startswith("recipes.")}


def test_no_circle_of_files() -> None:
    # A package is imported before each of its modules, and may collect their names.
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_imports_run_one_way_between_packages() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if (package := other.split(".")[0]) != name.split(".")[0] and package not in BELOW[name.split(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_rooms_of_recipes_import_each_other() -> None:
    inside = {name: {other for other in others if other in RECIPES} for name, others in RECIPES.items()}
    assert not (wrong := both_ways(inside, MODULES)), "\n".join(wrong)


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """A circle within functions, a room that imports back, and a name that is a module."""
    for name, text in {
        "recipes/a.py": "from recipes.base import b\n",
        "recipes/base/b.py": "def f():\n    from recipes.a import x\n",
        "recipes/base/c.py": "import recipes.base.b\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = modules_of(tmp_path, ("recipes",))
    imports = imports_of(modules)
    a, b, c = "recipes.a", "recipes.base.b", "recipes.base.c"
    assert imports == {a: {b}, b: {a}, c: {b}}
    with pytest.raises(CycleError):
        TopologicalSorter(imports).prepare()
    assert both_ways(imports, modules) == [f"base → commands: {b} imports {a}", f"commands → base: {a} imports {b}"]
