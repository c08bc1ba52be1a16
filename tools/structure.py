"""Measure how the package is built, in one checkout or in several beside each other.

    python tools/structure.py                     # this checkout
    python tools/structure.py c1e02d5 HEAD        # two commits, side by side
    python tools/structure.py c1e02d5 .           # a commit, and the files as they are here
    python tools/structure.py --steps . | less    # each step of the walks
    python tools/structure.py --draw              # the map in docs/architecture.md
    python tools/structure.py --write             # put that map into docs/architecture.md

All figures come from the text of the files. What a line of the table counts:

- Entries: files and folders at the top of `src/bide`.
- Layers: of the import contract in `pyproject.toml`. Levels: the rooms, or the modules, on the longest chain of
  imports; a circle counts as one. A room is an entry at the top. Imports for typing and in functions count.
- Foreign privates: accesses to `_name` of anything but `self`, `cls` and `super()`, as ruff's SLF001 reports them; here
  nothing is exempt but documented names of the standard library (`os._exit`, `_replace` of a named tuple).
- Classes and functions: by lines of code, without docstrings, comments and blank lines; by methods; by attributes
  (fields, and names assigned to `self`). Constructors: the arguments of `__init__`, or the fields without a default of
  a class of fields. Frozen values, providers, `Client` and `Emulator` are left out: their arguments are named data.
- Walks: see `walks.py`. A stay is a call within a file, a climb one against the direction of the imports, a return one
  into another file that was read before.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tempfile
import textwrap
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sources import PACKAGE, Function, House, circles, levels
from walks import Walker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sources import Module
    from walks import Walk

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "docs" / "architecture.md"
MAP_BEGINS, MAP_ENDS = "<!-- map: python tools/structure.py --write -->\n```\n", "```\n<!-- end of map -->\n"
MAP_WIDTH, MAP_INDENT = 118, 24

WALKS = {
    "news of a record": (
        "bide._runtime.engine:Engine.change_record",
        "bide._runtime.engine:Engine._heard_of",
        "bide._engine:Engine._heard_of",
    ),
    "saving a task": (
        "bide._downloads.saver:Saver.save",
        "bide._downloads.saver:Saving.save",
        "bide._saving:Saving.save",
    ),
    "one poll": (
        "bide._polling.poller:Poller._poll",
        "bide._polling.poller:Poller._look",
        "bide._polling:Poller._look",
    ),
}
"""The functions where the walks start, by their names at different times; the first that a checkout has is used."""

_DOCUMENTED = {"_exit", "_asdict", "_fields", "_field_defaults", "_make", "_replace", "_name_", "_value_"}

PROVIDERS = f"{PACKAGE}.providers"
PUBLIC_CONSTRUCTORS = {"Client", "Emulator"}


@dataclass(frozen=True)
class ClassSize:
    """How large a class is.

    Attributes:
        place: module and name.
        code_lines: lines of code.
        methods: methods and properties.
        attributes: fields, and names assigned to `self`.
        arguments: what its constructor takes; None where the limit for constructors does not count it.
    """

    place: str
    code_lines: int
    methods: int
    attributes: int
    arguments: int | None


def class_sizes(house: House) -> list[ClassSize]:
    """Every class of the package, the longest first."""
    found = [
        ClassSize(
            place=f"{module.name}:{node.name}",
            code_lines=module.code_lines_of(node),
            methods=sum(isinstance(each, Function) for each in node.body),
            attributes=len(attributes_of(node)),
            arguments=constructor_arguments(module, node),
        )
        for module, node in house.classes()
    ]
    return sorted(found, key=lambda size: -size.code_lines)


def function_sizes(house: House) -> list[tuple[int, str]]:
    """Every function with its lines of code, the longest first."""
    found = [
        (module.code_lines_of(node), f"{module.name}:{name}") for module, name, node in house.functions()
    ]
    return sorted(found, reverse=True)


def attributes_of(node: ast.ClassDef) -> set[str]:
    """The fields of a class, and the names that its methods assign to `self`."""
    names = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and not _is_class_variable(each)
    }
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def constructor_arguments(module: Module, node: ast.ClassDef) -> int | None:
    """How many arguments the constructor needs.

    None where there is no constructor, and for frozen values, providers, `Client` and `Emulator`.
    """
    if module.room == PROVIDERS or node.name in PUBLIC_CONSTRUCTORS:
        return None
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            arguments = each.args
            return len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) - 1
    if not _is_made_of_fields(node):
        return None
    return sum(
        isinstance(each, ast.AnnAssign) and each.value is None and not _is_class_variable(each)
        for each in node.body
    )


def foreign_privates(house: House) -> list[str]:
    """The places where private attributes of other objects are used, as `path:line name`."""
    return [
        f"{module.path.relative_to(house.root)}:{node.lineno} {node.attr}"
        for module in house.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value)
    ]


def walks(house: House) -> dict[str, Walk]:
    """The walks of `WALKS` through this house."""
    walker = Walker(house)
    found: dict[str, Walk] = {}
    for name, starts in WALKS.items():
        start = next((each for each in map(walker.find, starts) if each is not None), None)
        if start is None:
            raise LookupError(f"no start of the walk {name!r} is there: add its name to WALKS in {__file__}")
        found[name] = walker.walk(start)
    return found


def report(house: House) -> dict[str, str]:
    """The figures, in the order in which they are printed."""
    sizes = class_sizes(house)
    largest, function = sizes[0], function_sizes(house)[0]
    widest = max(sizes, key=lambda size: size.arguments or 0)
    code = sum(len(module.code_lines) for module in house.modules.values())
    prose = sum(len(module.prose_lines) for module in house.modules.values())
    figures = {
        "entries at the top of src/bide": str(len(house.top_entries)),
        "layers of the import contract": str(len(house.layers)),
        "levels of imports, between rooms": str(levels(house.room_imports)),
        "circles, between rooms": _sizes_of(circles(house.room_imports)),
        "modules": str(len(house.modules)),
        "levels of imports, between modules": str(levels(house.imports)),
        "circles, between modules": _sizes_of(circles(house.imports)),
        "foreign privates": str(len(foreign_privates(house))),
        "longest class": f"{_short(largest.place)}: {largest.code_lines} lines",
        "  its methods, attributes": f"{largest.methods}, {largest.attributes}",
        "longest function": f"{_short(function[1])}: {function[0]} lines",
        "widest constructor": f"{_short(widest.place)}: {widest.arguments} arguments",
        "lines of code": f"{code:,}",
        "lines of prose": f"{prose:,}",
        "lines of prose for a line of code": f"{prose / code:.2f}",
    }
    for name, walk in walks(house).items():
        figures[f"walk of {name}"] = str(walk.start).rpartition(":")[2]
        figures["  stays, climbs, returns of " + name] = f"{walk.stays}, {walk.climbs}, {walk.returns}"
        figures["  functions, files of " + name] = f"{walk.functions}, {walk.files}"
    return figures


def draw(house: House) -> str:
    """The map: the layers from the top down, and a line for each room and module."""
    lines = [f"src/{PACKAGE}"]
    layers = [
        (f"layer {number} of {len(house.layers)}", names) for number, names in enumerate(house.layers, 1)
    ]
    placed = {name for _, names in layers for name in names}
    rooms = sorted({module.room.removeprefix(f"{PACKAGE}.") for module in house.modules.values()})
    for title, names in [*layers, ("outside the layers", [room for room in rooms if room not in placed])]:
        lines.append(f"-- {title} ".ljust(MAP_WIDTH, "-"))
        for name in names:
            lines += _room_lines(house, PACKAGE if name == PACKAGE else f"{PACKAGE}.{name}")
    return "\n".join(lines) + "\n"


def _room_lines(house: House, room: str) -> Iterator[str]:
    """A line for the room, and one for each module in it."""
    inside = [] if room == PACKAGE else [name for name in house.modules if name.startswith(f"{room}.")]
    for name in [room, *sorted(inside)]:
        module = house.modules[name]
        is_folder = module.is_package and name != PACKAGE
        file = f"{module.path.parent.name}/" if is_folder else module.path.name
        head = f"{'  ' * (name.count('.') - 1)}{file}".ljust(MAP_INDENT)
        yield f"{head}{_shortened(module.summary, MAP_WIDTH - len(head))}".rstrip()


def _shortened(sentence: str, width: int) -> str:
    """*sentence*, without the last clauses if it is too long."""
    if len(sentence) <= width:
        return sentence
    clauses = [match.start() for match in re.finditer(r"[,;:] ", sentence) if match.start() <= width]
    return sentence[: clauses[-1]] if clauses else textwrap.shorten(sentence, width, placeholder=" ...")


def drawn() -> str | None:
    """The map that stands in docs/architecture.md; None if there is no mark for it."""
    _, begins, rest = MAP.read_text("utf-8").partition(MAP_BEGINS)
    found, ends, _ = rest.partition(MAP_ENDS)
    return found if begins and ends else None


def write_map() -> None:
    """Put the map of this checkout into docs/architecture.md."""
    text, old = MAP.read_text("utf-8"), drawn()
    if old is None:
        raise LookupError(f"{MAP} has no place for the map: a line {MAP_BEGINS.splitlines()[0]!r}")
    MAP.write_text(
        text.replace(MAP_BEGINS + old + MAP_ENDS, MAP_BEGINS + draw(House(ROOT)) + MAP_ENDS), "utf-8"
    )


def files_named_in(prose: str) -> list[str]:
    """The Python files that a text names in code spans, such as `_runtime/engine.py`."""
    return re.findall(r"`((?:\w+/)*\w+\.py)`", prose)


def checkout(revision: str, folder: Path) -> Path:
    """The root of a checkout of *revision*: a new one below *folder*, or this one for `.`."""
    if revision == ".":
        return ROOT
    archive = subprocess.run(
        ["git", "archive", revision, "src", "pyproject.toml"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def table(columns: dict[str, dict[str, str]]) -> str:
    """The figures of several checkouts, a line for each figure."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    first = max(map(len, names))
    widths = {title: max(map(len, [title, *figures.values()])) for title, figures in columns.items()}
    head = " " * first + "".join(f"  {title:<{widths[title]}}" for title in columns)
    lines = [
        f"{name:<{first}}"
        + "".join(f"  {figures.get(name, '-'):<{widths[title]}}" for title, figures in columns.items())
        for name in names
    ]
    return "\n".join(line.rstrip() for line in [head, *lines])


