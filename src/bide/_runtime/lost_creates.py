"""Find the task of a create whose answer was lost.

Such a create is sent again only where the provider declares that harmless. Otherwise bide looks for its task in the
service's list. A listed task counts as found only if no other listed task fits this submission, and the task fits no
other submission. A list that could not be read has not shown that there is no task: the search goes on until one is
read, for ten minutes at most.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from bide._service.account import CLOCK_SLACK_SECONDS, CREATE_TIMEOUT_SECONDS
from bide._service.outage import wait_after_fault
from bide.errors import LedgerError, TransportError
from bide.models import TaskStatus
from bide.providers import Accepted, ListedTask, NotNow, TryAgain, Unclear

if TYPE_CHECKING:
    from bide._service.account import Account
    from bide._submissions import Submissions
    from bide.errors import BideError
    from bide.ledgers import Record
    from bide.providers import Denied


@frozen
class Guess(Accepted):
    """A listed task that fits by model and time alone: the list does not show its prompt."""


LOOKUP_SECONDS = (1.0, 3.0, 8.0, 15.0)
"""When the list is read, in seconds after the fault: a service may list a task a while after its create."""
LONGEST_SEARCH_SECONDS = 600.0
"""A search ends after this time, also if no list could be read since the last of those moments."""
MOST_LISTS = 4
"""So many lists are read at once, however many creates are looked up."""
REPEAT_PAUSE_SECONDS = (1.0, 3.0, 8.0, 20.0)
"""Seconds before each repetition of a create that the provider declares idempotent."""


class LostCreates:
    """Finds out what became of creates that may have arrived."""

    def __init__(self, account: Account, submissions: Submissions) -> None:
        self._account = account
        self._ledger = account.ledger
        self._submissions = submissions
        self._lists = asyncio.Semaphore(MOST_LISTS)

    async def find(self, record: Record, lost: BideError, since: float | None = None) -> Accepted | BideError:
        """The task that the create of *record* has made; if it cannot be found, the last fault: *lost*, or a later one.

        Args:
            since: when the answer was lost, by the ledger's clock; None is now. It does not change with the
                owner of the record, so the search ends.
        """
        if self._account.provider.idempotent and record.request is not None:
            repeated = await self._repeat(record, lost)
            if isinstance(repeated, Accepted):
                return repeated
            lost = repeated
        found = await self._look_up(record, since) if self._account.provider.lists else None
        if found is None:
            return lost
        # A list has no results: a task that has ended there is still to be polled.
        task = evolve(found.task, status=TaskStatus.RUNNING) if found.task.status.is_final else found.task
        return Guess(task) if found.prompt is None else Accepted(task)

    async def _repeat(self, record: Record, lost: BideError) -> Accepted | BideError:
        advised = 0.0
        for pause in REPEAT_PAUSE_SECONDS:
            await asyncio.sleep(max(pause, advised))
            try:
                outcome = await self._account.create(record)
            except TransportError:
                continue
            # A refused repetition says nothing about the first create: only an id does.
            if isinstance(outcome, Accepted):
                return outcome
            advised = (outcome.error.retry_after or 0.0) if isinstance(outcome, NotNow) else 0.0
            lost = outcome.error if isinstance(outcome, Unclear) else lost
            self._submissions.note_fault(record.ticket, lost)
        return lost

    async def _look_up(self, record: Record, since: float | None) -> ListedTask | None:
        began = self._ledger.now()
        start = began if since is None else since
        # The sender may have died long ago. It sent the create within the time limit of a create after the admission.
        latest = min(began, (record.admitted or began) + CREATE_TIMEOUT_SECONDS)
        # One look-up, done at once, replaces those whose moments have passed already.
        moments = [start + seconds for seconds in LOOKUP_SECONDS]
        to_come = [moment for moment in moments if moment > began]
        for moment in to_come if len(to_come) == len(moments) else [began, *to_come]:
            await asyncio.sleep(moment - self._ledger.now())
            found = await self._try_to_find(record, latest)
            if isinstance(found, ListedTask):
                return found
        while isinstance(found, TryAgain) and self._ledger.now() < began + LONGEST_SEARCH_SECONDS:
            await asyncio.sleep(wait_after_fault(self._ledger.now() - began))
            found = await self._try_to_find(record, latest)
        return found if isinstance(found, ListedTask) else None

    async def _list(self, record: Record, since: float, until: float) -> list[ListedTask] | TryAgain | Denied:
        """The list, read in its turn. While the service does not answer, one call at a time tests whether it does."""
        outage, clock = self._account.outage, asyncio.get_running_loop().time
        async with self._lists:
            while (wait := outage.next_try - clock()) > 0:  # noqa: ASYNC110 - its end moves with each try
                await asyncio.sleep(wait)
            outage.note_try(clock())
            return await self._account.list_tasks(record.key or "", since, until, record.task.model)

    async def _try_to_find(self, record: Record, latest: float) -> ListedTask | TryAgain | Denied | None:
        try:
            return await self._orphan(record, latest)
        except LedgerError as fault:  # it is temporary: the list has not been compared with the records
            self._submissions.note_fault(record.ticket, fault)
            return TryAgain(fault)

    async def _orphan(self, record: Record, latest: float) -> ListedTask | TryAgain | Denied | None:
        """The listed task that the lost create, sent not later than *latest*, has made; None if that is not certain;
        why the list could not be read."""
        key, sent = record.key or "", record.admitted or latest
        since, until = sent - CLOCK_SLACK_SECONDS, latest + CLOCK_SLACK_SECONDS
        asked_from = self._account.service_time(since)
        listed = await self._list(record, since, until)
        moved = (self._account.service_time(since) - asked_from).total_seconds()
        if isinstance(listed, list) and abs(moved) >= 1.0:
            # The answer has corrected the service's clock as we know it: that list was read for another time.
            listed = await self._list(record, since, until)
        if not isinstance(listed, list):
            self._submissions.note_fault(record.ticket, listed.error)
            return listed
        # Read after the list: each task in it that the ledger does not know yet belongs to one of these.
        unsettled = await self._ledger.unsettled_records(self._account.origin, key)
        others = [each for each in unsettled if each.ticket != record.ticket]
        if any(_could_be_confused(each, record, until) for each in others):
            return None
        ids = [each.task.task_id for each in listed if each.task.task_id is not None]
        known = await self._ledger.known_task_ids(self._account.origin, ids)
        # The list's answer may have corrected the service's clock as we know it: take the window after it.
        window = (self._account.service_time(since), self._account.service_time(until))
        fits = [
            each
            for each in listed
            if each.task.task_id not in known
            and each.task.created_at is not None
            and window[0] <= each.task.created_at <= window[1]
            and _is_same_work(each, record)
        ]
        return fits[0] if len(fits) == 1 else None


def _could_be_confused(other: Record, record: Record, until: float) -> bool:
    """Whether *other* has no task either, and its task may have the same model and time as the task of *record*."""
    models = {each.task.model for each in (other, record)}
    if None not in models and len(models) > 1:
        return False
    sent, ours = other.admitted or 0.0, record.admitted or 0.0
    is_submitting = other.task.status is TaskStatus.SUBMITTING
    return sent <= until and (
        is_submitting or ours <= sent + CREATE_TIMEOUT_SECONDS + 2 * CLOCK_SLACK_SECONDS
    )


def _is_same_work(listed: ListedTask, record: Record) -> bool:
    model, prompt = record.task.model, getattr(record.request, "prompt", None)
    if listed.task.model is not None and model is not None and listed.task.model != model:
        return False
    return listed.prompt is None or prompt is None or listed.prompt == prompt
