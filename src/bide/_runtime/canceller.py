"""Leaving a submission: withdrawing what was not sent, cancelling what was."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import evolve

from bide._concurrency import unless_closed
from bide.errors import APIError, ClientClosedError, LedgerError, WaitTimeoutError
from bide.models import Billing, ErrorDetail, TaskStatus
from bide.providers import Denied, Gone, Stopped, TooLate, TryAgain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bide._handles import TaskHandle
    from bide._runtime.engine import Engine
    from bide.ledgers import Record

log = logging.getLogger("bide")

CANCEL_TRIES = 5
BY_OTHERS = 15.0
"""Seconds in which another process has carried out a cancel that was asked for."""
IDS_A_LINE = 50
"""Ids that one line of the log names at most."""
REARM = 1.0
"""Seconds until a deadline is looked at again that ran out while its request was on its way."""


class Leaving:
    """How the submissions of one client are left.

    Attributes:
        cancels: the cancels under way, by ticket. Once begun they go on without whoever asked.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.cancels: dict[str, asyncio.Task[bool]] = {}

    async def withdraw(self, ticket: str, *, why: ErrorDetail | None = None) -> bool:
        """End *ticket* if it has not been sent. Returns whether it has ended that way."""
        ledger = self._engine.ledger
        record = await ledger.get(ticket)
        if record is None or record.task.status is not TaskStatus.WAITING:
            return False
        task = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE, error=why)
        return (await ledger.withdraw(ticket, task)).task.status is TaskStatus.CANCELLED

    async def withdraw_all(self, handles: Iterable[TaskHandle]) -> None:
        """Withdraw what the client drives and was not sent: nobody else could send it, or shall."""
        closed = ErrorDetail(
            message="the client was closed before this was sent: nothing was made, submit it again",
            type=ClientClosedError.__name__,
        )
        for handle in list(handles):
            if handle.task.status is TaskStatus.WAITING and handle._record.owner == self._engine.owner:
                await self.withdraw(handle.ticket, why=closed)

    async def cancel(self, handle: TaskHandle) -> bool:
        """See `TaskHandle.cancel`."""
        return await unless_closed(self.start_cancel(handle))

    def start_cancel(self, handle: TaskHandle) -> asyncio.Task[bool]:
        """Cancel in a task of our own, or share the one under way."""
        running = self.cancels.get(handle.ticket)
        if running is None:
            running = self.cancels[handle.ticket] = self._engine.spawn(self._cancel(handle))
            running.add_done_callback(lambda _: self.cancels.pop(handle.ticket, None))
        return running

    async def _cancel(self, handle: TaskHandle) -> bool:
        engine, is_asked = self._engine, False
        while not (handle.task.status.is_final or handle.task.status.is_accepted):
            if handle.task.status is TaskStatus.WAITING:
                await self.withdraw(handle.ticket)
                await asyncio.sleep(0)
            else:
                await engine.ledger.request_cancel(handle.ticket)
                is_asked = True
                if handle.task.status is TaskStatus.SUBMITTING:
                    await handle._changed()
        if is_asked and handle._record.owner not in (None, engine.owner):
            return await self._cancelled_by_others(handle)
        for attempt in range(CANCEL_TRIES):
            record, task_id = handle._record, handle.task_id
            if handle.task.status.is_final or task_id is None or record.key is None:
                break
            match await engine.account.cancel(record.key, task_id):
                case Stopped():
                    await self._answered(handle, taken=True)
                    return True
                case TooLate() | Gone():
                    await self._answered(handle, taken=False)
                    break
                case Denied(error):
                    raise error.about(ticket=handle.ticket, task_id=task_id)
                case TryAgain(error):
                    if isinstance(error, APIError) and error.status_code == 429:
                        pause = engine.account.turnstile.budget.paused_for(engine.clock())
                        engine.announce_pause(handle.ticket, record.key, pause, error)
                    if attempt == CANCEL_TRIES - 1:
                        raise error.about(ticket=handle.ticket, task_id=task_id)
                    await asyncio.sleep(2.0**attempt)
        return handle.task.status is TaskStatus.CANCELLED

    async def _cancelled_by_others(self, handle: TaskHandle) -> bool:
        """Whoever drives the submission cancels it, now that its id is known; whether that works shows soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BY_OTHERS):
                while not handle.task.status.is_final and handle._record.cancel_taken is None:
                    await handle._changed()
        return handle.task.status is TaskStatus.CANCELLED or bool(handle._record.cancel_taken)

    async def _answered(self, handle: TaskHandle, *, taken: bool) -> None:
        """Tell others who have asked for the cancel what the service has said to it, and look at the task soon."""
        self._engine.poller.look_soon(handle.ticket)
        if handle._record.cancelling:
            with suppress(LedgerError):  # the end will show
                await self._engine.ledger.record_cancel_answer(handle.ticket, taken=taken)

    def set_waiting_clock(self, handle: TaskHandle, seconds: float) -> None:
        """Withdraw the request if it gets no slot within *seconds*."""
        engine = self._engine

        def ran_out() -> None:
            if handle.task.status.is_final or handle.task.status.is_accepted:
                return
            if handle.task.status is TaskStatus.WAITING:
                engine.spawn(self._withdraw_late(handle, seconds))
            else:
                engine.poller.at(engine.clock() + REARM, ran_out)

        engine.poller.at(engine.clock() + seconds, ran_out)

    async def _withdraw_late(self, handle: TaskHandle, seconds: float) -> None:
        fault = self._engine.fault(handle)
        text = (
            f"ticket {handle.ticket} got no slot within {seconds:g} s (Deadlines.waiting) and was withdrawn: "
        )
        text += "nothing was sent" + (f". The last fault: {fault}" if fault else "")
        why = ErrorDetail(message=text, type=WaitTimeoutError.__name__)
        is_withdrawn = False
        with suppress(LedgerError):  # whoever waits has been told
            is_withdrawn = await self.withdraw(handle.ticket, why=why)
        if not is_withdrawn:
            self.set_waiting_clock(handle, REARM)  # it may have been admitted, and come back


def tell_left(left: Sequence[Record], *, durable: bool) -> None:
    """Name the tasks that go on without their client."""
    ids = [record.task.task_id or record.ticket for record in left]
    for start in range(0, len(ids), IDS_A_LINE):
        some = ", ".join(ids[start : start + IDS_A_LINE])
        if durable:
            log.info("closed; %d records stay for another client to go on: %s", len(ids), some)
        else:
            log.warning("closed with %d tasks left running: %s", len(ids), some)
