"""Rows of figures with their goals: printed as a table, or as JSON, and checked on demand."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One measured figure. *met* is None where it is shown without a goal."""

    case: str
    figure: str
    value: float
    goal: str = ""
    met: bool | None = None


def arguments(description: str) -> argparse.Namespace:
    """`--json` and `--check`, as every benchmark has them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    return parser.parse_args()


def show(title: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print *rows*; with `--check`, exit with 1 if a goal is missed."""
    if options.json:
        print(json.dumps({"benchmark": title, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(title)
        for row in rows:
            verdict = {None: "", True: "met", False: "MISSED"}[row.met]
            print(f"  {row.case:<12} {row.figure:<34} {row.value:>9.2f}  {row.goal:<22} {verdict}")
    if options.check and any(row.met is False for row in rows):
        sys.exit(1)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of *values* that so many percent of them do not exceed; not a number if there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan
