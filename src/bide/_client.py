"""`Client`: submit requests to one service and await their results."""

from __future__ import annotations

import asyncio
import math
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Self, overload

import anyio

from bide import _outcomes, _outside
from bide._arguments import check_keys, check_kind, check_limits, check_rate, check_type, secrets_of
from bide._concurrency import wait_unless_closed
from bide._downloads.paths import check_writable, folder_of
from bide._downloads.settings import Downloads
from bide._events import Announcer, set_log_level_from_environment
from bide._handles import AsCompleted, Gathering, TaskHandle, check_timeout
from bide._http.fetcher import Fetcher
from bide._http.transport import Transport
from bide._polling.pace import Pace
from bide._runtime.engine import Engine
from bide._runtime.settings import ClientSettings
from bide._service.account import Account, origin_of
from bide._service.query_rate import query_limiter_for
from bide._statistics import statistics_of
from bide._text import excerpt
from bide._validators import is_ticket
from bide._wire import quote_id
from bide.errors import BideError, ClientClosedError, WaitTimeoutError
from bide.ledgers import MemoryLedger, Record
from bide.models import Billing, Deadlines, ImageRequest, RawRequest, Task, TaskStatus, VideoRequest

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Iterable, Sequence
    from types import TracebackType

    import httpx

    from bide._events import Event
    from bide._http.transport import HTTPClient
    from bide._runtime.settings import LimitsByKind
    from bide._runtime.wishes import Wish
    from bide._statistics import Statistics
    from bide._submissions import Submission
    from bide.ledgers import Ledger
    from bide.models import Request, SavedFile
    from bide.providers import Provider


