"""Following many tasks to their ends: results on standard output, everything else on standard error.

The first Ctrl-C (or SIGTERM) stops the waiting, never a task: creates under way are answered first, so that every id
is known, and the ids are printed with the command that watches on. The second one ends the program at once.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrs import evolve

from bide import BideError, Client, DownloadError, Limits, TaskStatus, WaitTimeoutError
from bide.cli._exits import AUTH, FAILED, INTERRUPTED, LIMITED, status_of, worst
from bide.cli._progress import display
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from bide import Provider, SavedFile, Task, TaskHandle

WINDOW = 100
"""Tasks that are open at once; further prompts are not even read."""


@dataclass(frozen=True)
class Wishes:
    """What the user wants of each task.

    Attributes:
        save: the directory for the files; None prints their addresses.
        json: one JSON object for each task instead.
        timeout: seconds to wait for each at most.
        concurrency: tasks in flight at most; None is the service's documented limit.
    """

    save: Path | None = None
    json: bool = False
    timeout: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Item:
    """One task to follow: what to call it, and how to get its handle."""

    label: str
    start: Callable[[Client], Awaitable[TaskHandle]]


def run(provider: Provider, wishes: Wishes, items: AsyncIterator[Item], total: int | None) -> int:
    """Follow all *items*; returns the exit status.

    Args:
        total: how many there are; None if that is not known.

    Raises:
        ValueError: the client cannot be made like that.
    """
    if not os.environ.get("BIDE_LOG"):
        # What matters is told here, in its place; the same as warnings between the bars would be noise.
        logging.getLogger("bide").addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have what the terminal has not
    return asyncio.run(_Run(provider, wishes, total).follow_all(items))


class _Run:
    """One command's tasks."""

    def __init__(self, provider: Provider, wishes: Wishes, total: int | None) -> None:
        self._provider = provider
        self._wishes = wishes
        self._total = total
        self._display = display(total)
        self._window = asyncio.Semaphore(WINDOW)
        self._open: dict[int, tuple[Item, TaskHandle | None]] = {}  # what has not been told yet
        self._statuses: set[int] = set()
        self._taken = 0
        self._not_sent = 0
        self._hopeless = False  # the key was refused, or the account cannot pay
        self._left: list[str] = []  # ids of tasks that go on, or whose files are still to be fetched
        self._stopped: int | None = None  # the exit status of what has stopped the whole

    async def follow_all(self, items: AsyncIterator[Item]) -> int:
        """Follow each of *items*; returns the exit status."""
        with self._display:
            client = Client(self._provider, limits=self._limits(), on_event=self._display.heard)
            following = asyncio.create_task(self._follow_each(client, items))
            self._catch_signals(following)
            try:
                await following
            except asyncio.CancelledError:
                self._stopped = self._stopped or INTERRUPTED
        self._tell_left()
        return worst(self._statuses) if self._stopped is None else self._stopped

    def _limits(self) -> dict[str, Limits] | None:
        """The service's documented limits, with the user's in the place of one of them."""
        concurrency = self._wishes.concurrency
        if concurrency is None:
            return None
        profiles = {kind: self._provider.profile(kind) for kind in ("image", "video")}
        return {kind: evolve(profile.limits, concurrency=concurrency) for kind, profile in profiles.items()}

    async def _follow_each(self, client: Client, items: AsyncIterator[Item]) -> None:
        async with client, asyncio.TaskGroup() as group:
            self._group = group
            try:
                async for item in items:
                    await self._window.acquire()
                    if self._hopeless:
                        break
                    self._taken += 1
                    following = group.create_task(self._follow(client, item))
                    following.add_done_callback(lambda _: self._window.release())
            except ValueError as error:  # there are no more of them; what was begun goes on
                self._tell(error)

    async def _follow(self, client: Client, item: Item) -> None:
        """One task, from its submission to its results. Whatever goes wrong with it is told and concerns no other."""
        handle: TaskHandle | None = None
        files: Sequence[SavedFile] = ()
        fault: Exception | None = None
        self._open[id(item)] = (item, None)
        try:
            handle = await item.start(client)
            self._open[id(item)] = (item, handle)
            self._display.name(handle.ticket, item.label)
            if self._hopeless:
                await _withdraw(handle)
            await handle.result(timeout=self._wishes.timeout)
            if self._wishes.save is not None:
                files = await handle.save(self._wishes.save)
        except (BideError, ValueError, TypeError) as error:
            if self._hopeless and handle is not None and _is_withdrawn(handle):
                self._not_sent += 1
            else:
                fault = error
                self._tell(error)
        if handle is not None:
            self._display.ended(handle.ticket)
        if handle is not None and handle.task_id is not None and _can_be_watched_on(fault):
            self._left.append(handle.task_id)
        del self._open[id(item)]
        self._print(item, handle, files, fault)

    def _tell(self, error: Exception) -> None:
        """Tell what went wrong with one. Where the next ones would fare no better, they are not sent."""
        status = status_of(error)
        self._statuses.add(status)
        self._display.say(f"bide: {plain(str(error), 2000)}")
        if status in (AUTH, LIMITED) and not self._hopeless:
            self._hopeless = True
            for _, handle in self._open.values():
                if handle is not None:
                    self._group.create_task(_withdraw(handle))

    # Results -----------------------------------------------------------------------------------------------

    def _print(
        self, item: Item, handle: TaskHandle | None, files: Sequence[SavedFile], fault: Exception | None
    ) -> None:
        task = None if handle is None else handle.task
        if self._wishes.json:
            self._write(_as_json(item, task, files, fault))
            return
        for file in files:
            self._write(str(file.path))
        for output in task.outputs if task is not None and fault is None else ():
            if output.error is not None:
                self._display.say(
                    f"bide: {task and task.task_id}: a part failed: {plain(str(output.error.message))}"
                )
            elif self._wishes.save is None and output.url is not None:
                self._write(plain(output.url, 10_000))
            elif self._wishes.save is None:
                self._display.say(
                    f"bide: {task and task.task_id}: the file came inline; --save DIR writes it"
                )

    def _write(self, line: str) -> None:
        try:
            print(line, flush=True)
        except OSError as fault:
            # Whoever read has gone, or the disk is full: what was sent goes on, and its ids are told.
            if not isinstance(fault, BrokenPipeError):
                _say(f"bide: standard output cannot be written: {fault}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stop(FAILED)

    # The end -----------------------------------------------------------------------------------------------

    def _catch_signals(self, following: asyncio.Task[None]) -> None:
        self._following = following
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows: there Ctrl-C cancels the main task
                asyncio.get_running_loop().add_signal_handler(number, self._interrupted)

    def _interrupted(self) -> None:
        if self._stopped is not None:
            self._display.__exit__(None, None, None)  # the cursor comes back
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        self._display.say("bide: stopping; what was sent goes on. Once more ends this at once")
        self._stop(INTERRUPTED)

    def _stop(self, status: int) -> None:
        self._stopped = status
        self._following.cancel()

    def _tell_left(self) -> None:
        """Name the tasks that go on, or whose results are still there, and what to do about them."""
        not_sent = self._not_sent + (0 if self._total is None else self._total - self._taken)
        for item, handle in self._open.values():
            if handle is None:
                not_sent += 1
                continue
            if self._wishes.json:
                self._write(_as_json(item, handle.task, (), None))
            if handle.task_id is not None:
                self._left.append(handle.task_id)
            elif handle.task.status is TaskStatus.UNKNOWN:
                _say(
                    f"bide: {plain(item.label, 60)}: its create may have arrived; look in the service's console"
                )
            else:
                not_sent += 1
        if not_sent:
            _say(f"bide: {not_sent} not sent")
        if self._left:
            _say(f"bide: {len(self._left)} left as they are: {', '.join(self._left)}")
            _say(f"bide: to watch on: {self._watch_command(self._left)}")

    def _watch_command(self, ids: Sequence[str]) -> str:
        words = ["bide", "watch", "--provider", self._provider.name]
        if self._wishes.save is not None:
            words += ["--save", str(self._wishes.save)]
        if self._wishes.json:
            words.append("--json")
        return shlex.join([*words, *ids])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _withdraw(handle: TaskHandle) -> None:
    if handle.task.status is TaskStatus.WAITING:
        with suppress(BideError):  # it was just being sent, and could not be stopped any more
            await handle.cancel()


def _is_withdrawn(handle: TaskHandle) -> bool:
    return handle.task.status is TaskStatus.CANCELLED and handle.task_id is None


def _can_be_watched_on(fault: Exception | None) -> bool:
    """Whether there is still something to wait for, or to fetch, after *fault*."""
    return isinstance(fault, WaitTimeoutError | DownloadError) or (
        fault is not None and status_of(fault) == AUTH
    )


def _as_json(item: Item, task: Task | None, files: Sequence[SavedFile], fault: Exception | None) -> str:
    """One task as one line."""
    error: dict[str, Any] | None = None
    if fault is not None:
        error = {
            "type": type(fault).__name__,
            "message": str(fault),
            "code": getattr(fault, "code", None),
            "exit_status": status_of(fault),
        }
    return json.dumps(
        {
            "input": item.label,
            "task": None if task is None else task.to_dict(),
            "files": [
                {"path": str(file.path), "size": file.size, "media_type": file.media_type} for file in files
            ],
            "error": error,
        }
    )