def steps(found: dict[str, Walk]) -> Iterator[str]:
    """The walks, a line for each step."""
    for name, walk in found.items():
        yield f"{name}, from {walk.start}"
        for step in walk.steps:
            kind = "stay" if step.is_stay else "climb" if step.is_climb else "step"
            yield f"  {kind + (', return' if step.is_return else ''):<14} {step.caller} -> {step.callee}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "revisions", nargs="*", default=["."], help="commits, or . for the files as they are (default)"
    )
    parser.add_argument("--steps", action="store_true", help="print each step of the walks instead")
    parser.add_argument(
        "--privates", action="store_true", help="print each access to a foreign private instead"
    )
    parser.add_argument("--draw", action="store_true", help="print the map of this checkout instead")
    parser.add_argument("--write", action="store_true", help="write the map into docs/architecture.md")
    options = parser.parse_args(arguments)
    if options.draw:
        print(draw(House(ROOT)), end="")
        return
    if options.write:
        write_map()
        return
    columns: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        for revision in options.revisions:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            house = House(checkout(revision, folder))
            if options.steps or options.privates:
                print("\n".join(steps(walks(house)) if options.steps else foreign_privates(house)))
            else:
                columns["here" if revision == "." else revision] = report(house)
    if columns:
        print(table(columns))


def _short(place: str) -> str:
    return place.rpartition(":")[2]


def _sizes_of(groups: list[list[str]]) -> str:
    """How many circles there are, and how large each is."""
    sizes = ", ".join(str(len(group)) for group in sorted(groups, key=len, reverse=True))
    return f"{len(groups)} (of {sizes})" if groups else "0"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _DOCUMENTED


def _is_own(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")):
            return True
    return False


def _is_made_of_fields(node: ast.ClassDef) -> bool:
    """Whether attrs or dataclasses make the constructor, and the object may change afterwards."""
    for each in node.decorator_list:
        call = ast.unparse(each)
        if call.startswith(("define", "mutable", "dataclass")) and "frozen=True" not in call:
            return True
    return False


def _is_class_variable(node: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(node.annotation)


if __name__ == "__main__":
    main()
