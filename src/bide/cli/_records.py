"""`bide ls`, `settle` and `forget`: the records as a table or JSON lines, and the user's decisions about them."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bide import DashScope, LedgerError
from bide.cli._messages import FAILED, OK, USAGE, worst_status
from bide.cli._output import duration_text, one_line, print_lines, silence_log
from bide.cli._place import driver_of, prompt_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bide.cli._place import Place
    from bide.ledgers import OwnerView, Record

HEADINGS = ("TICKET", "STATUS", "KIND", "MODEL", "TASK", "AGE", "DRIVEN BY", "SAVED", "PROMPT")
MIN_PROMPT_CHARACTERS, MAX_PROMPT_CHARACTERS = 20, 60
"""The width of the last column."""


# Listing -----------------------------------------------------------------------------------------------------


def ls(place: Place, *, everything: bool, as_json: bool) -> int:
    """List records; returns the exit status.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    if not place.exists:
        print(f"bide: nothing yet: there is no ledger at {place.path}", file=sys.stderr)
        return OK
    silence_log()
    records, owners, now = asyncio.run(_read(place, everything=everything))
    if as_json:
        print_lines(_json_line(record, driver_of(record, owners), now) for record in records)
    elif records:
        print_lines(_table([_row(record, driver_of(record, owners), now) for record in records]))
    else:
        print(f"bide: nothing {'' if everything else 'open '}in {place.path}", file=sys.stderr)
    return OK


async def _read(place: Place, *, everything: bool) -> tuple[list[Record], Sequence[OwnerView], float]:
    """The records, the processes that may drive them, and the ledger's clock."""
    async with place.ledger() as ledger:
        records = await ledger.records(all=everything)
        has_driver = any(record.owner is not None and not record.task.status.is_final for record in records)
        # A report reads the whole file, so it is made only if a record may have a driver.
        owners = (await ledger.report()).owners if has_driver else ()
        return records, owners, ledger.now()


def _row(record: Record, driver: OwnerView | None, now: float) -> tuple[str, ...]:
    task = record.task
    overdue = " (overdue)" if _is_overdue(record, now) else ""
    driven_by = "-" if task.status.is_final else "none" if driver is None else f"pid {driver.pid}"
    return (
        record.ticket,
        f"{task.status}{overdue}",
        record.kind or "-",
        one_line(task.model or "-", 40),
        task.task_id or "-",
        _age(record),
        driven_by,
        _saved(record),
        prompt_of(record) or "-",
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Columns as wide as their cells; the prompts get the rest of the terminal's width."""
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)][:-1]
    rest = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths)
    prompt_width = max(MIN_PROMPT_CHARACTERS, min(MAX_PROMPT_CHARACTERS, rest))
    for row in (HEADINGS, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, one_line(row[-1], prompt_width)])


def _json_line(record: Record, driver: OwnerView | None, now: float) -> str:
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
            "driven_by": _driver_json(record, driver),
            "files": [file.path for file in record.files],
            "unsaved": list(record.unsaved),
            "expires_at": _expires_at(record),
            "error": None if task.error is None else task.error.message,
            "prompt": prompt_of(record),
        }
    )


def _driver_json(record: Record, driver: OwnerView | None) -> dict[str, Any] | None:
    if driver is None or record.task.status.is_final:
        return None
    return {"pid": driver.pid, "host": driver.host}


def _is_overdue(record: Record, now: float) -> bool:
    """Whether it has been open for longer than any task takes, so that `bide forget` may remove it."""
    return not record.task.status.is_final and record.slot_until <= now


def _age(record: Record) -> str:
    if record.added_at is None:
        return "-"
    return duration_text(max(0.0, (datetime.now(UTC) - record.added_at).total_seconds()))


def _saved(record: Record) -> str:
    """How much of it is saved. If that is not all: also how long the rest can still be fetched."""
    count, now = len(record.files), time.time()
    if not record.unsaved:
        return f"{count} file{'s'[: count > 1]}" if count else "-"
    results = sum(output.error is None for output in record.task.outputs)
    saved = f"{results - len(record.unsaved)} of {results}" if results > len(record.unsaved) else "no"
    ahead = [moment for moment in record.losses if moment > now]
    if not ahead:
        return f"{saved}, expired"
    return saved if min(ahead) == math.inf else f"{saved}, {duration_text(min(ahead) - now)} left"


def _expires_at(record: Record) -> str | None:
    """When the first of its unsaved results expires, or has expired."""
    moments = [record.task.outputs[place].expires_at for place in record.unsaved]
    first = min((moment for moment in moments if moment is not None), default=None)
    return None if first is None else first.isoformat()


# Deciding ----------------------------------------------------------------------------------------------------


def settle(place: Place, ticket: str, task_id: str) -> int:
    """Record that an unknown submission is the task *task_id*; returns the exit status.

    Raises:
        ValueError: *task_id* cannot be the id of a task.
        LedgerError: the ledger cannot be used.
    """
    DashScope().query_call(task_id)  # all services allow the same characters in an id
    if not _check_exists(place):
        return USAGE
    silence_log()
    return asyncio.run(_settle(place, ticket, task_id))


async def _settle(place: Place, ticket: str, task_id: str) -> int:
    async with place.ledger() as ledger:
        try:
            await ledger.settle(ticket, task_id)
        except ValueError as error:
            return _print_refusal(error, FAILED)
        except LookupError as error:
            return _print_refusal(error, USAGE)
    print_lines([f"{ticket} {task_id}"])
    print(f"bide: it is open again: {place.command('resume')} watches it", file=sys.stderr)
    return OK


def forget(place: Place, tickets: Sequence[str]) -> int:
    """Remove records; returns the exit status.

    Raises:
        ValueError: no tickets were given.
        LedgerError: the ledger cannot be used.
    """
    if not tickets:
        raise ValueError("give at least one ticket, as bide ls shows them")
    if not _check_exists(place):
        return USAGE
    silence_log()
    return asyncio.run(_forget(place, tickets))


async def _forget(place: Place, tickets: Sequence[str]) -> int:
    statuses = set()
    async with place.ledger() as ledger:
        for ticket in dict.fromkeys(tickets):
            try:
                await ledger.forget(ticket)
            except LedgerError:
                raise
            except ValueError as error:
                statuses.add(_print_refusal(error, FAILED))
            except LookupError as error:
                statuses.add(_print_refusal(error, USAGE))
            else:
                print_lines([ticket])
    return worst_status(statuses)


def _check_exists(place: Place) -> bool:
    if not place.exists:
        print(f"bide: there is no ledger at {place.path}", file=sys.stderr)
    return place.exists


def _print_refusal(error: Exception, status: int) -> int:
    text = str(error.args[0]) if error.args else str(error)  # the text of a KeyError is a repr
    print(f"bide: {one_line(text, 2000)}", file=sys.stderr)
    return status
