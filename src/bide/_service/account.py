"""`Account`: the calls to a service, each with the right key and within the query rate; and the service's clock.

It stands between the adapters, which know the service's words, and submission and polling, which know when to call.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from attrs import define, evolve, field

from bide import _outside
from bide._events import log_line
from bide._service.outage import Outage
from bide._text import excerpt
from bide.errors import APIError, NotFoundError, TransportError, UnexpectedReplyError
from bide.models import Task
from bide.providers import Accepted, Denied, Page, TryAgain, Unclear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from bide._http.transport import MayBeSent, Transport
    from bide._service.query_rate import QueryLimiter
    from bide._wire import Call, Reply, Secret
    from bide.ledgers import Ledger, Record
    from bide.models import Output, Request
    from bide.providers import CancelOutcome, CreateOutcome, ListedTask, Provider, QueryOutcome

_T = TypeVar("_T")

CREATE_TIMEOUT_SECONDS = 60.0
QUERY_TIMEOUT_SECONDS = 20.0
"""Seconds for one exchange, the connection included."""
CLOCK_SLACK_SECONDS = 3.0
"""A service reports its clock in whole seconds, and an answer takes a moment to arrive."""
MOST_PAGES = 100
"""A list longer than this is not read to its end."""


@define
class Counters:
    """Calls sent to the service, and how many it has answered with 429."""

    creates: int = 0
    creates_429: int = 0
    queries: int = 0
    queries_429: int = 0
    lists: int = 0
    cancels: int = 0
    pauses: int = 0


@define(eq=False)
class Account:
    """One provider, with its keys and its query rate.

    Attributes:
        outage: whether the service answers queries, lists and cancels.
        origin: provider and origin, as `origin_of` joins them: where limits apply.
        keys: the fingerprints of the keys. All records of a client share this one value.
    """

    provider: Provider
    transport: Transport
    ledger: Ledger
    query_limiter: QueryLimiter
    _secrets: Mapping[str, Secret] = field(repr=False)
    counters: Counters = field(factory=Counters, init=False)
    outage: Outage = field(factory=Outage, init=False)
    origin: str = field(init=False)
    keys: frozenset[str] = field(init=False)
    _stand_ins: dict[str, str] = field(factory=dict, init=False)
    """Keys that this client does not hold, each with the key that can see the same tasks."""
    _offset: float | None = field(default=None, init=False)
    """How far the service's clock is ahead of the ledger's, by its last answer."""

    def __attrs_post_init__(self) -> None:
        self.origin = origin_of(self.provider, self.transport)
        self.keys = frozenset(self._secrets)

    @property
    def keys_in_order(self) -> tuple[str, ...]:
        """The fingerprints in the order in which the keys were given."""
        return tuple(self._secrets)

    @property
    def watchable_keys(self) -> frozenset[str]:
        """The keys whose tasks this client can poll: its own, and those that `try_key` has found."""
        return self.keys.union(self._stand_ins)

    async def create(self, record: Record, may_be_sent: MayBeSent | None = None) -> CreateOutcome:
        """Send the create of an admitted record, once. If anything fails after it was sent, the outcome is `Unclear`.

        Args:
            may_be_sent: see `Transport.send`.

        Raises:
            TransportError: nothing was sent: no connection was made, or *may_be_sent* has returned False.
        """
        if record.request is None or record.key is None:
            raise ValueError(f"ticket {record.ticket} has no request or no key: its create cannot be sent")
        call = self.provider.create_call(record.request, record.idempotency_key)
        self.counters.creates += 1
        try:
            reply = await self._send(
                call, record.key, CREATE_TIMEOUT_SECONDS, fresh=True, may_be_sent=may_be_sent
            )
            self.counters.creates_429 += reply.status == 429
            outcome = self.provider.read_created(reply, record.request)
            return Accepted(self._with_expiry(outcome.task)) if isinstance(outcome, Accepted) else outcome
        except TransportError as fault:
            if not fault.may_have_arrived:
                raise
            return Unclear(fault)
        except UnexpectedReplyError as fault:
            return Unclear(fault)
        except Exception as fault:  # noqa: BLE001 - after an adapter's bug, too, the create may have arrived
            return Unclear(misread(fault))

    async def query(self, key: str, task_id: str) -> QueryOutcome:
        """Query a task. The caller has acquired a place of the query limiter."""
        self.counters.queries += 1
        outcome = await self._ask(
            self.provider.query_call(task_id), key, lambda r: self.provider.read_task(r, task_id)
        )
        return self._with_expiry(outcome) if isinstance(outcome, Task) else outcome

    async def cancel(self, key: str, task_id: str) -> CancelOutcome:
        """Send the cancel call of a task."""
        async with self.place():
            self.counters.cancels += 1
            call = self.provider.cancel_call(task_id)
            return await self._ask(call, key, lambda r: self.provider.read_cancelled(r, task_id))

    async def list_tasks(
        self, key: str, since: float, until: float, model: str | None = None
    ) -> list[ListedTask] | TryAgain | Denied:
        """All tasks that were created from *since* to *until* (ledger's clock), from the service's list."""
        tasks: list[ListedTask] = []
        for number in range(1, MOST_PAGES + 1):
            async with self.place():
                self.counters.lists += 1
                call = self.provider.list_call(
                    self.service_time(since), self.service_time(until), number, model
                )
                page = await self._ask(call, key, self.provider.read_list)
            if not isinstance(page, Page):
                return page
            tasks.extend(page.tasks)
            if number >= page.pages or not page.tasks:
                break
        return tasks

    async def key_of(self, task_id: str) -> str:
        """The fingerprint of the key that *task_id* was made with: the only one, or the one that can see it.

        Raises:
            NotFoundError: none of them can.
            BideError: the query failed.
        """
        if len(self._secrets) == 1:
            return next(iter(self._secrets))
        for key in self._secrets:
            async with self.place():
                outcome = await self.query(key, task_id)
            if isinstance(outcome, Task):
                return key
            if isinstance(outcome, TryAgain):
                raise outcome.error.about(ticket=None, task_id=task_id, bought=None)
        raise NotFoundError(
            f"none of the {len(self._secrets)} keys of this client knows task {task_id}", task_id=task_id
        )

    async def try_key(self, own: str, key: str, task_id: str) -> QueryOutcome:
        """Query *task_id*, a task of a *key* that this client does not hold, with its key *own*.

        If the service shows the task, *own* stands for *key* from now on.
        """
        async with self.place():
            outcome = await self.query(own, task_id)
        if isinstance(outcome, Task):
            self._stand_ins[key] = own
        return outcome

    def as_curl(self, task: Task, request: Request | None, *, create: bool) -> str:
        """See `TaskHandle.as_curl`."""
        if not create:
            if task.task_id is None:
                raise ValueError(
                    f"ticket {task.ticket} has no task id, so there is no status query yet. as_curl(create=True) "
                    f"returns the create; to run that makes, and bills, a new task"
                )
            call = self.provider.query_call(task.task_id)
        elif request is None:
            raise ValueError(
                f"task {task.task_id} was made elsewhere, or stored without its request: its create is not known here"
            )
        else:
            call = self.provider.create_call(request, task.ticket)
        variable = next(iter(self.provider.key_variables), "API_KEY")
        return self.transport.as_curl(call, key_variable=variable)

    def service_time(self, moment: float) -> datetime:
        """A *moment* of the ledger's clock by the service's clock; by ours until an answer has shown the service's."""
        if self._offset is not None:
            return datetime.fromtimestamp(moment + self._offset, UTC)
        return datetime.fromtimestamp(_outside.wall_time() + moment - self.ledger.now(), UTC)

    @property
    def connected(self) -> bool:
        """Whether a connection to the service was ever made."""
        return self.transport.connected

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place of the query limiter, for one query."""
        await self.query_limiter.acquire()
        self.outage.note_try(asyncio.get_running_loop().time())
        try:
            yield
        finally:
            self.query_limiter.release()

    async def _ask(self, call: Call, key: str, read: Callable[[Reply], _T]) -> _T | TryAgain:
        """One exchange that may be repeated: a fault of the connection, and of the adapter, is `TryAgain`."""
        try:
            outcome = await self._exchange(call, key, read)
        except (TransportError, UnexpectedReplyError) as fault:
            outcome = TryAgain(fault)
        self.outage.note(outcome, asyncio.get_running_loop().time())
        return outcome

    async def _exchange(self, call: Call, key: str, read: Callable[[Reply], _T]) -> _T | TryAgain:
        reply = await self._send(call, key, QUERY_TIMEOUT_SECONDS)
        if reply.status == 429:
            self.counters.queries_429 += 1
            self.counters.pauses += 1
            now = asyncio.get_running_loop().time()
            self.query_limiter.window.note_refusal(now, reply.retry_after, _outside.chance.random())
        elif reply.status < 400:
            self.query_limiter.window.note_answer()
        try:
            return read(reply)
        except Exception as fault:  # noqa: BLE001 - an adapter's bug must not end a wait
            return TryAgain(misread(fault))

    def _with_expiry(self, task: Task) -> Task:
        """*task* with an expiry for the results whose address names none: the documented lifetime, from now on."""
        if not any(each.url is not None and each.expires_at is None for each in task.outputs):
            return task
        return evolve(task, outputs=tuple(map(self._output_with_expiry, task.outputs)))

    def _output_with_expiry(self, output: Output) -> Output:
        lifetime = self.provider.profile(output.kind).lifetime
        if output.url is None or output.expires_at is not None or lifetime is None:
            return output
        return evolve(output, expires_at=_outside.utc_now() + timedelta(seconds=lifetime))

    async def _send(
        self,
        call: Call,
        key: str,
        timeout: float,
        *,
        fresh: bool = False,
        may_be_sent: MayBeSent | None = None,
    ) -> Reply:
        reply = await self.transport.send(
            call,
            key=self._secrets[self._stand_ins.get(key, key)],
            timeout=timeout,
            fresh=fresh,
            may_be_sent=may_be_sent,
        )
        if reply.date is not None:
            self._offset = reply.date - self.ledger.now()
        if note := reply.retry_after_note:
            log_line(logging.WARNING, f"{self.origin} answered {call.method} with HTTP {reply.status}{note}")
        return reply


def origin_of(provider: Provider, transport: Transport) -> str:
    """Where limits apply: provider and origin, since one host may serve several APIs."""
    return f"{provider.name}@{transport.origin}"


def retry_after_of(outcome: TryAgain) -> float | None:
    """The `Retry-After` of a temporary fault in seconds, or None."""
    return outcome.error.retry_after if isinstance(outcome.error, APIError) else None


def misread(fault: Exception) -> UnexpectedReplyError:
    """The error for an unforeseen exception, such as a bug in an adapter. The exception may hold anything, so only its
    text is kept."""
    return UnexpectedReplyError(f"an answer could not be read: {type(fault).__name__}: {excerpt(str(fault))}")
