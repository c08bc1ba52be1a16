"""Callers that follow one rule: submit anew exactly when the error says that nothing was bought."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bide import (
    APIError,
    BideError,
    ClientClosedError,
    LedgerError,
    SubmissionUnknownError,
    Task,
    TaskCancelledError,
    TaskFailedError,
    TaskStatus,
    TransportError,
    VideoRequest,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide import Client
    from simulation.hosts import Host
    from simulation.plans import Wish

MOST_ATTEMPTS = 30
PAUSE_SECONDS = 1.0
"""Between an error and what the caller does next."""


def bought(error: BideError) -> bool | None:
    """What a caller may conclude from *error*."""
    if hasattr(error, "bought"):
        told: bool | None = error.bought
        return told
    if isinstance(error, SubmissionUnknownError):
        return None
    if error.task_id is not None:
        return True
    if isinstance(error, LedgerError | TaskCancelledError):
        return False
    if isinstance(error, WaitTimeoutError | ClientClosedError):
        return not ("withdrawn" in str(error) or "nothing was made" in str(error))
    if isinstance(error, APIError):
        return False
    return not (isinstance(error, TransportError) and not error.may_have_arrived)


@dataclass
class Outcome:
    """What has become of a wish, as its caller sees it.

    Attributes:
        ends: "delivered", "failed", "refused", "cancelled", "unknown", "left", "killed", or None while it goes on.
        allowed: how many tasks may have been bought for it.
        tickets: the tickets under which it was submitted, as far as the caller knows them.
    """

    wish: Wish
    ends: str | None = None
    why: str = ""
    task: Task | None = None
    allowed: int = 1
    tickets: list[str] = field(default_factory=list)
    was_cancelled: bool = False
    errors: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    same_ticket: str | None = None
    left_at: float | None = None

    def end(self, how: str, why: object = "") -> None:
        if self.ends is None:
            self.ends, self.why = how, str(why)


def request_of(wish: Wish) -> VideoRequest:
    return VideoRequest(wish.name, model="wan2.6-t2v")


class Caller:
    """The asyncio task of one wish, or of a group of wishes that are asked for together."""

    def __init__(self, host: Host, outcomes: Sequence[Outcome]) -> None:
        self.host = host
        self.outcomes = list(outcomes)
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = self.host.loop.create_task(self._run())

    async def _run(self) -> None:
        wish = self.outcomes[0].wish
        try:
            if wish.way == "gather":
                await self._gather()
            elif wish.way == "as_completed":
                await self._as_completed()
            else:
                await self._persist(self.outcomes[0])
        except asyncio.CancelledError:
            for outcome in self.outcomes:
                if outcome.ends is None:
                    outcome.left_at = self.host.world.now
                outcome.end("left", "cancelled")
            raise

    # One wish ----------------------------------------------------------------------------------------------

    async def _persist(
        self, outcome: Outcome, error: BideError | None = None, client: Client | None = None
    ) -> None:
        """Go on with one wish until it has ended."""
        wish = outcome.wish
        follows: tuple[str | None, str | None] | None = None
        if error is not None:
            follows = self._decide(outcome, error)
        for attempt in range(MOST_ATTEMPTS):
            if outcome.ends is not None:
                return
            if attempt or error is not None:
                await asyncio.sleep(PAUSE_SECONDS)
            client = await self.host.open_client()
            try:
                if follows is None:
                    task = await self._ask(client, outcome)
                else:
                    task = await self._follow(client, *follows)
            except BideError as raised:
                follows = self._decide(outcome, raised)
            except LookupError as raised:
                if follows is not None and follows[1] is not None:
                    follows = (None, follows[1])
                elif follows is not None:
                    self.host.tell(f"{wish.name}: not on record: {follows[0]}")
                    outcome.same_ticket, follows = follows[0], None
                else:
                    outcome.end("lost", raised)
            else:
                self._deliver(outcome, task)
        outcome.end("gave up", outcome.errors[-1] if outcome.errors else "")

    def _decide(self, outcome: Outcome, error: BideError) -> tuple[str | None, str | None] | None:
        """What to do after *error*: None is to submit anew, else the ticket and the task id to follow."""
        told = bought(error)
        outcome.errors.append(f"{type(error).__name__}: {error}"[:300])
        self.host.tell(
            f"{outcome.wish.name}: told {type(error).__name__} (bought {told}): {str(error)[:110]}"
        )
        if isinstance(error, SubmissionUnknownError) or told is None:
            if outcome.wish.again_if_unknown:
                outcome.allowed += 1
                return None
            outcome.end("unknown", error)
        elif isinstance(error, TaskFailedError) or (
            isinstance(error, TaskCancelledError) and error.task_id is not None
        ):
            outcome.end("failed", error)
        elif told is False:
            if outcome.wish.way == "cancel" and isinstance(error, TaskCancelledError):
                outcome.end("cancelled", error)
            return None
        if error.ticket is None and error.task_id is None and outcome.tickets and outcome.tickets[-1]:
            outcome.unnamed.append(f"{type(error).__name__}: {error}")
            return outcome.tickets[-1], None
        if error.ticket is None and error.task_id is None:
            outcome.end("lost", f"told as bought, without a ticket or a task id: {error}")
        return error.ticket, error.task_id

    def _deliver(self, outcome: Outcome, task: Task) -> None:
        outcome.task = task
        outcome.end("delivered", task.task_id or "")

    async def _ask(self, client: Client, outcome: Outcome) -> Task:
        wish, request = outcome.wish, request_of(outcome.wish)
        if outcome.same_ticket is not None:
            handle = await client.submit(request, ticket=outcome.same_ticket)
            return await handle.result()
        number = len(outcome.tickets)
        if wish.way == "run":
            outcome.tickets.append("")
            return await client.run(request, timeout=wish.timeout)
        if wish.way == "run with ticket":
            ticket = _ticket(wish, number)
            outcome.tickets.append(ticket)
            handle = await client.submit(request, ticket=ticket)
            return await handle.result(timeout=wish.timeout)
        handle = await client.submit(request)
        outcome.tickets.append(handle.ticket)
        if wish.way == "cancel":
            await asyncio.sleep(wish.timeout or 0.05)
            await handle.cancel()
            return await handle.result()
        try:
            return await handle.result(timeout=wish.timeout)
        except WaitTimeoutError as error:
            if error.task is not None and error.task.status.is_final:
                raise
            return await handle.result()

    async def _follow(self, client: Client, ticket: str | None, task_id: str | None) -> Task:
        try:
            handle = await client.attach(task_id if ticket is None else None, ticket=ticket)
        except ValueError:  # it waits for a key that was replaced: only an order moves it to the new one
            await client.resume(other_keys=True)
            try:
                handle = await client.attach(task_id if ticket is None else None, ticket=ticket)
            except ValueError as error:  # no key that is left can find out what became of its create
                raise SubmissionUnknownError(str(error)) from None
        return await handle.result()

    # Many together -----------------------------------------------------------------------------------------

    async def _gather(self) -> None:
        client = await self.host.open_client()
        requests = [request_of(outcome.wish) for outcome in self.outcomes]
        gathering = client.gather(*requests, return_exceptions=True)
        timeout = self.outcomes[0].wish.timeout
        try:
            async with asyncio.timeout(timeout):
                results = await gathering
        except TimeoutError:
            for outcome in self.outcomes:  # whoever leaves has said that it is not wanted
                outcome.end("left", "timed out")
            return
        except BideError as error:
            results = await self._sorted_out(error)
        await self._finish(dict(zip(range(len(results)), results, strict=True)))

    async def _sorted_out(self, error: BideError) -> list[BideError]:
        """What the error of a `gather` says of each of its requests: those of its tickets go on."""
        found: dict[str, str] = {}
        for ticket in error.tickets:
            while True:
                client = await self.host.open_client()
                try:
                    handle = await client.attach(ticket=ticket)
                except BideError:
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                found[handle.request.prompt] = ticket  # type: ignore[union-attr]
                break
        return [
            error.about(ticket=found.get(outcome.wish.name), task_id=None, bought=outcome.wish.name in found)
            for outcome in self.outcomes
        ]

    async def _as_completed(self) -> None:
        client = await self.host.open_client()
        requests = [request_of(outcome.wish) for outcome in self.outcomes]
        results: dict[int, Task | BideError] = {}
        iterator = client.as_completed(requests, window=3)
        last: BideError | None = None
        for _ in range(MOST_ATTEMPTS):
            try:
                handle = await anext(iterator)
            except StopAsyncIteration:
                break
            except ClientClosedError as error:
                last = error
                break
            except BideError as error:
                self.host.tell(f"as_completed: {type(error).__name__}: {str(error)[:100]}")
                last = error
                continue
            number = requests.index(handle.request)  # type: ignore[arg-type]
            try:
                results[number] = await handle.result()
            except BideError as error:
                results[number] = error
        for number, outcome in enumerate(self.outcomes):
            if number not in results:
                outcome.end("left", last)  # nobody says what became of the requests that it took
        await self._finish(results)

    async def _finish(self, results: dict[int, Any]) -> None:
        going = []
        for number, result in results.items():
            outcome = self.outcomes[number]
            if isinstance(result, Task):
                self._deliver(outcome, result)
            elif outcome.ends is None:
                going.append(self._persist(outcome, result))
        if going:
            async with asyncio.TaskGroup() as group:
                for each in going:
                    group.create_task(each)


def _ticket(wish: Wish, number: int) -> str:
    name = wish.name.replace(" ", "-")
    return f"{name}.{number}" if number else name


def is_open(status: TaskStatus) -> bool:
    return not status.is_final
