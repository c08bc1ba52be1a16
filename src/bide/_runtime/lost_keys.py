"""`LostKeys`: what was submitted with a key that no open client holds any more, such as one that was replaced.

A task that was accepted goes on at the service. The new key of the same account can poll it, as the first poll shows. A
request that waits stays: only an explicit order (`Client.resume(other_keys=True)`) moves it to the keys of this client.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from bide._events import lines_of_ids, log_line
from bide.models import Task, TaskStatus
from bide.providers import TryAgain

if TYPE_CHECKING:
    from collections.abc import Collection

    from bide._service.account import Account
    from bide.ledgers import Record

RETRY_SECONDS = 10.0
"""If the service did not answer, its answer is asked for again after so many seconds."""
REFUSED_SECONDS = 600.0
"""After the service has not shown a task of another key, it is not asked for that key again for so long."""


class LostKeys:
    """Which other keys stand for the same account as the keys of this client."""

    def __init__(self, account: Account, owner: str) -> None:
        self._account = account
        self._ledger = account.ledger
        self._owner = owner
        self._next_try: dict[str, float] = {}
        self._reported: set[str] = set()

    async def adopt(self, tickets: Collection[str] | None = None) -> list[Record]:
        """Take over the tasks of lost keys that a key of this client can see; with *tickets*, only those."""
        lost = await self._ledger.lost_records(self._account.origin, self._account.keys)
        by_key: defaultdict[str, list[Record]] = defaultdict(list)
        for record in lost:
            if record.key is not None and (tickets is None or record.ticket in tickets):
                by_key[record.key].append(record)
        keys = [key for key, records in by_key.items() if await self.can_watch(key, records)]
        if tickets is None:
            self._report([record for record in lost if record.task.status is TaskStatus.WAITING])
        if not keys:
            return []
        return await self._ledger.adopt(
            self._account.origin, keys, self._owner, tickets=tickets, waiting=False
        )

    async def move_waiting(self) -> list[Record]:
        """Move what waits for lost keys to the keys of this client, which sends it."""
        lost = await self._ledger.lost_records(self._account.origin, self._account.keys)
        tickets = [record.ticket for record in lost if record.task.status is TaskStatus.WAITING]
        return await self._ledger.move_waiting(tickets, self._account.keys, owner=self._owner)

    async def can_watch(self, key: str, records: list[Record]) -> bool:
        """Whether a key of this client can see the tasks of *key*, to which *records* belong: the service shows it."""
        if key in self._account.watchable_keys:
            return True
        now = self._ledger.now()
        task_ids = [record.task.task_id for record in records if record.task.task_id is not None]
        if not task_ids or self._next_try.get(key, now) > now:
            return False
        outcomes = [
            await self._account.try_key(own, key, task_ids[-1]) for own in self._account.keys_in_order
        ]
        if any(isinstance(outcome, Task) for outcome in outcomes):
            self._next_try.pop(key, None)
            return True
        has_no_answer = any(isinstance(outcome, TryAgain) for outcome in outcomes)
        self._next_try[key] = now + (RETRY_SECONDS if has_no_answer else REFUSED_SECONDS)
        return False

    def _report(self, waiting: list[Record]) -> None:
        tickets = [record.ticket for record in waiting if record.ticket not in self._reported]
        self._reported.update(tickets)
        for some in lines_of_ids(tickets):
            log_line(
                logging.WARNING,
                f"{len(tickets)} requests wait for keys that no open client of this ledger holds, and are not sent: "
                f"{some}. Open a client with their key, or send them with the keys of this client: "
                f"client.resume(other_keys=True), or `bide resume --other-keys`",
            )
