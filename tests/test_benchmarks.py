"""What the benchmarks print and how they judge; the figures themselves are for `make bench`."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMED = {"slots", "budget", "overhead", "flat", "peer", "scale", "cancel", "import", "ledger"}


@pytest.fixture
def goals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("goals")


def options(**chosen: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"json": False, "check": False, **chosen})


def test_a_table_says_which_goals_are_met(goals: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        goals.Row("bide", "ratio", 1.0, "at most 1.2", True),
        goals.Row("bide", "errors", 3, "0", False),
        goals.Row("peer", "lateness", math.nan),
    ]

    goals.show("Title", rows, options())

    assert capsys.readouterr().out.splitlines() == [
        "Title",
        "  bide  ratio          1.00  at most 1.2  met",
        "  bide  errors            3  0            MISSED",
        "  peer  lateness       none",
    ]


def test_json_is_one_object_with_null_for_what_is_no_number(
    goals: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    goals.show("Title", [goals.Row("peer", "lateness", math.nan)], options(json=True))

    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["benchmark"] == "Title"
    assert told["rows"] == [{"case": "peer", "figure": "lateness", "value": None, "goal": "", "met": None}]


@pytest.mark.parametrize(("met", "ends"), [(True, False), (None, False), (False, True)])
def test_only_a_missed_goal_fails_the_check(goals: ModuleType, met: bool | None, ends: bool) -> None:
    row = goals.Row("bide", "ratio", 1.0, "at most 1.2", met)

    goals.show("Title", [row], options())
    if ends:
        with pytest.raises(SystemExit, match="1"):
            goals.show("Title", [row], options(check=True))
    else:
        goals.show("Title", [row], options(check=True))


def test_each_benchmark_is_there_and_says_what_it_measures() -> None:
    runnable = {path.stem: path for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}

    assert set(runnable) == NAMED
    for path in runnable.values():
        assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 80
