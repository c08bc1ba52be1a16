"""`tools/structure.py`: what it counts in a package of five files."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

import structure
from sources import House, circles, levels
from walks import Walker

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "pyproject.toml": """
        [tool.importlinter]
        [[tool.importlinter.contracts]]
        type = "layers"
        layers = ["_top", "_parts : _other", "_values"]
    """,
    "src/bide/__init__.py": '"""A toy. It has one room."""',
    "src/bide/_top.py": '''
        """The top: it drives the parts."""

        from bide._parts.engine import Engine


        class Top:
            """A class."""

            def __init__(self, engine: Engine, name: str) -> None:
                self._engine = engine  # kept
                self.name = name

            def start(self) -> None:
                """Start it."""
                # A comment of its own line is prose.
                self._check()
                self._engine.run(self)
                self._engine._secret = 1

            def _check(self) -> None: ...

            def notify(self) -> None: ...
    ''',
    "src/bide/_parts/__init__.py": '"""The parts."""',
    "src/bide/_parts/engine.py": '''
        """The engine: works in the background; stops when it is closed."""

        from __future__ import annotations

        from typing import TYPE_CHECKING

        from bide import _values

        if TYPE_CHECKING:
            from bide._top import Top


        class Engine:
            def run(self, top: Top) -> None:
                top.notify()
                _values.check(1)
                self.spawn(self._work())

            def spawn(self, work: object) -> None: ...

            async def _work(self) -> None:
                _values.unread()
    ''',
    "src/bide/_other.py": '"""Another room."""\n',
    "src/bide/_values.py": '''
        """Values."""


        def check(value: int) -> int:
            return value


        def unread() -> None: ...
    ''',
}


@pytest.fixture
def house(tmp_path: Path) -> House:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip())
    return House(tmp_path)


def test_imports_for_typing_make_circles(house: House) -> None:
    assert house.imports["bide._parts.engine"] == {"bide._values", "bide._top"}
    assert circles(house.imports) == [["bide._parts.engine", "bide._top"]]
    assert circles(house.room_imports) == [["bide._parts", "bide._top"]]


def test_a_circle_counts_as_one_level(house: House) -> None:
    assert levels(house.imports) == 2
    assert house.layers == [["_top"], ["_parts", "_other"], ["_values"]]
    assert house.top_entries == ["__init__.py", "_other.py", "_parts", "_top.py", "_values.py"]


def test_prose_is_no_code(house: House) -> None:
    module = house.modules["bide._top"]
    top = structure.class_sizes(house)[0]

    assert (top.place, top.code_lines, top.methods, top.attributes, top.arguments) == (
        "bide._top:Top",
        10,
        4,
        2,
        2,
    )
    assert len(module.code_lines) == 11
    assert len(module.prose_lines) == 4


def test_only_the_privates_of_other_objects_are_foreign(house: House) -> None:
    assert structure.foreign_privates(house) == ["src/bide/_top.py:18 _secret"]


def test_a_walk_leaves_out_what_is_given_to_the_background(house: House) -> None:
    walker = Walker(house)
    start = walker.find("bide._top:Top.start")

    assert start is not None
    walk = walker.walk(start)
    assert [str(step.callee) for step in walk.steps] == [
        "_top:Top._check",
        "_parts.engine:Engine.run",
        "_top:Top.notify",
        "_values:check",
        "_parts.engine:Engine.spawn",
    ]
    assert (walk.stays, walk.climbs, walk.returns, walk.functions, walk.files) == (2, 2, 1, 6, 3)


def test_the_map_has_a_line_for_each_module(house: House) -> None:
    lines = structure.draw(house).splitlines()

    assert [line[:24].strip() for line in lines if not line.startswith("--")] == [
        *("src/bide", "_top.py", "_parts/", "engine.py", "_other.py", "_values.py", "__init__.py")
    ]
    assert lines[2].split(maxsplit=1)[1] == "The top: it drives the parts"


def test_the_figures_of_two_checkouts_stand_side_by_side() -> None:
    table = structure.table({"before": {"files": "10", "circles": "2"}, "after": {"files": "9"}})

    assert table.splitlines() == ["         before  after", "files    10      9", "circles  2       -"]
