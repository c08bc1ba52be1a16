"""One request from waiting to accepted: admission, the one POST, and what to do when nobody knows.

    waiting --admitted--> submitting --2xx with an id------------------> queued | running | (already final)
       |                     |-- certainly not sent -------------------> waiting, the lane pauses
       |                     |-- refused for now ----------------------> waiting, the lane pauses
       |                     |-- refused ------------------------------> rejected
       '-- withdrawn         '-- may have arrived: looked up --found---> queued | running
                                                             '--not----> unknown

The record is written as `submitting` before the POST, and the id before anything else is done with the answer.
A POST that may have arrived is never sent again, unless the provider declares the create idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from attrs import evolve

from bide import _outcomes
from bide._events import log_line
from bide._service.account import CLOCK_SLACK, CREATE_TIMEOUT, misread
from bide.errors import BideError, LedgerError, TransportError, UnexpectedReplyError
from bide.ledgers import Held, Record
from bide.models import Billing, TaskStatus
from bide.providers import Accepted, NotNow, Refused, Unclear

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from bide._polling.poller import Poller
    from bide._service.account import Account
    from bide._submissions import Submissions
    from bide.ledgers import LaneTerms, Ledger
    from bide.models import Limits, Task
    from bide.providers import ListedTask

_T = TypeVar("_T")

POSTS_SHARE = 0.3
"""The share of the transport's places that creates may take. Each has a place at once: one that waited for it could
go out after a 429 has closed its lane."""
GIVE_UP_CONNECTING = 30.0
"""Seconds without any connection ever made, after which a request is rejected: the address must be wrong."""
LOOKUPS = (1.0, 3.0, 8.0, 15.0)
"""When to look for a create that may have arrived, in seconds after the fault: a list may lag behind."""
REPEATS = (1.0, 3.0, 8.0, 20.0)
"""When to send a create again that the provider declares idempotent, in seconds after the fault."""
RETRY = 5.0
"""Seconds until admission is tried again after a fault of the ledger, or of an adapter."""


class Submitter:
    """Admits what waits, sends it, and records what came of it.

    Args:
        poller: polls more often while requests wait for the slots of its tasks.
        terms: the lanes that a kind of work may use, by the keys of this client.
    """

    def __init__(
        self,
        account: Account,
        owner: str,
        submissions: Submissions,
        poller: Poller,
        terms: Callable[[str], Sequence[LaneTerms]],
    ) -> None:
        self._account = account
        self._ledger: Ledger = account.ledger
        self._origin = account.origin
        self._owner = owner
        self._submissions = submissions
        self._poller = poller
        self._terms = terms
        self._most_posts = max(1, int(account.transport.places * POSTS_SHARE))
        self._kinds: dict[str, int] = {}  # of what waits here, and how often that was heard
        self._exhausted: set[str] = set()  # kinds whose requests wait for a slot, which the poller knows
        self._stopping = False
        self._wake = asyncio.Event()
        self._posts: dict[asyncio.Task[None], Record] = {}
        self._first_post: float | None = None
        self._loop = asyncio.create_task(self._run(), name="bide submitter")

    def notice(self, record: Record) -> None:
        """A record of this service has changed, whoever drives it."""
        if record.owner == self._owner and record.task.status is TaskStatus.WAITING:
            self._kinds[record.kind] = self._kinds.get(record.kind, 0) + 1
        self.wake()

    @property
    def has_waiting(self) -> bool:
        """Whether something of this client may wait for a slot."""
        return bool(self._kinds)

    def wake(self) -> None:
        """Something has changed: a record waits, a slot is free, a create was answered."""
        self._wake.set()

    def recover(self, record: Record) -> None:
        """Find out what became of a create that somebody has sent who is gone now."""
        if self._stopping:
            return  # it is handed over with the rest
        gone = TransportError("whoever sent it was gone before it was answered")
        self._start(record, self._find_out(record, gone, since=record.admitted))

    async def stop(self) -> None:
        """Admit nothing more. A step of the ledger under way is not cut off: what it admits is sent."""
        self._stopping = True
        self._wake.set()
        await asyncio.wait([self._loop])

    async def aclose(self, grace: float) -> None:
        """Let POSTs under way finish for *grace* seconds. The rest ends as `unknown`; on a durable ledger it stays, for
        another client to look up."""
        await self.stop()
        if self._posts:
            await asyncio.wait(self._posts, timeout=grace)
        rest = dict(self._posts)
        for post in rest:
            post.cancel()
        if rest:
            await asyncio.wait(rest)
        for record in () if self._ledger.durable else rest.values():
            cut = TransportError("the client was closed before the create was answered")
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY):
                    await self._finish_unknown(record, cut)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._wake.clear()
            try:
                until = await self._admit_all()
            except Exception as fault:  # noqa: BLE001 - it reaches whoever waits, and admission goes on
                self._submissions.fail_waiting(fault if isinstance(fault, BideError) else misread(fault))
                until = self._ledger.now() + RETRY
            timer = None
            if until < math.inf:
                timer = loop.call_later(max(0.0, until - self._ledger.now()), self._wake.set)
            if not self._stopping:
                await self._wake.wait()
            if timer is not None:
                timer.cancel()

    async def _admit_all(self) -> float:
        """Admit what can be. Returns when to try again, by the ledger's clock."""
        until = math.inf
        for kind in tuple(self._kinds):
            while len(self._posts) < self._most_posts and not self._stopping:
                heard = self._kinds[kind]
                admitted = await self._ledger.admit(self._origin, kind, self._owner, self._terms(kind))
                if isinstance(admitted, Held):
                    until = min(until, admitted.until)
                    if admitted.is_idle:
                        self._exhausted.discard(kind)
                        if self._kinds[kind] == heard:
                            del self._kinds[kind]
                    elif kind not in self._exhausted:
                        self._exhausted.add(kind)
                        if self._submissions.pressure(kind):
                            self._poller.hurry(kind)
                    break
                self._start(admitted, self._create(admitted))
        return until

    def _start(self, record: Record, work: Coroutine[object, object, None]) -> None:
        post = asyncio.create_task(self._post(record, work), name=f"bide create {record.ticket}")
        self._posts[post] = record
        post.add_done_callback(self._posted)

    def _posted(self, post: asyncio.Task[None]) -> None:
        self._posts.pop(post, None)
        self._wake.set()

    async def _post(self, record: Record, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception as fault:  # noqa: BLE001 - whatever it is, it reaches whoever waits, and no slot is lost
            await self._finish_unknown(record, fault if isinstance(fault, BideError) else misread(fault))

    async def _keep(self, ticket: str, step: Callable[[], Awaitable[_T]], task_id: str | None = None) -> _T:
        """Take *step* of the ledger, again and again if need be: what the service has told is not to be lost."""
        while True:
            try:
                return await step()
            except Exception as fault:  # noqa: BLE001 - a ledger may be anybody's
                error = fault if isinstance(fault, BideError) else LedgerError(f"the ledger failed: {fault}")
                if task_id is not None:
                    error = LedgerError(
                        f"the service has accepted ticket {ticket} as task {task_id}, which could not be recorded yet: "
                        f"that is tried again, so do not submit it anew. {error}"
                    )
                log_line(logging.ERROR, f"{ticket}: could not be recorded (task id {task_id}): {error}")
                self._submissions.fail_waiters(ticket, error.about(ticket=ticket, task_id=task_id))
                await asyncio.sleep(RETRY)

    async def _accept(self, record: Record, task: Task) -> Record:
        """The create was answered with *task*."""
        if task.status is TaskStatus.SUCCEEDED and task.task_id is not None and not task.outputs:
            task = evolve(
                task, status=TaskStatus.RUNNING
            )  # done, but where the result is only a look will tell
        if task.status.is_final:
            return await self._ledger.finish(record.ticket, task, owner=self._owner)
        return await self._ledger.accept(record.ticket, task, owner=self._owner, admitted=record.admitted)

    async def _finish(self, record: Record, task: Task) -> None:
        """The create has made no task, for good."""
        await self._keep(record.ticket, lambda: self._ledger.finish(record.ticket, task, owner=self._owner))

    async def _create(self, record: Record) -> None:
        if not await self._submissions.is_wanted(record.ticket):
            gone = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE)
            await self._finish(record, gone)
            return
        if self._first_post is None:
            self._first_post = self._ledger.now()
        try:
            outcome = await self._account.create(record)
        except TransportError as fault:
            await self._not_sent(record, fault)
            return
        if isinstance(outcome, Unclear):
            self._submissions.note_fault(record.ticket, outcome.error)
            await self._find_out(record, outcome.error)
        else:
            await self._record(record, outcome)

    async def _find_out(self, record: Record, lost: BideError, since: float | None = None) -> None:
        """The create may have arrived. It is sent again only where the provider declares that harmless.

        Args:
            since: when it was lost, if not just now: however often it changes hands, there is an end to looking for it.
        """
        advised = 0.0
        for pause in REPEATS if self._account.provider.idempotent and record.request is not None else ():
            await asyncio.sleep(max(pause, advised))
            try:
                outcome = await self._account.create(record)
            except TransportError:
                continue
            # A refusal of the repetition says nothing about the first one: only an id does.
            if isinstance(outcome, Accepted):
                await self._record(record, outcome)
                return
            advised = (outcome.error.retry_after or 0.0) if isinstance(outcome, NotNow) else 0.0
            lost = outcome.error if isinstance(outcome, Unclear) else lost
            self._submissions.note_fault(record.ticket, lost)
        await self._look_up(record, lost, since)

    async def _record(self, record: Record, outcome: Accepted | Refused | NotNow) -> None:
        ticket, ledger = record.ticket, self._ledger
        match outcome:
            case Accepted(seen):
                task = record.task.advanced(seen)
                kept = await self._keep(ticket, lambda: self._accept(record, task), task.task_id)
                if kept.task.status is TaskStatus.SUBMITTING and kept.owner == self._owner:
                    await self._finish_unknown(record, _taken(task.task_id))
                elif kept.task.task_id != task.task_id:
                    log_line(
                        logging.ERROR,
                        f"{ticket}: task id {task.task_id} came too late: it is {kept.task.status}",
                    )
            case Refused(error):
                await self._finish(record, _outcomes.rejected(record.task, error))
            case NotNow(error, reason, certain):
                self._submissions.note_fault(ticket, error)
                limits = self._limits(record)
                after = error.retry_after
                await self._keep(
                    ticket,
                    lambda: ledger.put_back(
                        ticket,
                        reason,
                        owner=self._owner,
                        limits=limits,
                        certain=certain,
                        retry_after=after,
                    ),
                )
                await self._tell_pause(record, error)

    async def _not_sent(self, record: Record, fault: TransportError) -> None:
        """No connection was made. It waits and tries again, unless no connection ever works."""
        never = (
            not self._account.connected and self._ledger.now() - (self._first_post or 0) >= GIVE_UP_CONNECTING
        )
        if never and not fault.permanent:
            fault = TransportError(
                f"{fault}; no connection worked for {GIVE_UP_CONNECTING:g} s and nothing was sent: check base_url, the "
                f"network and the proxy ($HTTPS_PROXY, $NO_PROXY)",
                may_have_arrived=False,
            )
        if never or fault.permanent:
            await self._finish(record, _outcomes.rejected(record.task, fault))
            return
        self._submissions.note_fault(record.ticket, fault)
        limits = self._limits(record)
        await self._keep(
            record.ticket,
            lambda: self._ledger.put_back(
                record.ticket,
                "unreachable",
                owner=self._owner,
                limits=limits,
                certain=False,
                retry_after=None,
            ),
        )
        await self._tell_pause(record, fault)

    async def _tell_pause(self, record: Record, error: BideError) -> None:
        """The lane of *record* has been paused because of *error*. Telling it may fail; the record is safe by now."""
        key, now = record.key or "", self._ledger.now()
        self._account.counters.pauses += 1
        try:
            views = await self._ledger.lanes(self._origin, [key])
        except Exception as fault:  # noqa: BLE001 - a ledger may be anybody's
            log_line(logging.DEBUG, f"a pause could not be told: {type(fault).__name__}")
            return
        for view in views:
            if view.kind == record.kind:
                self._submissions.announce_pause(
                    record.ticket, key, max(0.0, view.state.paused_until - now), error
                )

    def _limits(self, record: Record) -> Limits:
        return next(each.limits for each in self._terms(record.kind) if each.key == record.key)

    async def _look_up(self, record: Record, fault: BideError, since: float | None) -> None:
        """The create may have arrived: find its task in the service's list, or call it unknown."""
        now = self._ledger.now()
        began = now if since is None else since
        # It may have been sent by a process that died long ago, but no later than a create may take.
        cut = min(now, (record.admitted or now) + CREATE_TIMEOUT)
        if self._account.provider.lists:
            # Of the looks that are past by now one is made, at once.
            to_come = [moment for moment in LOOKUPS if began + moment > now]
            for moment in to_come if len(to_come) == len(LOOKUPS) else [0.0, *to_come]:
                await asyncio.sleep(began + moment - self._ledger.now())
                found = await self._orphan(record, cut)
                if found is not None:
                    # A list tells no results: what has ended there is still to be looked at.
                    status = TaskStatus.RUNNING if found.status.is_final else found.status
                    await self._record(record, Accepted(evolve(found, status=status)))
                    return
        await self._finish_unknown(record, fault)

    async def _orphan(self, record: Record, cut: float) -> Task | None:
        """The task that the lost create has made, if exactly one can be it and it can belong to this one alone."""
        key, sent = record.key or "", record.admitted or cut
        since, until = sent - CLOCK_SLACK, cut + CLOCK_SLACK
        listed = await self._account.listed(key, since, until, record.task.model)
        if not isinstance(listed, list):
            self._submissions.note_fault(record.ticket, listed.error)
            return None
        # Read after the list: whatever it may show that is not known yet is among these.
        others = [
            each
            for each in await self._ledger.unsettled_records(self._origin, key)
            if each.ticket != record.ticket
        ]
        if any(_could_be_mixed_up(each, record, until) for each in others):
            return None
        ids = [each.task.task_id for each in listed if each.task.task_id is not None]
        known = await self._ledger.known_task_ids(self._origin, ids)
        # The first answer may have corrected our idea of the service's clock: the window is taken after it.
        window = (self._account.service_time(since), self._account.service_time(until))
        fits = [
            each.task
            for each in listed
            if each.task.task_id not in known
            and each.task.created_at is not None
            and window[0] <= each.task.created_at <= window[1]
            and _same_work(each, record)
        ]
        return fits[0] if len(fits) == 1 else None

    async def _finish_unknown(self, record: Record, fault: BideError) -> None:
        """Nobody can say whether the task was made; it counts as a slot for a while."""
        task = _outcomes.unknown(record.task, fault)
        hold = self._account.provider.profile(record.kind).unknown_hold

        async def finish() -> None:
            now = await self._ledger.get(record.ticket)
            # Of this attempt: it may have been put back and admitted anew meanwhile.
            is_this = now is not None and now.admitted == record.admitted
            if is_this and now is not None and now.task.status is TaskStatus.SUBMITTING:
                await self._ledger.finish(record.ticket, task, owner=self._owner, hold=hold)

        await self._keep(record.ticket, finish)


def _taken(task_id: str | None) -> UnexpectedReplyError:
    return UnexpectedReplyError(
        f"the service answered with task id {task_id}, which belongs to another ticket"
    )


def _could_be_mixed_up(other: Record, record: Record, until: float) -> bool:
    """Whether *other* too lacks its task, and the task may be of the same model and time as *record*'s."""
    if (
        other.task.model is not None
        and record.task.model is not None
        and other.task.model != record.task.model
    ):
        return False
    sent, mine = other.admitted or 0.0, record.admitted or 0.0
    still = other.task.status is TaskStatus.SUBMITTING
    return sent <= until and (still or mine <= sent + CREATE_TIMEOUT + 2 * CLOCK_SLACK)


def _same_work(listed: ListedTask, record: Record) -> bool:
    model, prompt = record.task.model, getattr(record.request, "prompt", None)
    if listed.task.model is not None and model is not None and listed.task.model != model:
        return False
    return listed.prompt is None or prompt is None or listed.prompt == prompt
