"""`Client`: submit requests to one service and await what comes of them."""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, overload

from bide._completed import AsCompleted, Completions
from bide._engine import Engine
from bide._events import Announcer, log_as_the_environment_says
from bide._pace import Pace
from bide._statistics import statistics_of
from bide._transport import Transport
from bide._wire import Secret, quoted, shown
from bide.errors import BideError, ClientClosedError, WaitTimeoutError
from bide.ledgers import MemoryLedger, Record
from bide.models import Billing, Deadlines, ImageRequest, Limits, RawRequest, Task, TaskStatus, VideoRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Sequence
    from types import TracebackType

    import httpx

    from bide._events import Event
    from bide._handle import TaskHandle
    from bide._statistics import Statistics
    from bide._transport import HTTPClient
    from bide.ledgers import Ledger
    from bide.models import Request, SavedFile
    from bide.providers import Provider

    Limiting: TypeAlias = Limits | Mapping[str, Limits] | None

_TICKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Client:
    """Submits requests to one service, keeps within what its keys allow, and brings the results home.

    Use it as `async with Client(...)`, or end it with `aclose()`. It belongs to the event loop that it is first
    used in, and to one process.

    Args:
        provider: `DashScope()`, `Dieyuyun()` or a `Provider` of your own.
        api_key: one key or several (they are taken to be of one account); None reads the provider's environment
            variable, such as $DASHSCOPE_API_KEY.
        limits: what each key may do: one `Limits` for every kind of work, or a mapping from kind ("image",
            "video") to `Limits`. What is left out is the provider's documented default.
        queries_per_second: status queries that the account may make in any second, lists and cancels included;
            None is the provider's documented default, `math.inf` no limit.
        deadlines: how long a wait may last by state; None is `Deadlines()`.
        ledger: where records are kept; None is the running loop's own `MemoryLedger`.
        http_client: an `httpx.AsyncClient` of yours (or one used alike, such as httpx2's) to send the API's calls
            with. It is not closed, carries at most 10 requests at once, and never downloads: its headers could leak.
        transport: an httpx transport to send with, such as `httpx.MockTransport` in tests.
        proxy: URL of a proxy; None takes the environment's ($HTTPS_PROXY, $NO_PROXY).
        on_event: called with an `Event` for each thing that happens to a submission, in the loop and at once: it must
            return soon. What it raises is logged. Hand over with `queue.put_nowait` to do more.

    $BIDE_LOG (debug, info, warning or error) shows what happens on standard error, or in the application's own log.

    Raises:
        ValueError: no key, an unusable key, or arguments that exclude each other.

    Example:
        async with Client(DashScope()) as client:
            task = await client.run(VideoRequest("a kitten runs in the moonlight", model="wan2.6-t2v"))
    """

    def __init__(
        self,
        provider: Provider,
        *,
        api_key: str | Sequence[str] | None = None,
        limits: Limiting = None,
        queries_per_second: float | None = None,
        deadlines: Deadlines | None = None,
        ledger: Ledger | None = None,
        http_client: HTTPClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if isinstance(provider, str | type) or not hasattr(provider, "create_call"):
            raise TypeError(
                f"provider must be an instance such as DashScope(), not {shown(repr(provider), 60)}"
            )
        if deadlines is not None and not isinstance(deadlines, Deadlines):
            raise TypeError(f"deadlines must be a Deadlines(waiting=, queued=, running=), not {deadlines!r}")
        if ledger is not None and not hasattr(ledger, "admit"):
            raise TypeError(f"ledger must be a Ledger such as MemoryLedger(), not {type(ledger).__name__}")
        self._provider = provider
        self._keys = _checked_keys(provider, api_key)
        self._limits = _checked_limits(limits)
        if queries_per_second is not None:
            if isinstance(queries_per_second, bool) or not isinstance(queries_per_second, int | float):
                raise TypeError(f"queries_per_second must be a number, not {queries_per_second!r}")
            if not queries_per_second > 0:
                raise ValueError(f"queries_per_second must be above 0, not {queries_per_second!r}")
        rate = provider.queries_per_second if queries_per_second is None else queries_per_second
        self._rate = None if rate == math.inf else rate
        self._deadlines = Deadlines() if deadlines is None else deadlines
        self._ledger = ledger
        self._announcer = Announcer(provider.name, on_event)
        log_as_the_environment_says()
        self._transport = Transport(
            provider.base_url, http_client=http_client, transport=transport, proxy=proxy
        )
        self._engine: Engine | None = None
        self._starting: asyncio.Task[Engine] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Client {self._provider.name} at {self._transport.origin}, {len(self._keys)} key(s)>"

    async def __aenter__(self) -> Self:
        try:
            await self._started()
            await self._transport.warm()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # Submitting --------------------------------------------------------------------------------------------

    async def submit(self, request: Request, *, ticket: str | None = None) -> TaskHandle:
        """Put *request* on record and return its handle at once.

        Waiting for a slot, the create call and the polling go on behind it. Cancelling this call withdraws the
        request if it has not been sent.

        Args:
            ticket: an id of your own (letters, digits, "." "_" "-"; it names files) that makes the call idempotent:
                the same ticket gives the same handle, for as long as the task is open or somebody holds its handle.

        Raises:
            TypeError, ValueError: the request cannot be sent to this service, or *ticket* names another request.
            ClientClosedError: the client is closed.
        """
        engine = await self._started()
        return await engine.submit(self._record(engine, request, ticket))

    async def run(self, request: Request, *, timeout: float | None = None) -> Task:
        """`submit` and `result` in one.

        Cancelling this, or running out of *timeout* seconds, withdraws the request if it has not been sent.

        Raises:
            BideError: whatever `TaskHandle.result` raises.
        """
        engine = await self._started()
        handle = await self.submit(request)
        try:
            return await handle.result(timeout=timeout)
        except asyncio.CancelledError:
            self._withdraw([handle])
            raise
        except WaitTimeoutError as error:
            if not await engine.withdraw(handle.ticket):
                raise
            text = f"ticket {handle.ticket} got no slot in time and was withdrawn: nothing was sent"
            _, _, fault = str(error).partition(". The last fault: ")
            text += f". The last fault: {fault}" if fault else ""
            raise WaitTimeoutError(text, task=handle.task, ticket=handle.ticket) from None

    @overload
    async def gather(self, *requests: Request, return_exceptions: Literal[False] = False) -> list[Task]: ...

    @overload
    async def gather(self, *requests: Request, return_exceptions: bool) -> list[Task | BideError]: ...

    async def gather(
        self, *requests: Request, return_exceptions: bool = False
    ) -> list[Task] | list[Task | BideError]:
        """Submit all *requests* and wait for all of them; the results stand in the order of the requests.

        Cancelling this withdraws what has not been sent; so does the first error, unless it is to be returned:
        tasks that were sent go on, and the error's notes name them.

        Args:
            return_exceptions: return errors in the places of results instead of raising the first one.

        Raises:
            BideError: whatever `TaskHandle.result` raises, of the first that failed.
            TypeError, ValueError: one of the requests cannot be sent to this service; none was submitted.
        """
        engine = await self._started()
        records = [self._record(engine, request, None) for request in requests]
        handles: list[TaskHandle] = []
        completions = Completions()
        ended: dict[str, Task | BideError] = {}
        try:
            for record in records:
                handles.append(await engine.submit(record))
                completions.add(handles[-1])
            while len(completions):
                ending = completions.ready()
                if ending is None:
                    await completions.wait()
                    continue
                outcome = await _outcome(*ending)
                if isinstance(outcome, BideError) and not return_exceptions:
                    raise outcome
                ended[ending[0].ticket] = outcome
        except BaseException as error:
            self._withdraw(handles)
            _note_left(error, handles)
            raise
        finally:
            completions.drop()
        return [ended[handle.ticket] for handle in handles]

    def as_completed(
        self, requests: Iterable[Request] | AsyncIterable[Request], *, window: int = 100
    ) -> AsCompleted:
        """Submit *requests* bit by bit; an async iterator that yields each handle when its task is final.

        It pulls requests only while it is itself awaited, and holds at most *window* open handles, so *requests* may
        be endless. Look at `handle.task.status`, or await `handle.result()` for the task or its error.

        Raises:
            BideError: while iterated: what waiters of a task are told while it goes on, such as
                `AuthenticationError`. Iterating again goes on.
            ValueError: *window* is less than 1.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window!r}")
        return AsCompleted(requests, self.submit, window)

    async def attach(self, task_id: str, *, kind: str | None = None) -> TaskHandle:
        """A handle for a task that was made elsewhere. The first look at it comes at once.

        Args:
            task_id: as the service gave it.
            kind: "image" or "video": the task counts as a slot of that kind then. None counts as none.

        Raises:
            ValueError: *task_id* cannot be one.
            NotFoundError: several keys are held and none of them knows the task.
            ClientClosedError: the client is closed.
        """
        quoted(task_id)
        engine = await self._started()
        ticket = secrets.token_hex(10)
        # Without a kind it is in no lane that anybody creates in, so its slot may last.
        slot_for = self._provider.profile(kind).longest if kind else math.inf
        return await engine.attach(
            Record(
                ticket=ticket,
                origin=engine.origin,
                kind=kind or "",
                request=None,
                keys=engine.keys,
                owner=engine.owner,
                lane=await engine.key_of(task_id),
                slot_until=engine.ledger.now() + slot_for,
                task=Task(ticket=ticket, task_id=task_id, status=TaskStatus.QUEUED),
            )
        )

    # Results -----------------------------------------------------------------------------------------------

    async def save(self, task: Task, directory: str | os.PathLike[str]) -> list[SavedFile]:
        """Write the files of a succeeded *task* to *directory* as `{ticket}-{index}.{ext}`, each whole or not at all.

        Raises:
            DownloadError: a file could not be fetched or written.
            ValueError: the task has no results.
        """
        return await (await self._started()).save(task, directory)

    async def statistics(self) -> Statistics:
        """What this client is doing, and what it has done: slots, queue, calls, 429s, pauses, ends."""
        return await statistics_of(await self._started(), self._limits_of)

    # The end -----------------------------------------------------------------------------------------------

    async def aclose(self, grace: float = 10.0) -> None:
        """End the client: admit nothing more, let creates under way finish, hand over what is open.

        Waits fail with `ClientClosedError`. Tasks at the service go on; a warning of the logger "bide" names their
        ids. What was never sent is withdrawn, unless the ledger is durable. May be called twice, from any task of
        the loop; a cancel does not cut it short.

        Args:
            grace: seconds that creates under way may take to be answered; after that they end as `unknown`.
        """
        self._closed = True
        if self._engine is None and self._starting is not None:
            with suppress(Exception):
                self._engine = await asyncio.shield(self._starting)
        if self._engine is not None:
            await self._engine.aclose(grace)
        else:
            await self._transport.aclose()

    # Inside ------------------------------------------------------------------------------------------------

    async def _started(self) -> Engine:
        """The engine; made at the first use, since it belongs to the loop."""
        if self._engine is None:
            self._engine = await self._start()
        if self._closed:
            raise ClientClosedError("the client is closed; make a new one")
        self._engine.check()
        return self._engine

    async def _start(self) -> Engine:
        if self._closed:
            raise ClientClosedError("the client is closed; make a new one")
        if self._starting is None:
            self._starting = asyncio.create_task(self._make_engine())
        try:
            return await asyncio.shield(self._starting)
        except Exception:
            self._starting = None
            raise

    async def _make_engine(self) -> Engine:
        ledger = MemoryLedger.of_loop() if self._ledger is None else self._ledger
        return Engine(
            provider=self._provider,
            transport=self._transport,
            ledger=ledger,
            keys={await ledger.fingerprint(key.reveal()): key for key in self._keys},
            limits=self._limits_of,
            queries_per_second=self._rate,
            deadlines=self._deadlines,
            pace=Pace(),
            announcer=self._announcer,
        )

    def _limits_of(self, kind: str) -> Limits:
        if isinstance(self._limits, Limits):
            return self._limits
        there = self._limits.get(kind) if self._limits is not None else None
        return self._provider.profile(kind).limits if there is None else there

    def _record(self, engine: Engine, request: Request, ticket: str | None) -> Record:
        if not isinstance(request, ImageRequest | VideoRequest | RawRequest):
            raise TypeError(
                f"submit takes an ImageRequest, VideoRequest or RawRequest, not {type(request).__name__}: "
                f"{shown(repr(request), 80)}"
            )
        if ticket is None:
            ticket = secrets.token_hex(10)
        elif not isinstance(ticket, str) or not _TICKET.fullmatch(ticket):
            raise ValueError(
                f"not a ticket: {shown(repr(ticket), 80)}; expected 1 to 128 letters, digits, '.', '_' or '-', "
                f"starting with a letter or digit, since files are named by it"
            )
        # The provider may refuse the request: better now than behind the caller's back.
        self._provider.create_call(request, ticket)
        return Record(
            ticket=ticket,
            origin=engine.origin,
            kind=request.kind,
            request=request,
            keys=engine.keys,
            owner=engine.owner,
            task=Task(ticket=ticket, status=TaskStatus.WAITING, model=request.model, billing=Billing.NONE),
        )

    def _withdraw(self, handles: Sequence[TaskHandle]) -> None:
        if self._engine is not None:
            for handle in handles:
                self._engine.withdraw_soon(handle)


async def _outcome(handle: TaskHandle, told: BideError | None) -> Task | BideError:
    """How a wait for *handle* ends: with its task, its error, or what its waiters were told."""
    if told is not None:
        return told
    try:
        return await handle.result()
    except BideError as error:
        return error


def _note_left(error: BaseException, handles: Sequence[TaskHandle]) -> None:
    """Name in *error*'s notes the tasks that go on without the caller."""
    ids = [handle.task_id or handle.ticket for handle in handles if _goes_on(handle)]
    if ids:
        error.add_note(
            f"{len(ids)} other tasks of this gather go on: {', '.join(ids)}; client.attach(id) follows one, "
            f"return_exceptions=True waits for all"
        )


def _goes_on(handle: TaskHandle) -> bool:
    return handle.task.status.is_accepted or handle.task.status is TaskStatus.SUBMITTING


def _checked_keys(provider: Provider, api_key: str | Sequence[str] | None) -> tuple[Secret, ...]:
    names = provider.key_variables
    if api_key is None:
        found = next((value for name in names if (value := os.environ.get(name))), None)
        if found is None:
            raise ValueError(f"no API key: pass api_key=, or set ${' or $'.join(names)} in the environment")
        api_key = found
    keys = tuple(api_key) if isinstance(api_key, list | tuple) else (api_key,)
    if not keys:
        raise ValueError("no API key: api_key is an empty sequence")
    for number, key in enumerate(keys, 1):
        if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"API key {number} of {len(keys)} cannot be sent: expected printable ASCII without spaces, got a "
                f"{type(key).__name__} of length {len(key) if isinstance(key, str) else '?'} (is there a line end?)"
            )
    return tuple(Secret(key) for key in dict.fromkeys(keys))


def _checked_limits(limits: Limiting) -> Limiting:
    if limits is None or isinstance(limits, Limits):
        return limits
    if not isinstance(limits, Mapping):
        raise TypeError(
            f"limits must be a Limits or a mapping from kind to Limits, such as Limits(concurrency=3), not {limits!r}"
        )
    for kind, each in limits.items():
        if not isinstance(each, Limits):
            raise TypeError(f"limits[{kind!r}] must be a Limits, not {type(each).__name__}")
    return dict(limits)
