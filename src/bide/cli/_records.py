"""`bide settle` and `bide forget`: what a user decides about single records."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from bide import DashScope, LedgerError
from bide.cli._exits import FAILED, USAGE, worst
from bide.cli._out import show
from bide.cli._run import keep_the_log_quiet
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide.cli._ledger import Place


def settle(place: Place, ticket: str, task_id: str) -> int:
    """An unknown submission is found to be *task_id*; returns the exit status.

    Raises:
        ValueError: *task_id* can be none.
        LedgerError: the ledger cannot be used.
    """
    DashScope().query_call(task_id)  # all services take the same characters in an id
    if not _is_there(place):
        return USAGE
    keep_the_log_quiet()
    return asyncio.run(_settle(place, ticket, task_id))


async def _settle(place: Place, ticket: str, task_id: str) -> int:
    async with place.ledger() as ledger:
        try:
            await ledger.settle(ticket, task_id)
        except ValueError as error:
            return _tell(error, FAILED)
        except LookupError as error:
            return _tell(error, USAGE)
    show([f"{ticket} {task_id}"])
    print(f"bide: it is open again: {place.command('resume')} watches it", file=sys.stderr)
    return 0


def forget(place: Place, tickets: Sequence[str]) -> int:
    """Let go of records; returns the exit status.

    Raises:
        ValueError: no tickets were given.
        LedgerError: the ledger cannot be used.
    """
    if not tickets:
        raise ValueError("give at least one ticket, as bide ls shows them")
    if not _is_there(place):
        return USAGE
    keep_the_log_quiet()
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
                statuses.add(_tell(error, FAILED))
            except LookupError as error:
                statuses.add(_tell(error, USAGE))
            else:
                show([ticket])
    return worst(statuses)


def _is_there(place: Place) -> bool:
    if not place.exists:
        print(f"bide: there is no ledger at {place.path}", file=sys.stderr)
    return place.exists


def _tell(error: Exception, status: int) -> int:
    text = str(error.args[0]) if error.args else str(error)
    print(f"bide: {plain(text, 2000)}", file=sys.stderr)
    return status
