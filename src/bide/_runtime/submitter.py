"""One request from waiting to accepted: its admission, its one POST, and the record of the result.

    waiting --admitted--> submitting --2xx with an id------------------> queued | running | (already final)
       |                     |-- certainly not sent -------------------> waiting, this client pauses
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
from bide._runtime.lost_creates import Guess, LostCreates
from bide._runtime.reach import Reach
from bide._service.account import misread
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
    from bide.ledgers._lanes import Setback
    from bide.models import Task
    from bide.providers import CreateOutcome

_T = TypeVar("_T")

POSTS_SHARE = 0.15
"""The share of the transport's places that creates of one kind of work may take: if they hang, those of other kinds are
sent all the same. Each create gets its place at once. If it waited for a place, it could be sent after a 429 has paused
its lane."""
NEVER_CONNECTED_SECONDS = 30.0
"""After this many seconds without any connection the waiters get an error: the address may be wrong. The requests go
on waiting."""
RETRY_SECONDS = 5.0
"""Seconds until a step is tried again after a fault of the ledger, or of an adapter."""


class Submitter:
    """Admits requests that wait, sends them, and records the results.

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
        self._owner = owner
        self._submissions = submissions
        self._poller = poller
        self._terms = terms
        self._lost_creates = LostCreates(account, submissions)
        self._most_posts = max(1, int(account.transport.places * POSTS_SHARE))
        self._kinds: dict[
            str, int
        ] = {}  # kinds of work that may wait here, with a count of the news about each
        self._exhausted: set[str] = set()  # kinds whose requests wait for a slot, which the poller knows
        self._is_stopping = False
        self._wake = asyncio.Event()
        self._posts: dict[asyncio.Task[None], Record] = {}
        self._reach = Reach(account.ledger.now)
        self._sending: dict[
            str, str
        ] = {}  # the tickets whose creates are under way, with their kinds of work
        self._first_post: float | None = None
        self._loop = asyncio.create_task(self._run(), name="bide submitter")

    def notice(self, record: Record) -> None:
        """A record of this service has changed, whichever client drives it."""
        if record.owner == self._owner and record.task.status is TaskStatus.WAITING:
            self._kinds[record.kind] = self._kinds.get(record.kind, 0) + 1
        self.wake()

    @property
    def has_waiting(self) -> bool:
        """Whether a request of this client may wait for a slot."""
        return bool(self._kinds)

    def wake(self) -> None:
        """Try admission again: a record waits, a slot is free, or a create was answered."""
        self._wake.set()

    def recover(self, record: Record) -> None:
        """Find out what became of a create whose sender is gone."""
        if self._is_stopping or self._is_sending(record.ticket):
            return  # a closing client hands it over with the rest
        gone = TransportError("the client that sent it was gone before it was answered")
        self._start(record, self._resolve(record, gone, since=record.admitted))

    def send(self, record: Record) -> None:
        """Send *record*, an admitted one of this client, unless that is under way. (A record that was sent
        leaves the state `submitting` before its create ends here.)"""
        if not self._is_stopping and not self._is_sending(record.ticket):
            self._start_create(record)

    def _is_sending(self, ticket: str) -> bool:
        return any(record.ticket == ticket for record in self._posts.values())

    async def stop(self) -> None:
        """Admit nothing more. A step of the ledger under way is not stopped: the request that it admits is sent."""
        self._is_stopping = True
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
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._finish_unknown(record, cut)

    # Admission ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            self._wake.clear()
            try:
                until = await self._admit_all()
            except Exception as fault:  # noqa: BLE001 - a wait that times out names it, and admission goes on
                self._submissions.note_admission_fault(
                    fault if isinstance(fault, BideError) else misread(fault)
                )
                until = self._ledger.now() + RETRY_SECONDS
            timer = None
            if until < math.inf:
                timer = loop.call_later(max(0.0, until - self._ledger.now()), self._wake.set)
            if not self._is_stopping:
                await self._wake.wait()
            if timer is not None:
                timer.cancel()

    async def _admit_all(self) -> float:
        """Admit all that can be. Returns when to try again, by the ledger's clock."""
        until = math.inf
        for kind in tuple(self._kinds):
            while self._has_place(kind) and not self._is_stopping:
                if self._reach.is_lost:
                    if self._sending:
                        break  # it shows whether there is a connection again
                    if self._reach.next_try > self._ledger.now():
                        until = min(until, self._reach.next_try)
                        break
                news = self._kinds[kind]
                admitted = await self._ledger.admit(
                    self._account.origin, kind, self._owner, self._terms(kind)
                )
                if isinstance(admitted, Held):
                    until = min(until, admitted.until)
                    self._note_held(kind, admitted, news)
                    break
                self._start_create(admitted)
        return until

    def _has_place(self, kind: str) -> bool:
        """Whether one more create of this *kind* may be under way. Creates that are looked up do not count."""
        return sum(kind == each for each in self._sending.values()) < self._most_posts

    def _note_held(self, kind: str, held: Held, news: int) -> None:
        if held.is_idle:
            self._exhausted.discard(kind)
            if self._kinds[kind] == news:
                del self._kinds[kind]
        elif kind not in self._exhausted:
            self._exhausted.add(kind)
            if self._submissions.pressure(kind):
                self._poller.hurry(kind)

    def _start_create(self, record: Record) -> None:
        self._sending[record.ticket] = record.kind
        self._start(record, self._create(record))

    def _start(self, record: Record, work: Coroutine[object, object, None]) -> None:
        post = asyncio.create_task(self._post(record, work), name=f"bide create {record.ticket}")
        self._posts[post] = record
        post.add_done_callback(self._forget)

    def _forget(self, post: asyncio.Task[None]) -> None:
        self._posts.pop(post, None)
        self._wake.set()

    async def _post(self, record: Record, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception as fault:  # noqa: BLE001 - it reaches the waiters, and the slot is not lost
            await self._finish_unknown(record, fault if isinstance(fault, BideError) else misread(fault))

    # One create --------------------------------------------------------------------------------------------

    async def _create(self, record: Record) -> None:
        try:
            outcome = await self._send(record)
        finally:
            self._sending.pop(record.ticket, None)
            self._wake.set()
        if isinstance(outcome, Unclear):
            self._submissions.note_fault(record.ticket, outcome.error)
            await self._resolve(record, outcome.error)
        elif outcome is not None:
            await self._record(record, outcome)

    async def _send(self, record: Record) -> CreateOutcome | None:
        """Send the create of *record*. None if it was not sent: what that means is recorded."""
        await self._submissions.wait_for_callers(record.ticket)
        is_wanted_elsewhere = any(client != self._owner for client in record.wanted_by)
        if not is_wanted_elsewhere and not self._submissions.is_wanted(record.ticket):
            withdrawn = evolve(record.task, status=TaskStatus.CANCELLED, billing=Billing.NONE)
            await self._finish(record, withdrawn)
            return None
        if self._first_post is None:
            self._first_post = self._ledger.now()
        was_held_back = False

        async def may_be_sent() -> bool:
            nonlocal was_held_back
            try:
                may = await self._ledger.confirm(record.ticket, owner=self._owner, admitted=record.admitted)
            except LedgerError as fault:  # without its ledger nothing is sent
                self._submissions.note_fault(record.ticket, fault)
                may = False
            was_held_back = not may
            return may

        try:
            outcome = await self._account.create(record, may_be_sent)
        except TransportError as fault:
            outcome = None
            if not was_held_back:
                await self._record_unsent(record, fault)
                return None
            await self._take_back(record)
        self._reach.note_connection()
        return outcome

    async def _resolve(self, record: Record, lost: BideError, since: float | None = None) -> None:
        """The create may have arrived: record the task that it has made, or that this is unknown."""
        found = await self._lost_creates.find(record, lost, since)
        if isinstance(found, Accepted):
            await self._record(record, found)
        else:
            await self._finish_unknown(record, found)

    async def _record(self, record: Record, outcome: Accepted | Refused | NotNow) -> None:
        ticket = record.ticket
        match outcome:
            case Accepted(answered):
                task, guessed = record.task.merge(answered), isinstance(outcome, Guess)
                kept = await self._keep(
                    ticket, lambda: self._accept(record, task, guessed=guessed), task.task_id
                )
                if kept.task.status is TaskStatus.SUBMITTING and kept.owner == self._owner:
                    await self._finish_unknown(record, await self._id_is_taken(record, task.task_id or ""))
                elif kept.task.task_id != task.task_id:
                    log_line(
                        logging.ERROR,
                        f"{ticket}: task id {task.task_id} came too late: it is {kept.task.status}",
                    )
            case Refused(error):
                await self._finish(record, _outcomes.reject(record.task, error))
            case NotNow(error, reason):
                self._submissions.note_fault(ticket, error)
                await self._put_back(record, reason, error, retry_after=error.retry_after)

    async def _record_unsent(self, record: Record, fault: TransportError) -> None:
        """No connection was made. The request waits and is tried again, unless that can never help."""
        if fault.permanent:
            await self._finish(record, _outcomes.reject(record.task, fault))
            return
        self._reach.note_failure()
        self._submissions.note_fault(record.ticket, fault)
        await self._take_back(record, pass_over=True)
        seconds = max(0.0, self._reach.next_try - self._ledger.now())
        self._account.counters.pauses += 1
        self._submissions.announce_pause(record.ticket, record.key or "", seconds, fault)
        tried_for = self._ledger.now() - (self._first_post or 0)
        if not self._account.connected and tried_for >= NEVER_CONNECTED_SECONDS:
            self._submissions.fail_waiting(
                TransportError(
                    f"{fault}; no connection worked for {NEVER_CONNECTED_SECONDS:g} s and nothing was sent: check "
                    f"base_url, the network and the proxy ($HTTPS_PROXY, $NO_PROXY)",
                    may_have_arrived=False,
                )
            )

    # On record ---------------------------------------------------------------------------------------------

    async def _keep(self, ticket: str, step: Callable[[], Awaitable[_T]], task_id: str | None = None) -> _T:
        """Take *step* of the ledger, repeatedly if need be: the answer of the service must not be lost."""
        while True:
            try:
                return await step()
            except Exception as fault:  # noqa: BLE001 - a ledger may be the caller's own
                error = fault if isinstance(fault, BideError) else LedgerError(f"the ledger failed: {fault}")
                if task_id is not None:
                    error = LedgerError(
                        f"the service has accepted ticket {ticket} as task {task_id}, which could not be recorded yet: "
                        f"that is tried again, so do not submit it anew. {error}"
                    )
                log_line(logging.ERROR, f"{ticket}: could not be recorded (task id {task_id}): {error}")
                self._submissions.note_fault(ticket, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _accept(self, record: Record, task: Task, *, guessed: bool) -> Record:
        """The create was answered with *task*."""
        if task.status is TaskStatus.SUCCEEDED and task.task_id is not None and not task.outputs:
            task = _outcomes.await_outputs(task)  # it has ended, but only a poll shows its result
        if task.status.is_final:
            return await self._ledger.finish(record.ticket, task, owner=self._owner)
        try:
            return await self._ledger.accept(
                record.ticket, task, owner=self._owner, admitted=record.admitted, guessed=guessed
            )
        except LedgerError:
            # Its result reaches the waiters.
            self._poller.watch(evolve(record, task=task, guessed=guessed), answered=True)
            raise

    async def _finish(self, record: Record, task: Task) -> None:
        """The create has made no task, and is not tried again."""
        await self._keep(record.ticket, lambda: self._ledger.finish(record.ticket, task, owner=self._owner))

    async def _finish_unknown(self, record: Record, fault: BideError) -> None:
        """It is unknown whether the task was made. The record keeps its slot for a while."""
        task = _outcomes.mark_unknown(record.task, fault)
        hold = self._account.provider.profile(record.kind).unknown_hold

        async def finish() -> None:
            now = await self._ledger.get(record.ticket)
            # Only of this attempt: it may have been put back and admitted again meanwhile.
            is_this = now is not None and now.admitted == record.admitted
            if is_this and now is not None and now.task.status is TaskStatus.SUBMITTING:
                await self._ledger.finish(record.ticket, task, owner=self._owner, hold=hold)

        await self._keep(record.ticket, finish)

    async def _take_back(self, record: Record, *, pass_over: bool = False) -> None:
        """The create of *record* was not sent: the request waits again."""
        await self._keep(
            record.ticket,
            lambda: self._ledger.take_back(
                record.ticket, owner=self._owner, admitted=record.admitted, pass_over=pass_over
            ),
        )

    async def _put_back(
        self,
        record: Record,
        reason: Setback,
        error: BideError,
        *,
        retry_after: float | None,
    ) -> None:
        """The create has made no task for now: the request waits again, and its lane pauses."""
        limits = next(each.limits for each in self._terms(record.kind) if each.key == record.key)
        await self._keep(
            record.ticket,
            lambda: self._ledger.put_back(
                record.ticket,
                reason,
                owner=self._owner,
                admitted=record.admitted,
                limits=limits,
                retry_after=retry_after,
            ),
        )
        await self._announce_pause(record, error)

    async def _announce_pause(self, record: Record, error: BideError) -> None:
        """The lane of *record* pauses because of *error*. The announcement may fail; the change is recorded by now."""
        key, now = record.key or "", self._ledger.now()
        self._account.counters.pauses += 1
        try:
            views = await self._ledger.lanes(self._account.origin, [key])
        except Exception as fault:  # noqa: BLE001 - a ledger may be the caller's own
            log_line(logging.DEBUG, f"a pause could not be announced: {type(fault).__name__}")
            return
        for view in views:
            if view.kind == record.kind:
                seconds = max(0.0, view.state.paused_until - now)
                self._submissions.announce_pause(record.ticket, key, seconds, error)

    async def _id_is_taken(self, record: Record, task_id: str) -> UnexpectedReplyError:
        other = await self._keep(record.ticket, lambda: self._ledger.ticket_of_task(record.origin, task_id))
        return UnexpectedReplyError(
            f"the service answered with task id {task_id}, which it had given to ticket {other} already"
        )
