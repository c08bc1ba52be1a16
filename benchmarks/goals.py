"""Rows of figures with their goals: printed as a table or as JSON, and checked with `--check`."""

from __future__ import annotations

import argparse
import json
import logging
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
    """`--json` and `--check`, as every benchmark has them. Closing clients do not name what they left running."""
    logging.getLogger("bide").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    return parser.parse_args()


def show(title: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Print *rows*; with `--check`, exit with 1 if a goal is missed."""
    print(_as_json(title, rows) if options.json else _as_table(title, rows))
    if options.check and any(row.met is False for row in rows):
        sys.exit(1)


def _as_json(title: str, rows: Sequence[Row]) -> str:
    """One object; what is not a number is null."""
    plain = [asdict(row) | ({} if math.isfinite(row.value) else {"value": None}) for row in rows]
    return json.dumps({"benchmark": title, "rows": plain}, indent=2)


def _as_table(title: str, rows: Sequence[Row]) -> str:
    cases, figures = (max(map(len, column)) for column in ([r.case for r in rows], [r.figure for r in rows]))
    goals = max(len(row.goal) for row in rows)
    lines = [title]
    for row in rows:
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        number = f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:,.2f}"
        value = number if math.isfinite(row.value) else "none"
        line = f"  {row.case:<{cases}}  {row.figure:<{figures}}  {value:>9}  {row.goal:<{goals}}  {verdict}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of *values* that so many percent of them do not exceed; not a number if there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan
