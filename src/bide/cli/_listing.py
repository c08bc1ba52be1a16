"""`bide ls`: the records as a table, or as lines of JSON."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bide.cli._exits import OK
from bide.cli._ledger import driver_of, prompt_of
from bide.cli._out import show
from bide.cli._run import keep_the_log_quiet
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bide.cli._ledger import Place
    from bide.ledgers import OwnerView, Record

HEADINGS = ("TICKET", "STATUS", "KIND", "MODEL", "TASK", "AGE", "DRIVEN BY", "SAVED", "PROMPT")
LEAST_PROMPT, MOST_PROMPT = 20, 60
"""Characters of a prompt that are shown."""
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def ls(place: Place, *, everything: bool, as_json: bool) -> int:
    """List records; returns the exit status.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    if not place.exists:
        print(f"bide: nothing yet: there is no ledger at {place.path}", file=sys.stderr)
        return OK
    keep_the_log_quiet()
    records, owners, now = asyncio.run(_read(place, everything=everything))
    if as_json:
        show(_as_json(record, driver_of(record, owners), now) for record in records)
    elif records:
        show(_table([_row(record, driver_of(record, owners), now) for record in records]))
    else:
        print(f"bide: nothing {'' if everything else 'open '}in {place.path}", file=sys.stderr)
    return OK


async def _read(place: Place, *, everything: bool) -> tuple[list[Record], Sequence[OwnerView], float]:
    """The records, the processes that may drive them, and the ledger's clock."""
    async with place.ledger() as ledger:
        records = await ledger.records(all=everything)
        driven = any(record.owner is not None and not record.task.status.is_final for record in records)
        # It reads the whole file: only where there is somebody to be told of.
        owners = (await ledger.report()).owners if driven else ()
        return records, owners, ledger.now()


def _row(record: Record, driver: OwnerView | None, now: float) -> tuple[str, ...]:
    task = record.task
    overdue = " (overdue)" if _is_overdue(record, now) else ""
    drives = "-" if task.status.is_final else "nobody" if driver is None else f"pid {driver.pid}"
    return (
        record.ticket,
        f"{task.status}{overdue}",
        record.kind or "-",
        plain(task.model or "-", 40),
        task.task_id or "-",
        _age(record),
        drives,
        _saved(record),
        prompt_of(record) or "-",
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Columns as wide as they need to be; the prompts get what a terminal has left."""
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)][:-1]
    left = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths)
    room = max(LEAST_PROMPT, min(MOST_PROMPT, left))
    for row in (HEADINGS, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, plain(row[-1], room)])


def _as_json(record: Record, driver: OwnerView | None, now: float) -> str:
    task = record.task
    return json.dumps(
        {
            "ticket": record.ticket,
            "status": task.status,
            "kind": record.kind,
            "model": task.model,
            "task_id": task.task_id,
            "added_at": None if record.added_at is None else record.added_at.isoformat(),
            "overdue": _is_overdue(record, now),
            "driven_by": _driver_as_json(record, driver),
            "files": [file.path for file in record.files],
            "unsaved": list(record.unsaved),
            "expires_at": _expires_at(record),
            "error": None if task.error is None else task.error.message,
            "prompt": prompt_of(record),
        }
    )


def _driver_as_json(record: Record, driver: OwnerView | None) -> dict[str, Any] | None:
    if driver is None or record.task.status.is_final:
        return None
    return {"pid": driver.pid, "host": driver.host}


def _is_overdue(record: Record, now: float) -> bool:
    """Whether it goes on for longer than any task does: `bide forget` lets go of it."""
    return not record.task.status.is_final and record.slot_until <= now


def _age(record: Record) -> str:
    if record.added_at is None:
        return "-"
    return _span(max(0.0, (datetime.now(UTC) - record.added_at).total_seconds()))


def _saved(record: Record) -> str:
    """What was saved of it; where that is not all, for how long the rest can be fetched."""
    count, now = len(record.files), time.time()
    if not record.unsaved:
        return f"{count} file{'s'[: count > 1]}" if count else "-"
    results = sum(output.error is None for output in record.task.outputs)
    saved = f"{results - len(record.unsaved)} of {results}" if results > len(record.unsaved) else "no"
    ahead = [moment for moment in record.losses if moment > now]
    if not ahead:
        return f"{saved}, expired"
    return saved if min(ahead) == math.inf else f"{saved}, {_span(min(ahead) - now)} left"


def _expires_at(record: Record) -> str | None:
    """When the first of its unsaved results expires, or has expired."""
    moments = [record.task.outputs[place].expires_at for place in record.unsaved]
    first = min((moment for moment in moments if moment is not None), default=None)
    return None if first is None else first.isoformat()


def _span(seconds: float) -> str:
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{seconds // size:.0f} {unit}"
