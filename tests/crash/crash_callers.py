"""The callers of one worker of the crash test: each wants one video, and follows one rule.

The rule: submit anew exactly when the error says that nothing was bought. Some callers leave: they are cancelled or run
out of time. Most of these come back and ask the ledger what became of their ticket; some never do.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from bide import (
    BideError,
    Client,
    LedgerError,
    SubmissionUnknownError,
    Task,
    TaskCancelledError,
    TaskExpiredError,
    TaskFailedError,
    VideoRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LOTS = 20
"""Every lot is of the same size; the emulator cuts the creates of one of them."""
PAUSE_SECONDS = 0.2
"""Between an error and what the caller does next."""
FOREIGN_SECONDS, MOST_FOREIGN = 0.5, 40
"""How often a caller asks for a ticket that belongs to another key, and how many times."""
LEAVERS = 0.6
"""The share of the callers of `run` that leave, where callers are cancelled."""
LEAVE_SECONDS = ((0.0, 0.02), (0.0, 0.4), (0.0, 4.0), (2.0, 12.0))
"""After how many seconds they leave: while the request is put on record, while it waits, or later."""


class Place(Protocol):
    """What callers know of their process."""

    loses_ledger: bool
    """Whether a fault of the ledger is the end: its file is gone."""

    async def client(self) -> Client:
        """The client of the process, once one is open."""
        ...


def wish_of(ticket: str) -> str:
    """The wish for which *ticket* was submitted."""
    return ticket.partition(".")[0]


def request_of(ticket: str) -> VideoRequest:
    """The request of *ticket*, the same one in every process."""
    # DashScope takes no ticket of ours, so the prompt tells the emulator whose task it is.
    lot = zlib.crc32(f"lot of {ticket}".encode()) % LOTS
    return VideoRequest(f"ticket {ticket}, lot {lot}, a kitten in the rain", model="wan2.6-t2v")


def is_cut(ticket: str) -> bool:
    """Whether the emulator cuts the create of *ticket*."""
    return "lot 0," in request_of(ticket).prompt


class Caller:
    """One caller.

    Args:
        note: writes a line of the diary.
        leaves: whether callers are cancelled and time out in this run.
        is_heir: whether it asks for what a caller in a process that is gone has asked for. It does not leave.
    """

    def __init__(
        self, place: Place, wish: str, note: Callable[..., None], *, leaves: bool, is_heir: bool = False
    ) -> None:
        self._place = place
        self._wish = wish
        self._note = note
        self._chance = random.Random(f"{wish} {is_heir}")
        self._runs = self._chance.random() < 0.5
        self._leaves = leaves and self._runs and not is_heir and self._chance.random() < LEAVERS
        self._number = 1
        self._follows = False
        self._foreign = 0

    async def pursue(self, ticket: str) -> None:
        """Go on until the wish has ended. *ticket* is the first one, or that of the caller before."""
        self._number = int(ticket.partition(".")[2] or 1)
        ends: str | None = None
        while ends is None:
            client = await self._place.client()
            try:
                task = await self._ask(client, ticket)
            except BideError as error:
                ticket, ends = self._decide(ticket, error)
                if ends is None:
                    await asyncio.sleep(PAUSE_SECONDS)
            except LookupError:
                self._note("told", ticket, error="LookupError", bought=False)
                ticket = self._anew(ticket)
            except ValueError as error:  # it belongs to the old key, for now
                self._note("told", ticket, error="ValueError", text=str(error)[:200])
                ends = await self._ask_later()
            else:
                ends = "abandoned" if task is None else "delivered"
                self._note("result" if task is not None else "gone", ticket, task_id=task and task.task_id)
        self._note("ends", ticket, how=ends)

    async def _ask_later(self) -> str | None:
        """Wait, as the ticket belongs to another key for now. Returns how the wish has ended, if that lasts long."""
        self._foreign += 1
        await asyncio.sleep(FOREIGN_SECONDS)
        return "foreign" if self._foreign > MOST_FOREIGN else None

    async def _ask(self, client: Client, ticket: str) -> Task | None:
        """The result of one try; None if the caller has left for good."""
        if self._follows:
            self._note("follows", ticket)
            handle = await client.attach(ticket=ticket)
            return await handle.result()
        self._note("asks", ticket)
        request = request_of(ticket)
        if not self._runs:
            handle = await client.submit(request, ticket=ticket)
            self._note("returned", ticket)
            return await handle.result()
        if not self._leaves:
            return await client.run(request, ticket=ticket)
        self._leaves = False
        seconds = self._chance.uniform(*self._chance.choice(LEAVE_SECONDS))
        if self._chance.random() < 0.5:
            self._note("may leave", ticket, seconds=seconds, how="timed out")
            return await client.run(request, ticket=ticket, timeout=seconds)
        return await self._run_cancelled(client, ticket, seconds)

    async def _run_cancelled(self, client: Client, ticket: str, seconds: float) -> Task | None:
        running = asyncio.create_task(client.run(request_of(ticket), ticket=ticket))
        done, _ = await asyncio.wait([running], timeout=seconds)
        if not done:
            self._note("left", ticket, how="cancelled")
            running.cancel()
            await asyncio.wait([running])
        if not running.cancelled():
            return running.result()
        if self._chance.random() < 0.25:
            return None
        self._follows = True
        await asyncio.sleep(self._chance.choice((0.0, 0.05, 0.5)))
        return await self._ask(await self._place.client(), ticket)

    def _decide(self, ticket: str, error: BideError) -> tuple[str, str | None]:
        """What follows from *error*: the next ticket, and how the wish has ended, if it has."""
        self._note(
            "told",
            ticket,
            error=type(error).__name__,
            bought=error.bought,
            task_id=error.task_id,
            text=str(error)[:200],
        )
        if isinstance(error, LedgerError) and self._place.loses_ledger:
            return ticket, "ledger lost"
        if isinstance(error, SubmissionUnknownError):
            if self._chance.random() < 0.5:
                return ticket, "unknown"
            ticket = self._next(ticket)
            self._note("decides", ticket, how="again")
            self._follows = False
        elif error.bought is False:
            ticket = self._anew(ticket)
        elif isinstance(error, TaskFailedError | TaskExpiredError | TaskCancelledError):
            return ticket, "failed"
        elif error.bought is None and not self._follows:
            return ticket, f"left without an answer: {type(error).__name__}"
        else:
            self._follows = True
        return ticket, None

    def _anew(self, ticket: str) -> str:
        """Nothing was bought: the wish is submitted again, under the same ticket or a new one."""
        self._follows = False
        if self._chance.random() < 0.5:
            ticket = self._next(ticket)
        self._note("decides", ticket, how="anew")
        return ticket

    def _next(self, ticket: str) -> str:
        self._number += 1
        return f"{wish_of(ticket)}.{self._number}"


def unfinished(lines: list[dict[str, Any]]) -> dict[str, str]:
    """From the diaries of processes that are gone: the wishes that have not ended, each with its last ticket."""
    last: dict[str, str] = {}
    for line in sorted(lines, key=lambda each: float(each["at"])):
        if line["what"] in ("asks", "decides", "follows"):
            last[wish_of(line["ticket"])] = line["ticket"]
        elif line["what"] == "ends":
            last.pop(wish_of(line["ticket"]), None)
    return last
