"""Share a ledger with other clients: adopt what they have left, follow what they drive, share the query rate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from bide._events import log_line
from bide._runtime.lost_keys import LostKeys
from bide._text import excerpt
from bide.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Collection

    from bide._concurrency import Background
    from bide._service.account import Account
    from bide._submissions import Submission, Submissions
    from bide.ledgers import Record


class Driver(Protocol):
    """What drives the submissions of a client: the engine."""

    @property
    def has_waiting(self) -> bool:
        """Whether a request of this client may wait for a slot."""
        ...

    def open(self, record: Record) -> Submission:
        """The submission of *record*, made if it is missing."""
        ...

    def take_up(self, record: Record) -> Submission:
        """Drive *record* from now on, which this client has adopted."""
        ...

    def change_record(self, record: Record) -> None:
        """*record* has changed."""
        ...

    def reconcile(self, record: Record) -> None:
        """This client owns *record*: make sure that it drives the record."""
        ...


class Takeover:
    """How one client shares its ledger.

    Args:
        adopts: whether it takes over all that other clients leave, or only what it must.
    """

    def __init__(
        self,
        account: Account,
        owner: str,
        background: Background,
        submissions: Submissions,
        driver: Driver,
        *,
        adopts: bool,
    ) -> None:
        self._account = account
        self._ledger = account.ledger
        self._owner = owner
        self._background = background
        self._submissions = submissions
        self._driver = driver
        self._adopts = adopts
        self._lost_keys = LostKeys(account, owner)
        self._is_reading = False
        self._has_to_adopt = False
        self._has_to_reconcile = False

    # In the background -------------------------------------------------------------------------------------

    def read_ledger_soon(self, *, adopt: bool = True) -> None:
        """Adopt what other clients have left, read what they have changed, and ask for our share of the query rate."""
        self._has_to_adopt = self._has_to_adopt or adopt
        self._start_reading()

    def reconcile_soon(self) -> None:
        """A step of the ledger failed, and may have given this client records to drive: read which it owns."""
        self._has_to_reconcile = True
        self._start_reading()

    def retry(self) -> None:
        """Reconcile now, if that has failed before."""
        if self._has_to_reconcile:
            self._start_reading()

    def _start_reading(self) -> None:
        if not self._background.is_closing and not self._is_reading:
            self._is_reading = True
            self._background.spawn(self._read_ledger())

    async def _read_ledger(self) -> None:
        try:
            if self._has_to_reconcile:
                await self._reconcile()
                self._has_to_reconcile = False
            while self._has_to_adopt:
                self._has_to_adopt = False
                if self._adopts:
                    await self.adopt()
                    continue
                left = [each.ticket for each in self._submissions.open() if each.record.owner is None]
                await self.adopt(tickets=left, waiting=False)
                # A waiting request needs the slots of such tasks, and no other client would see them become free.
                if self._driver.has_waiting:
                    await self.adopt(waiting=False)
            await self._catch_up()
            query_limiter = self._account.query_limiter
            if query_limiter.rate is not None:
                query_limiter.set_share(await self._ledger.share(self._owner, query_limiter.rate))
        except LedgerError as fault:  # the next hint of the ledger repeats it
            text = excerpt(str(fault), 1000)
            log_line(logging.WARNING, f"what other clients have left cannot be taken over: {text}")
        finally:
            self._is_reading = False

    async def _reconcile(self) -> None:
        mine = [each.ticket for each in self._submissions.open() if each.record.owner == self._owner]
        await self._catch_up(all_of_them=True)
        # This process was presumed dead, and no other one has taken these over.
        lost = [each.ticket for each in self._submissions.open() if each.record.owner is None]
        await self.adopt(tickets=[ticket for ticket in mine if ticket in lost])
        for record in await self._ledger.records_of(self._owner):
            self._driver.reconcile(record)

    async def _catch_up(self, *, all_of_them: bool = False) -> None:
        """Read changes of submissions that other clients drive: the news that a dying process sends may be lost."""
        others = {
            each.ticket: each.record.version
            for each in self._submissions.open()
            if self._ledger.durable and (all_of_them or each.record.owner != self._owner)
        }
        for record in await self._ledger.newer_records(others) if others else ():
            self._driver.change_record(record)

    async def adopt(
        self, *, tickets: Collection[str] | None = None, waiting: bool = True
    ) -> list[Submission]:
        """Take over what a closed client, or a process that died, has left open. Until a client sees the end of such a
        task, its slot stays in use.

        Args:
            tickets: only these; None is all.
            waiting: take over requests that wait, too, and so send them.
        """
        keys = self._account.keys if waiting else self._account.watchable_keys
        records = await self._ledger.adopt(
            self._account.origin, keys, self._owner, tickets=tickets, waiting=waiting
        )
        if tickets is None or tickets:
            records += await self._lost_keys.adopt(tickets)
        return [self._driver.take_up(record) for record in records]

    # On request --------------------------------------------------------------------------------------------

    async def resume(self, *, other_keys: bool = False) -> list[Submission]:
        """See `Client.resume`."""
        moved = await self._lost_keys.move_waiting() if other_keys else []
        adopted = [*map(self._driver.take_up, moved), *await self.adopt()]
        records = await self._ledger.open_records(self._account.origin, self._account.watchable_keys)
        submissions = [
            self._driver.open(await self.follow_record(record)) for record in filter(self._is_ours, records)
        ]
        # An adopted submission may have ended already, as `unknown`: not every service has a list that shows its task.
        return [*(each for each in adopted if each not in submissions), *submissions]

    async def follow(self, ticket: str) -> Submission:
        """The submission of a ticket that is on record, whichever client drives it.

        Raises:
            LookupError: *ticket* is on no record.
            ValueError: it belongs to another service or key.
        """
        self._background.check()
        there = self._submissions.get(ticket) if self._submissions.is_open(ticket) else None
        if there is not None and there.record.owner == self._owner:
            return there
        record = await self._ledger.get(ticket)
        if record is None:
            raise LookupError(
                f"no record of ticket {ticket!r}: it was never submitted on this ledger, or has been removed since"
            )
        record = await self.check_ours(record)
        if record.owner is None and not record.task.status.is_final:
            adopted = await self.adopt(tickets=[ticket], waiting=False)
            if adopted:
                return adopted[0]
        return self._driver.open(await self.follow_record(record))

    async def settle(self, ticket: str, task_id: str) -> Submission:
        """The submission of *ticket*, which ended as `unknown` and whose task was found to be *task_id*."""
        self._background.check()
        record = await self._ledger.get(ticket)
        if record is not None:
            await self.check_ours(record)
        await self._ledger.settle(ticket, task_id)
        return await self.follow(ticket)

    async def follow_record(self, record: Record) -> Record:
        """*record*; if another client drives it, the ledger reports its changes here from now on."""
        is_followed = record.owner == self._owner or record.followed
        is_wanted = self._owner in record.wanted_by or not record.is_submission
        if record.task.status.is_final or (is_followed and is_wanted):
            return record
        return await self._ledger.follow(record.ticket, client=self._owner) or record

    def _is_ours(self, record: Record) -> bool:
        """Whether a key of this client can send it, or see its task."""
        if record.key is None:
            return not self._account.keys.isdisjoint(record.keys)
        return record.key in self._account.watchable_keys

    async def check_ours(self, record: Record) -> Record:
        """*record*, if this client can go on with it: it has ended, or a key of this client can see its task.

        Raises:
            ValueError: it belongs to another service or key.
        """
        if record.origin != self._account.origin:
            raise ValueError(
                f"ticket {record.ticket!r} belongs to another service ({record.origin}); use a new ticket here"
            )
        if self._is_ours(record) or record.task.status.is_final:
            return record
        if record.key is None:
            raise ValueError(
                f"ticket {record.ticket!r} waits for another key: open a client with that key. If no client has it any "
                f"more, client.resume(other_keys=True) sends it with the keys of this client"
            )
        if await self._lost_keys.can_watch(record.key, [record]):
            return (
                await self._ledger.get(record.ticket) or record
            )  # another client may have adopted it meanwhile
        raise ValueError(
            f"ticket {record.ticket!r} was submitted with another key, and the service has not shown its task to a key "
            f"of this client: open a client with that key"
        )
