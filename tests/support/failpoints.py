"""Points at which a process dies, and the program that dies there.

A point is named "before add", "within add" or "after add", and so for every step of the ledger: within is between the
change and its commit. The points of the create are "before send" (it is about to be sent), "after send" (the head of
the answer is here, its body is not) and "while send" (the service has it and has not answered; the test kills).
No code of the library knows of them: they are set in what it is given.

As a program: `failpoints.py POINT SERVICE URL FOLDER` (or "serve", with those on a line each) submits two requests,
waits for a result, saves it and closes; reaching the point it ends with status 137, as SIGKILL would end it. With
`crash` as fifth argument it raises there, and tells all that a crash reporter would. The key is in the environment.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx

from bide import Client, DashScope, Dieyuyun, Limits, Pace, Provider, TaskHandle, VideoRequest
from bide.ledgers import Held, Ledger, SQLiteLedger
from bide.ledgers._state_machine import StateMachine
from bide.ledgers.sqlite.database import Database

KEY = "sk-failpoint-0123456789"
FIRST, SECOND = "first", "second"
"""The tickets. One slot is all there is, so the second one waits while the first one is open."""
PROMPTS = {FIRST: "a kitten [queue 0.2] [seconds 0.6]", SECOND: "a puppy [seconds 0]"}
DEAD = 137
PACE = Pace.fixed(0.1)
"""So often that each state of a task is seen."""


def provider_at(service: str, url: str) -> Provider:
    if service == "dashscope":
        return DashScope(base_url=url, video_floor=0.05)
    return Dieyuyun(base_url=url, video_floor=0.05)


def request(ticket: str) -> VideoRequest:
    return VideoRequest(PROMPTS[ticket], model="wan2.6-t2v")


class Doomed:
    """A ledger that reaches a point: all goes to *ledger* until then, and nothing any more after it.

    Args:
        die: ends the process, or waits for ever where that is only played.
    """

    def __init__(self, ledger: Ledger, point: str, die: Callable[[], Awaitable[NoReturn]]) -> None:
        self._ledger = ledger
        self._when, self._name = point.split()
        self._die = die
        self._is_dead = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._ledger, name)
        if not inspect.iscoroutinefunction(real):
            return real

        async def step(*arguments: Any, **more: Any) -> Any:
            if self._is_dead or (name == self._name and self._when == "before"):
                await self._end()
            result = await real(*arguments, **more)
            # To admit or adopt nothing is no step.
            is_step = not isinstance(result, Held) and not (name == "adopt" and not result)
            if self._is_dead or (name == self._name and self._when == "after" and is_step):
                await self._end()
            return result

        return step

    async def _end(self) -> NoReturn:
        self._is_dead = True
        await self._die()
        raise AssertionError("the dead go on")


class DoomedTransport(httpx.AsyncBaseTransport):
    """A transport that reaches a point of the create."""

    def __init__(
        self, real: httpx.AsyncBaseTransport, point: str, die: Callable[[], Awaitable[NoReturn]]
    ) -> None:
        self._real = real
        self._when, self._name = point.split()
        self._die = die

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_it = self._name == "send" and request.method == "POST"
        if is_it and self._when == "before":
            await self._die()
        response = await self._real.handle_async_request(request)
        if is_it and self._when == "after":
            await self._die()
        return response

    async def aclose(self) -> None:
        await self._real.aclose()


def die_within(name: str) -> None:
    """Let this process end in the transaction that takes the step *name* of the state machine: after the change and
    before the commit."""
    steps = {name: getattr(StateMachine, name)}
    reached = []

    def taken(machine: StateMachine, *arguments: Any, **more: Any) -> Any:
        result = steps[name](machine, *arguments, **more)
        if not isinstance(result, Held) and not (name in ("adopt", "leave") and not result):
            reached.append(name)
        return result

    real = Database.transaction

    @contextmanager
    def transaction(database: Database, *, writes: bool, vital: bool = False) -> Iterator[Any]:
        with real(database, writes=writes, vital=vital) as connection:
            yield connection
            if reached:
                os._exit(DEAD)

    setattr(StateMachine, name, taken)
    Database.transaction = transaction  # type: ignore[method-assign, assignment]


async def die() -> NoReturn:
    os._exit(DEAD)


class Crash(KeyboardInterrupt):
    """What no `except Exception` stops, and the event loop neither."""


async def crash() -> NoReturn:
    """Raise, after having told where everybody else stands."""
    for task in asyncio.all_tasks():
        print(task)
        coroutine: Any = task.get_coro()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            print(frame, {name: repr(value) for name, value in frame.f_locals.items()})
            coroutine = coroutine.cr_await
    raise Crash


async def live(
    client: Client, folder: Path, handles: list[TaskHandle], *, only_accepted: bool = False
) -> None:
    """What each client does that shall die: submit two requests, wait, save, close."""
    for ticket in (FIRST, SECOND):
        handles.append(await client.submit(request(ticket), ticket=ticket))
    await handles[0].accepted()
    if not only_accepted:
        await handles[0].save(folder)
    await (
        client.aclose()
    )  # no `async with`: where a death is only played, nothing is cleaned up on the way out


async def main(point: str, service: str, url: str, folder: Path, how: str = "die") -> None:
    when, name = point.split()
    path = folder / "tasks.db"
    at: dict[str, Any] = {"limits": Limits(1), "queries_per_second": 40, "pace": PACE}
    end = crash if how == "crash" else die
    if name == "adopt":  # somebody else has to leave something first
        before = Client(provider_at(service, url), ledger=SQLiteLedger(path), **at)
        await live(before, folder, [], only_accepted=True)
    if when == "within":
        die_within(name)
    client = Client(
        provider_at(service, url),
        ledger=Doomed(SQLiteLedger(path), point, end),
        transport=DoomedTransport(httpx.AsyncHTTPTransport(), point, end),
        **at,
    )
    await live(client, folder, [], only_accepted=name == "leave")


def run(arguments: list[str]) -> None:
    try:
        asyncio.run(main(*arguments[:3], Path(arguments[3]), *arguments[4:]))
    except Crash as error:
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        print("".join(report.format()), flush=True)
        os._exit(DEAD)


def serve() -> None:
    """Run a life for each line of arguments that comes in, in a child of its own, which need not import all anew.

    Answers with the child's number, and with its status when it has ended.
    """
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            run(json.loads(line))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else run(sys.argv[1:])
