"""How the package is built: who may import what, how large a class may be, and the map of it in docs/architecture.md.

Most of it the import contracts in pyproject.toml check (`make lint`). Here is what they cannot say.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import structure
from sources import PACKAGE, House, circles, module_of_import

ROOT = Path(__file__).parents[1]
HOUSE = House(ROOT)
MOST_TOP_ENTRIES = 27
MOST_LAYERS = 8
MOST_CODE_LINES = 300
MOST_ARGUMENTS = 8


def test_the_top_of_the_package_is_small() -> None:
    assert len(HOUSE.top_entries) <= MOST_TOP_ENTRIES
    assert len(HOUSE.layers) <= MOST_LAYERS


def test_every_module_has_a_layer() -> None:
    """The contract is exhaustive, but would not miss a layer whose name has no module."""
    rooms = {module.room.removeprefix(f"{PACKAGE}.") for module in HOUSE.modules.values()}
    layered = {name for layer in HOUSE.layers for name in layer}

    assert rooms - layered == {PACKAGE, "__main__", "_version", "emulator"}
    assert layered <= rooms


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(HOUSE.imports) == []
    assert circles(HOUSE.room_imports) == []


def test_the_emulator_imports_nothing_else_of_bide() -> None:
    """Code that it shared with the adapters would repeat their mistakes, and a test with it would prove nothing."""
    foreign = {
        (name, imported)
        for name, imports in HOUSE.imports.items()
        for imported in imports
        if HOUSE.modules[name].room == f"{PACKAGE}.emulator"
        and HOUSE.modules[imported].room != f"{PACKAGE}.emulator"
    }

    assert foreign == set()


def test_the_command_line_uses_public_names_only() -> None:
    """What it can do, a user's program can do too."""
    private = [
        f"{name}: {imported}"
        for name, module in HOUSE.modules.items()
        if module.room == f"{PACKAGE}.cli"
        for imported in full_names_imported_by(name)
        if not imported.startswith(f"{PACKAGE}.cli") and is_private(imported)
    ]

    assert private == []


def full_names_imported_by(name: str) -> list[str]:
    """The dotted names of what a module imports from this package, the imported names included."""
    module = HOUSE.modules[name]
    names: list[str] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{module_of_import(module, node)}.{alias.name}" for alias in node.names]
    return [each for each in names if each.split(".")[0] == PACKAGE]


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def test_no_object_uses_the_private_attributes_of_another() -> None:
    assert structure.foreign_privates(HOUSE) == []


def test_the_rule_for_private_attributes_has_no_exemption() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    exempt = [
        files
        for files, rules in project["tool"]["ruff"]["lint"]["per-file-ignores"].items()
        if files.startswith("src") and any(rule.startswith("SLF") for rule in rules)
    ]
    excused = [
        f"{module.path}:{number}"
        for module in HOUSE.modules.values()
        for number, line in enumerate(module.text.splitlines(), 1)
        if "noqa" in line and "SLF001" in line
    ]

    assert exempt == []
    assert excused == []


def test_a_class_is_short_enough_to_be_read() -> None:
    long = [size for size in structure.class_sizes(HOUSE) if size.code_lines > MOST_CODE_LINES]

    assert long == []


def test_a_constructor_needs_few_arguments() -> None:
    wide = [size for size in structure.class_sizes(HOUSE) if (size.arguments or 0) > MOST_ARGUMENTS]

    assert wide == []


def test_the_map_is_up_to_date_and_names_every_module() -> None:
    """`python tools/structure.py --write` brings it up to date."""
    drawn = structure.drawn()

    assert drawn is not None
    assert drawn == structure.draw(HOUSE)
    missing = [
        name
        for name, module in HOUSE.modules.items()
        if not module.is_package and module.path.name not in drawn
    ]
    assert missing == []


def test_the_files_that_the_map_speaks_of_are_there() -> None:
    """A file that moves takes the walk of a request and the hints for changes along."""
    prose = (ROOT / "docs" / "architecture.md").read_text().replace(structure.drawn() or "", "")
    named = set(structure.files_named_in(prose))

    assert named
    assert {
        path for path in named if not (ROOT / path).exists() and not (HOUSE.folder / path).exists()
    } == set()


@pytest.mark.parametrize("name", structure.WALKS)
def test_the_walks_can_be_followed(name: str) -> None:
    """They climb nowhere: what is called stands below its caller, or beside it."""
    walk = structure.walks(HOUSE)[name]

    assert walk.functions > 10
    assert walk.climbs == 0
