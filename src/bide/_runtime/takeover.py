"""Sharing a ledger with others: what they have left, what they drive, and the part of the query rate that is ours."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bide._events import log_line
from bide._text import excerpt
from bide.errors import LedgerError
from bide.models import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Collection

    from bide._handles import TaskHandle
    from bide._runtime.engine import Engine
    from bide.ledgers import Record


class Sharing:
    """How one client shares its ledger.

    Attributes:
        adopts: whether it takes over all that others leave, or only what it has to.
    """

    def __init__(self, engine: Engine, *, adopts: bool) -> None:
        self._engine = engine
        self.adopts = adopts
        self._is_looking_around = False
        self._has_to_adopt = False

    def look_around_soon(self, *, adopt: bool = True) -> None:
        """Take over what is left, and our part of the query rate."""
        self._has_to_adopt = self._has_to_adopt or adopt
        if self._engine._closing is None and not self._is_looking_around:
            self._is_looking_around = True
            self._engine.spawn(self._look_around())

    async def _look_around(self) -> None:
        try:
            while self._has_to_adopt:
                self._has_to_adopt = False
                if self.adopts:
                    await self.adopt()
                    continue
                left = [each.ticket for each in self._engine._open.values() if each._record.owner is None]
                await self.adopt(tickets=left, waiting=False)
                if self._engine._submitter.has_waiting:  # for slots that nobody would see free themselves
                    await self.adopt(waiting=False)
            await self._catch_up()
            turnstile = self._engine.account.turnstile
            if turnstile.rate is not None:
                turnstile.limit(await self._engine.ledger.share(self._engine.owner, turnstile.rate))
        except LedgerError as fault:  # it will be tried again: a ledger tells of owners now and then
            log_line(
                logging.WARNING, f"what others have left cannot be taken over: {excerpt(str(fault), 1000)}"
            )
        finally:
            self._is_looking_around = False

    async def _catch_up(self) -> None:
        """Hear what was not heard of submissions that others drive: news can be lost, with whoever was to tell them."""
        others = {
            ticket: handle._record.version
            for ticket, handle in self._engine._open.items()
            if self._engine.ledger.durable and handle._record.owner != self._engine.owner
        }
        for record in await self._engine.ledger.newer_records(others) if others else ():
            self._engine._heard_of(record)

    async def adopt(
        self, *, tickets: Collection[str] | None = None, waiting: bool = True
    ) -> list[TaskHandle]:
        """Take over what a closed client, or a process that died, has left open: its slots stay in use until somebody
        sees the end."""
        handles = []
        for record in await self._engine.ledger.adopt(
            self._engine.origin, self._engine.keys, self._engine.owner, tickets=tickets, waiting=waiting
        ):
            handle = self._engine._handle(record)
            handles.append(handle)
            self._engine._watch(record)
            self._engine.poller.look_soon(record.ticket)
            if record.task.status is TaskStatus.SUBMITTING:
                self._engine._submitter.recover(record)
            elif record.cancelling and record.cancel_taken is None:
                self._engine.leaving.start_cancel(handle)
        return handles

    async def resume(self) -> list[TaskHandle]:
        """See `Client.resume`."""
        adopted = await self.adopt()
        records = await self._engine.ledger.open_records(self._engine.origin, self._engine.keys)
        handles = [self._engine._handle(await self.followed(record)) for record in records]
        # What was adopted may have ended already: as `unknown`, where a service has no list to look it up in.
        return [*(handle for handle in adopted if handle not in handles), *handles]

    async def follow(self, ticket: str) -> TaskHandle:
        """The handle of a ticket that is on record, whoever drives it."""
        self._engine.check()
        there = self._engine._open.get(ticket)
        if there is not None and there._record.owner == self._engine.owner:
            return there
        record = await self._engine.ledger.get(ticket)
        if record is None:
            raise LookupError(
                f"no record of ticket {ticket!r}: it was never submitted on this ledger, or has been removed since"
            )
        self.check_ours(record)
        if record.owner is None and not record.task.status.is_final:
            adopted = await self.adopt(tickets=[ticket], waiting=False)
            if adopted:
                return adopted[0]
        return self._engine._handle(await self.followed(record))

    async def settle(self, ticket: str, task_id: str) -> TaskHandle:
        """The handle of an `unknown` submission that is found to be *task_id*."""
        self._engine.check()
        record = await self._engine.ledger.get(ticket)
        if record is not None:
            self.check_ours(record)
        await self._engine.ledger.settle(ticket, task_id)
        return await self.follow(ticket)

    async def followed(self, record: Record) -> Record:
        """*record*, whose changes are heard from now on if somebody else makes them."""
        if record.owner == self._engine.owner or record.followed or record.task.status.is_final:
            return record
        return await self._engine.ledger.follow(record.ticket) or record

    def check_ours(self, record: Record) -> None:
        mine = (
            record.key in self._engine.keys if record.key else not self._engine.keys.isdisjoint(record.keys)
        )
        if record.origin != self._engine.origin or not mine:
            raise ValueError(
                f"ticket {record.ticket!r} belongs to another service or key ({record.origin}); use a new ticket here"
            )