class Client:
    """Submits requests to one service, obeys the limits of its keys, and fetches the results.

    Use it as `async with Client(...)`, or end it with `aclose()`; one that is dropped without that issues a
    `ResourceWarning` with the ids of what it leaves open. It belongs to one process, and to the event loop in
    which it is used first.

    Args:
        provider: `DashScope()`, `Dieyuyun()` or a `Provider` of your own.
        api_key: one key, or several keys of one account; None reads the provider's environment variable, such as
            $DASHSCOPE_API_KEY.
        limits: what each key may do: one `Limits` for every kind of work, or a mapping from kind ("image",
            "video") to `Limits`. What is left out or None has the limit that the service documents; `math.inf` lifts
            it.
        queries_per_second: status queries that the account may make in any second, lists and cancels included;
            None is the limit that the service documents, `math.inf` is no limit.
        deadlines: how many seconds a wait may last in each state; None is `Deadlines()`.
        pace: when tasks are polled; None is `Pace()`, which learns from the durations of earlier tasks.
            `Pace.fixed(3.0)` polls every 3 s.
        ledger: where records are kept; None is the running loop's own `MemoryLedger`. With a `SQLiteLedger` they
            outlive the process, and all processes that use the file share limits and tickets.
        adopt: whether this client takes over, now and later, what other clients of the key leave open on the ledger
            when they are closed or die. With False (for programs that run for a short while) only `resume` takes that
            over; tasks that were sent already are polled if `attach` asks for them, or while requests of this client
            wait for their slots.
        http_client: an `httpx.AsyncClient` of yours (or one with the same methods, such as httpx2's) that sends the
            calls to the API. bide does not close it, sends at most 10 requests at once through it, and downloads
            nothing with it: its headers could leak.
        transport: an httpx transport that sends all requests, such as `httpx.MockTransport` in tests.
        proxy: URL of a proxy; None takes the environment's ($HTTPS_PROXY, $NO_PROXY).
        on_event: called in the loop with an `Event` for each thing that happens to a submission. It must return soon;
            for longer work pass `queue.put_nowait` and read the queue elsewhere. An error that it raises is logged.
        save_to: a directory to which the client saves each result as soon as it exists, since results expire. A
            download that fails is tried again. Leaving the `async with` block waits for the downloads under way;
            `aclose` gives them its *grace*. On a durable ledger the client also saves there what other clients have
            left unsaved.
        downloads: how many files at once, how large, from which hosts; None is `Downloads()`.

    $BIDE_LOG (debug, info, warning or error) makes bide log what happens, to standard error or to the application's
    own log.

    Raises:
        TypeError, ValueError: no key, an unusable key, or arguments of a wrong type or that exclude each other.

    Example:
        async with Client(DashScope()) as client:
            task = await client.run(VideoRequest("a kitten runs in the moonlight", model="wan2.6-t2v"))
    """

    def __init__(
        self,
        provider: Provider,
        *,
        api_key: str | Sequence[str] | None = None,
        limits: LimitsByKind = None,
        queries_per_second: float | None = None,
        deadlines: Deadlines | None = None,
        pace: Pace | None = None,
        ledger: Ledger | None = None,
        adopt: bool = True,
        http_client: HTTPClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
        on_event: Callable[[Event], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
        downloads: Downloads | None = None,
    ) -> None:
        # Wrap the key first: a traceback of an error below may show the locals of this frame.
        keys, api_key = secrets_of(api_key), None
        if isinstance(provider, str | type) or not hasattr(provider, "create_call"):
            raise TypeError(
                f"provider must be an instance such as DashScope(), not {excerpt(repr(provider), 60)}"
            )
        if ledger is not None and (isinstance(ledger, type) or not hasattr(ledger, "admit")):
            raise TypeError(
                f"ledger must be a Ledger such as SQLiteLedger('tasks.db'), not {excerpt(repr(ledger), 60)}"
            )
        self._keys = check_keys(provider, keys)
        self._settings = settings = ClientSettings(
            provider=provider,
            limits=check_limits(limits),
            query_rate=check_rate(provider, queries_per_second),
            deadlines=check_type("deadlines", deadlines, Deadlines, "Deadlines(waiting=, queued=, running=)"),
            pace=check_type("pace", pace, Pace, "Pace(price=, floor=, cap=) or Pace.fixed(3.0)"),
            downloads=check_type("downloads", downloads, Downloads, "Downloads(at_once=, hosts=, ...)"),
            save_to=None if save_to is None else folder_of(save_to).absolute(),
            adopts=adopt,
            announcer=Announcer(provider.name, on_event),
        )
        self._ledger = ledger
        set_log_level_from_environment()
        self._transport = Transport(
            provider.base_url, http_client=http_client, transport=transport, proxy=proxy
        )
        self._fetcher = Fetcher(
            self._transport.origin,
            hosts=settings.downloads.hosts,
            at_once=settings.downloads.at_once,
            transport=transport,
            proxy=proxy,
        )
        self._engine: Engine | None = None
        self._starting: asyncio.Task[Engine] | None = None
        self._closed = False

    def __repr__(self) -> str:
        if not hasattr(self, "_transport"):
            return "<Client, not made>"
        return (
            f"<Client {self._settings.provider.name} at {self._transport.origin}, {len(self._keys)} key(s)>"
        )

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        try:
            left = None if self._closed or self._engine is None else self._engine.describe_left()
        except Exception:  # noqa: BLE001 - the constructor has failed, or the interpreter ends: parts are missing
            return
        if left is not None:
            _warn(f"unclosed {self!r}{left}", ResourceWarning, source=self)

    async def __aenter__(self) -> Self:
        try:
            await self._get_engine()
            await self._transport.warm()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._engine is not None and self._engine.background.is_inherited:
            return  # a forked child leaves the block with an error of its own; the client is its parent's
        try:
            if error is None and self._engine is not None and not self._closed:
                await self._engine.saver.settle()
        finally:
            await self.aclose()

    # Submitting --------------------------------------------------------------------------------------------

    async def submit(self, request: Request, *, ticket: str | None = None, again: bool = False) -> TaskHandle:
        """Put *request* on record and return its handle at once.

        The client waits for a slot, sends the create call and polls in the background. Cancelling this call withdraws
        the request if it has not been sent and no other caller wants it.

        Args:
            ticket: an id of your own (letters, digits, "." "_" "-"; it names files) that makes the call idempotent:
                the same ticket gives the same handle, for as long as the task is open or you hold its handle (on a
                durable ledger: in all its processes, as long as the record is kept). A ticket for which nothing was
                bought (`BideError.bought` is False) is submitted again. So run a batch again with the same tickets:
                what was bought is followed, and what was not is submitted.
            again: also submit the ticket again if its task has failed at the service, was cancelled or has expired.
                That buys another task.

        Raises:
            TypeError, ValueError: the request cannot be sent to this service, or *ticket* names another request.
            LedgerError: the request could not be put on record. `.bought` says whether it can still be sent.
            ClientClosedError: the client is closed.
        """
        engine = await self._engine_for_requests(ticket)
        record = self._record(engine, request, ticket)
        wish = engine.wishes.want(record.ticket)
        submission = await self._submit(engine, record, wish, again=again, is_own=ticket is not None)
        wish.keep(submission)
        return TaskHandle.of(engine, submission)

    async def run(
        self,
        request: Request,
        *,
        ticket: str | None = None,
        timeout: float | None = None,
        again: bool = False,
    ) -> Task:
        """`submit` and `result` in one.

        A caller that leaves this call does not want the task any more: you cancel it, *timeout* seconds pass, or it
        raises an error. Then the request is withdrawn if it has not been sent and no other caller wants it. A create
        under way is not stopped: the task that it makes goes on, and the error names it. After a cancel,
        `attach(ticket=)` shows what has become of it.

        Args:
            ticket: see `submit`; likewise *again*.
            timeout: seconds to wait at most; None leaves it to the client's `Deadlines`.

        Raises:
            BideError: the same errors as `submit` and `TaskHandle.result`. `.bought` says whether a task was made.
        """
        check_timeout(timeout)
        engine = await self._engine_for_requests(ticket)
        record = self._record(engine, request, ticket)
        wish = engine.wishes.want(record.ticket)
        submission = await self._submit(engine, record, wish, again=again, is_own=ticket is not None)
        try:
            task = await TaskHandle.of(engine, submission).result(timeout=timeout)
        except BideError as error:
            left = await wish.leave_with(error)
            if isinstance(error, WaitTimeoutError) and submission.task.status.is_final:
                if submission.record.bought is False and submission.task.error is None:
                    raise _outcomes.withdrawal(submission.task, error.fault, waited="in time") from None
                return _outcomes.result_of(submission.record, submission.task)  # it has ended meanwhile
            raise left from None
        except BaseException:
            wish.leave()
            raise
        wish.end()
        return task

    @overload
    async def gather(self, *requests: Request, return_exceptions: Literal[False] = False) -> list[Task]: ...

    @overload
    async def gather(self, *requests: Request, return_exceptions: bool) -> list[Task | BideError]: ...

    async def gather(
        self, *requests: Request, return_exceptions: bool = False
    ) -> list[Task] | list[Task | BideError]:
        """Submit all *requests* and wait for all of them. The results have the order of the requests.

        Cancelling this withdraws the requests that have not been sent. So does the first error, unless errors are
        returned. Tasks that were sent go on; the error's notes name them.

        Args:
            return_exceptions: return errors in the places of results instead of raising the first one.

        Raises:
            BideError: the error of the first task that failed, as from `TaskHandle.result`. Its `.bought` is False only
                if no task was made for any of the requests; `.tickets` has the tickets of the others.
            TypeError, ValueError: one of the requests cannot be sent to this service; none was submitted.
        """
        engine = await self._engine_for_requests()
        gathering = Gathering(engine, [self._record(engine, request, None) for request in requests])
        return await gathering.run(return_exceptions=return_exceptions)

    def as_completed(
        self, requests: Iterable[Request] | AsyncIterable[Request], *, window: int = 100
    ) -> AsCompleted:
        """An async iterator that submits *requests* gradually and yields each handle when its task is final.

        It takes a request from *requests* only while it is itself awaited, and holds at most *window* open handles, so
        *requests* may be endless. `handle.task.status` shows how a task has ended; `handle.result()` returns the task
        or raises its error. A caller that leaves the loop does not want the rest any more: what was not sent is
        withdrawn as soon as Python drops the iterator, 5 s after a cancelled step without a further one, or at once
        by `await iterator.aclose()`.

        Raises:
            BideError: while iterated: an error that does not end the task, such as `AuthenticationError`. Iterate again
                to go on.
            ValueError: *window* is less than 1.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window!r}")

        async def submit(request: Request) -> tuple[TaskHandle, Submission, Wish]:
            engine = await self._engine_for_requests()
            record = self._record(engine, request, None)
            wish = engine.wishes.want(record.ticket)
            submission = await self._submit(engine, record, wish)
            return TaskHandle.of(engine, submission), submission, wish

        return AsCompleted(requests, submit, window)

    async def attach(
        self, task_id: str | None = None, *, ticket: str | None = None, kind: str | None = None
    ) -> TaskHandle:
        """A handle for a task that was made elsewhere, or for a submission that is on record.

        With *task_id* alone: a task that the ledger need not know; it is polled at once. With *ticket* alone: the
        submission of that ticket, here or in another process on the ledger. A task that another process drives is
        followed through the ledger and not polled: its states show here, but no progress between them. With both: the
        submission of *ticket* ended as `unknown`, and you have found its task at the service. The submission is then
        open again, and its task is polled.

        Args:
            task_id: the service's id.
            ticket: the ticket that you gave to `submit`, or that `handle.ticket` shows.
            kind: "image" or "video": a task that was made elsewhere then uses a slot of that kind. With None it uses
                none.

        Raises:
            ValueError: *task_id* is not a possible id; *kind* is a misspelled kind; *ticket* belongs to another
                service, or to another key whose tasks the keys of this client cannot see; or, with both, the submission
                is not `unknown`, or the task belongs to another ticket.
            LookupError: *ticket* is on no record.
            NotFoundError: several keys are held and none of them knows the task.
            LedgerError: records cannot be read.
            ClientClosedError: the client is closed.
        """
        if task_id is not None:
            quote_id(task_id)
        if kind is not None:
            check_kind("kind", kind)
        engine = await self._get_engine()
        if ticket is not None:
            takeover = engine.takeover
            found = takeover.follow(ticket) if task_id is None else takeover.settle(ticket, task_id)
            # In a background task: this client must watch what the ledger gives to it, even if this caller leaves.
            submission = await wait_unless_closed(engine.background.spawn(found))
            submission.is_kept = True
            return TaskHandle.of(engine, submission)
        if task_id is None:
            raise TypeError("attach takes a task id, a ticket=, or both")
        account, ticket = engine.account, _outside.new_id(10)
        # Without a kind it is in no lane in which tasks are created, so its slot may last.
        longest = self._settings.provider.profile(kind).longest if kind else math.inf
        record = Record(
            ticket=ticket,
            origin=account.origin,
            kind=kind or "",
            request=None,
            keys=account.keys,
            owner=engine.owner,
            # In a background task: a cancel of the caller must not carry frames that hold the key.
            key=await wait_unless_closed(engine.background.spawn(account.key_of(task_id))),
            slot_until=account.ledger.now() + longest if longest < math.inf else math.inf,
            task=Task(ticket=ticket, task_id=task_id, status=TaskStatus.QUEUED),
        )
        submission = await wait_unless_closed(engine.background.spawn(engine.attach(record)))
        return TaskHandle.of(engine, submission)

    async def resume(self, *, other_keys: bool = False) -> list[TaskHandle]:
        """The handles of all open submissions that the ledger has for the keys of this client, oldest first.

        This client takes over what a closed client, or a process that died, has left: it submits what waits and polls
        what was accepted. A create whose answer was lost is looked up in the service's list; one that is not found
        ends as `unknown`, and its handle comes before the others. What another live process drives is followed through
        the ledger.

        A task that was made with a key which no open client holds any more, such as one that was replaced, is taken
        over too if the service shows it to a key of this client. A request that waits for such a key is not sent.

        Args:
            other_keys: also send, with the keys of this client, what waits for keys that no open client on the ledger
                holds. Make sure that no other program will come back with those keys: what it has submitted is sent by
                this client then.

        Raises:
            LedgerError: records cannot be read or written.
            ClientClosedError: the client is closed.
        """
        engine = await self._get_engine()
        resumed = engine.takeover.resume(other_keys=other_keys)
        submissions = await wait_unless_closed(engine.background.spawn(resumed))
        for submission in submissions:
            submission.is_kept = True
        return [TaskHandle.of(engine, submission) for submission in submissions]

    # Results -----------------------------------------------------------------------------------------------

    async def save(
        self,
        task: Task,
        directory: str | os.PathLike[str],
        *,
        output: int | None = None,
        overwrite: bool = False,
    ) -> list[SavedFile]:
        """Write the files of a succeeded *task* to *directory* as `{ticket}-{index}.{ext}`, each whole or not at all.

        Outputs that failed are left out. Each file is streamed to a hidden part file, which is renamed when it is whole
        and on disk. After a broken connection the download resumes where it broke off; if an address has stopped
        working, the service is asked for a new one; the next `save` resumes what a cancel, a failure or a crash has
        left. A file that was saved there before is not fetched again. The key is not sent with a download.

        Cancelling this stops the download, unless another caller waits for the same file.

        Args:
            output: save only this one of `task.outputs`, from 0.
            overwrite: fetch and write the file anew, whatever is there.

        Raises:
            DownloadError: a file could not be fetched or written; the others are saved nevertheless.
            TypeError, ValueError: the task has no results, or *directory* or *output* is invalid.
            ClientClosedError: the client was closed meanwhile.
        """
        engine = await self._get_engine()
        return await engine.saver.save(task, directory, output=output, overwrite=overwrite)

    async def statistics(self) -> Statistics:
        """What this client is doing, and what it has done: slots, queue, calls, 429s, pauses, final states."""
        return await statistics_of(await self._get_engine(), self._settings.limits_of)

    # The end -----------------------------------------------------------------------------------------------

    async def aclose(self, grace: float = 10.0, *, withdraw: bool = False) -> None:
        """End the client: admit nothing more, let creates under way finish, hand over what is open.

        Waits fail with `ClientClosedError`. Tasks at the service go on; the logger "bide" names their ids in a warning
        (on a durable ledger, at level INFO). Requests that were never sent are withdrawn; on a durable ledger they
        stay, and another client that holds the key goes on with them at once. You may call this twice, and from any
        task of the loop. A cancel does not cut it short.

        Args:
            grace: seconds that the service may take to answer creates under way. After that they end as `unknown`; on
                a durable ledger they are left for another client to look up. The downloads of `save_to` have the rest
                of these seconds; the next `save` resumes those that are not finished by then.
            withdraw: on a durable ledger, too, withdraw requests that were never sent.
        """
        self._closed = True
        if self._engine is None and self._starting is not None:
            with suppress(Exception), anyio.CancelScope(shield=True):
                self._engine = await asyncio.shield(self._starting)
        if self._engine is not None:
            await self._engine.aclose(grace, withdraw=withdraw)
        else:
            await self._fetcher.aclose()
            await self._transport.aclose()

    # Inside ------------------------------------------------------------------------------------------------

    async def _get_engine(self) -> Engine:
        """The engine. It is made at the first use, since it belongs to the running loop."""
        if self._engine is None:
            self._engine = await self._start()
        if self._closed:
            raise ClientClosedError("the client is closed; make a new one")
        self._engine.background.check()
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
        settings = self._settings
        if settings.save_to is not None:
            await check_writable(settings.save_to)
        ledger = MemoryLedger.of_loop() if self._ledger is None else self._ledger
        salt = await ledger.salt()
        keys = {key.fingerprint(salt): key for key in self._keys}
        origin = origin_of(settings.provider, self._transport)
        owner = await ledger.enter(origin, keys)
        try:
            query_limiter = query_limiter_for(ledger, origin, keys, settings.query_rate)
            if query_limiter.rate is not None:
                query_limiter.join(await ledger.share(owner, query_limiter.rate))
        except BaseException:
            await ledger.leave(owner)
            raise
        account = Account(settings.provider, self._transport, ledger, query_limiter, keys)
        return Engine(settings, account, owner, self._fetcher)

    async def _engine_for_requests(self, ticket: str | None = None) -> Engine:
        """The engine, for a call that has put nothing on record yet: it says so if it fails.

        Args:
            ticket: a caller's own ticket may be on record already, which only an open client can read.
        """
        try:
            return await self._get_engine()
        except BideError as error:
            raise error.about(ticket=ticket, task_id=None, bought=ticket is not None) from None

    async def _submit(
        self, engine: Engine, record: Record, wish: Wish, *, again: bool = False, is_own: bool = False
    ) -> Submission:
        """Submit *record* for a caller with *wish*. If that fails, the wish ends.

        Args:
            is_own: whether its ticket is the caller's own, and so may be on record already.
        """
        try:
            return await engine.submit(record, again=again)
        except ClientClosedError as error:
            wish.end()
            if is_own:
                raise error.about(ticket=record.ticket, task_id=None, bought=True) from None
            raise
        except BideError as error:
            raise await wish.leave_with(error) from None
        except BaseException:
            wish.leave()
            raise

    def _record(self, engine: Engine, request: Request, ticket: str | None) -> Record:
        if not isinstance(request, ImageRequest | VideoRequest | RawRequest):
            raise TypeError(
                f"submit takes an ImageRequest, VideoRequest or RawRequest, not {type(request).__name__}: "
                f"{excerpt(repr(request), 80)}"
            )
        check_kind("kind", request.kind)
        if ticket is None:
            ticket = _outside.new_id(10)
        elif not is_ticket(ticket):
            raise ValueError(
                f"not a ticket: {excerpt(repr(ticket), 80)}; expected 1 to 128 letters, digits, '.', '_' or '-', "
                f"starting with a letter or digit, since files are named by it"
            )
        # If the request can never be sent, that shows now, while the caller can still act on it.
        self._transport.check(self._settings.provider.create_call(request, ticket))
        return Record(
            ticket=ticket,
            origin=engine.account.origin,
            kind=request.kind,
            request=request,
            keys=engine.account.keys,
            owner=engine.owner,
            wanted_by=engine.wanted_by,
            task=Task(ticket=ticket, status=TaskStatus.WAITING, model=request.model, billing=Billing.NONE),
        )
