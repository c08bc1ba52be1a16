"""Following many tasks to their ends: results on standard output, everything else on standard error.

The first Ctrl-C (SIGTERM and SIGHUP alike) stops the waiting, never a task: nothing more is sent, the ids known so far
are printed at once with the command that watches on, creates under way are answered, and what they add is printed too.
The second one ends the program at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import sys
import tempfile
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrs import evolve

from bide import (
    BideError,
    Client,
    ClientClosedError,
    DownloadError,
    Limits,
    SubmissionUnknownError,
    TaskStatus,
    WaitTimeoutError,
)
from bide.cli._exits import AUTH, FAILED, INTERRUPTED, LIMITED, status_of, worst
from bide.cli._out import Stream
from bide.cli._progress import display
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from bide import Provider, SavedFile, Task, TaskHandle

WINDOW = 100
"""Prompts that are under way at once; further ones are not even read."""
LAST_WORDS = 3.0
"""Seconds that a reader has at the end to take what is written."""


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

    def check(self) -> None:
        """Raise ValueError or OSError if they cannot be fulfilled: before anything is sent."""
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"--timeout is a number of seconds above 0, not {self.timeout:g}")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"--concurrency is at least 1, not {self.concurrency}")
        if self.save is not None:
            self.save.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.save):
                pass


@dataclass(frozen=True)
class Item:
    """One task to follow: what to call it, how to get its handle, and its id where it exists already."""

    label: str
    start: Callable[[Client], Awaitable[TaskHandle]]
    task_id: str | None = None


def run(provider: Provider, wishes: Wishes, items: AsyncIterator[Item], total: int | None) -> int:
    """Follow all *items*; returns the exit status.

    Args:
        total: how many there are; None if that is not known.

    Raises:
        ValueError, OSError: the wishes cannot be fulfilled. Nothing was sent.
    """
    wishes.check()
    keep_the_log_quiet()
    return asyncio.run(_Run(provider, wishes, total).follow_all(items))


def keep_the_log_quiet() -> None:
    """Unless it is asked for: commands tell what matters themselves, in its place."""
    if not os.environ.get("BIDE_LOG"):
        logging.getLogger("bide").addHandler(logging.NullHandler())


class _Run:
    """One command's tasks."""

    def __init__(self, provider: Provider, wishes: Wishes, total: int | None) -> None:
        self._provider = provider
        self._wishes = wishes
        self._total = total
        self._stdout = Stream(sys.stdout, "standard output")
        self._stderr = Stream(sys.stderr, "standard error")
        self._display = display(total, self._stderr)
        self._window = asyncio.Semaphore(WINDOW)
        self._open: dict[int, tuple[Item, TaskHandle | None]] = {}  # what has not been told yet
        self._left: list[str] = []  # ids of tasks that go on, or whose files are still to be fetched
        self._told_left = 0
        self._statuses: set[int] = set()
        self._taken = 0
        self._not_sent = 0
        self._hopeless = False  # the key was refused, or the account cannot pay
        self._stopped: int | None = None  # the exit status of what has stopped the whole
        self._interrupts = 0
        self._closing: asyncio.Task[None] | None = None

    async def follow_all(self, items: AsyncIterator[Item]) -> int:
        """Follow each of *items*; returns the exit status."""
        self._client = Client(self._provider, limits=self._limits(), on_event=self._display.heard)
        try:
            with self._display:
                self._following = asyncio.create_task(self._follow_each(items))
                self._catch_signals()
                try:
                    await self._following
                except asyncio.CancelledError:
                    self._stopped = self._stopped or INTERRUPTED
        finally:
            self._tell_left()
            self._stdout.flush(LAST_WORDS)
            self._stderr.flush(LAST_WORDS)
        return worst(self._statuses) if self._stopped is None else self._stopped

    def _limits(self) -> dict[str, Limits] | None:
        """The service's documented limits, with the user's in the place of one of them."""
        concurrency = self._wishes.concurrency
        if concurrency is None:
            return None
        profiles = {kind: self._provider.profile(kind) for kind in ("image", "video")}
        return {kind: evolve(profile.limits, concurrency=concurrency) for kind, profile in profiles.items()}

    # Following ---------------------------------------------------------------------------------------------

    async def _follow_each(self, items: AsyncIterator[Item]) -> None:
        async with self._client, asyncio.TaskGroup() as group:
            self._group = group
            self._taking = group.create_task(self._take_each(items))

    async def _take_each(self, items: AsyncIterator[Item]) -> None:
        """Begin with each item, as far as the window has room."""
        try:
            async for item in items:
                if item.task_id is None:
                    await self._window.acquire()
                self._taken += 1
                following = self._group.create_task(self._follow(item))
                if item.task_id is None:
                    following.add_done_callback(lambda _: self._window.release())
        except ValueError as error:  # there are no more of them; what was begun goes on
            self._tell(error)

    async def _follow(self, item: Item) -> None:
        """One task, from its submission to its results. Whatever goes wrong with it is told and concerns no other."""
        handle: TaskHandle | None = None
        files: Sequence[SavedFile] = ()
        fault: Exception | None = None
        self._open[id(item)] = (item, None)
        try:
            handle = await item.start(self._client)
            self._open[id(item)] = (item, handle)
            self._display.name(handle.ticket, item.label)
            if self._hopeless:
                await _withdraw(handle)
            await self._wait(handle)
            if self._wishes.save is not None:
                files = await handle.save(self._wishes.save)
        except ClientClosedError:
            return  # it is told at the end
        except (BideError, ValueError, TypeError) as error:
            fault = error
            self._told_or_not_sent(item, handle, error)
        if handle is not None:
            self._display.ended(handle.ticket)
            if _is_left(handle, fault):
                self._left.append(str(handle.task_id))
        elif item.task_id is not None:
            self._left.append(item.task_id)
        del self._open[id(item)]
        await self._print(item, handle, files, fault)

    async def _wait(self, handle: TaskHandle) -> None:
        """Wait until it has succeeded.

        Raises:
            BideError: it has not, or its time is up.
        """
        try:
            await handle.result(timeout=self._wishes.timeout)
        except WaitTimeoutError:
            await _settle(handle)
            if _is_withdrawn(handle) or not handle.task.status.is_final:
                raise
            await handle.result()  # it has ended meanwhile: what came of it says more

    def _told_or_not_sent(self, item: Item, handle: TaskHandle | None, error: Exception) -> None:
        """Tell the *error*, unless it is only that the request was withdrawn with others."""
        if handle is None and item.task_id is None:
            self._not_sent += 1
        elif handle is not None and _is_withdrawn(handle):
            self._not_sent += 1
            if self._hopeless:
                return
        self._tell(error, _in_other_words(item, handle, error, self._wishes.timeout))

    def _tell(self, error: Exception, text: str | None = None) -> None:
        """Tell what went wrong. Where the next ones would fare no better, they are not sent."""
        status = status_of(error)
        self._statuses.add(status)
        self._display.say(f"bide: {plain(text or str(error), 2000)}")
        if status in (AUTH, LIMITED) and not self._hopeless:
            self._hopeless = True
            self._taking.cancel()
            for _, handle in self._open.values():
                if handle is not None:
                    self._group.create_task(_withdraw(handle))

    # Results -----------------------------------------------------------------------------------------------

    async def _print(
        self, item: Item, handle: TaskHandle | None, files: Sequence[SavedFile], fault: Exception | None
    ) -> None:
        """Print what became of one task, in one go: an interrupt does not come between."""
        task = None if handle is None else handle.task
        lines = [str(file.path) for file in files]
        if self._wishes.json:
            lines = [_as_json(item, task, files, fault)]
        elif task is not None and fault is None:
            lines += self._addresses(task)
        if lines:
            await self._write("\n".join(lines))

    def _addresses(self, task: Task) -> list[str]:
        """Where the results are, if they were not saved; and a word on those that are nowhere."""
        addresses = []
        for output in task.outputs:
            if output.error is not None:
                self._display.say(f"bide: {_name(task)}: a part failed: {plain(str(output.error.message))}")
            elif self._wishes.save is None and output.url is not None:
                addresses.append(plain(output.url, 10_000))
            elif self._wishes.save is None:
                self._display.say(f"bide: {_name(task)}: the file came inline; --save DIR writes it")
        return addresses

    async def _write(self, line: str) -> None:
        with self._display.aside() if self._stdout.is_terminal else nullcontext():
            try:
                await self._stdout.write(line)
            except OSError as fault:
                # Whoever read has gone, or the disk is full: what was sent goes on, and its ids are told.
                if not isinstance(fault, BrokenPipeError) and self._stopped is None:
                    self._display.say(f"bide: standard output cannot be written: {fault}")
                self._stop(FAILED)

    # The end -----------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                with suppress(NotImplementedError):  # Windows: there Ctrl-C cancels the main task
                    loop.add_signal_handler(number, self._interrupted)

    def _interrupted(self) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            self._display.__exit__(None, None, None)  # the cursor comes back
            self._stderr.flush(0.2)
            os._exit(INTERRUPTED)
        self._stop(INTERRUPTED)
        self._display.say("bide: stopping: what was sent goes on. Once more ends this at once")
        known = [str(handle.task_id) for _, handle in self._open.values() if handle and handle.task_id]
        self._tell_watch_command([*self._left, *known])

    def _stop(self, status: int) -> None:
        """Send nothing more, and wait for nothing but the answers of creates under way."""
        if self._stopped is None:
            self._stopped = status
            self._closing = asyncio.create_task(self._client.aclose())
            self._following.cancel()

    def _tell_left(self) -> None:
        """Name the tasks that go on, or whose results are still there, and what to do about them."""
        not_sent = self._not_sent
        if self._total is not None:
            not_sent += self._total - self._taken
        for item, handle in self._open.values():
            task_id = item.task_id if handle is None else handle.task_id
            if handle is not None and self._wishes.json:
                self._stdout.put(_as_json(item, handle.task, (), None))
            if task_id is not None:
                self._left.append(task_id)
            elif handle is not None and handle.task.status is TaskStatus.UNKNOWN:
                self._stderr.put(
                    f"bide: {plain(item.label, 60)}: its create may have arrived; look in the service's console"
                )
            else:
                not_sent += 1
        if not_sent:
            self._stderr.put(f"bide: {not_sent} not sent")
        if len(self._left) > self._told_left:
            self._tell_watch_command(self._left)

    def _tell_watch_command(self, ids: Sequence[str]) -> None:
        """Name what is left, and how to go on with it."""
        self._told_left = len(ids)
        if not ids:
            return
        words = ["bide", "watch", "--provider", self._provider.name]
        if self._wishes.save is not None:
            words += ["--save", str(self._wishes.save)]
        if self._wishes.json:
            words.append("--json")
        self._display.say(f"bide: {len(ids)} left as they are: {', '.join(ids)}")
        self._display.say(f"bide: to watch on: {shlex.join([*words, *ids])}")


async def _withdraw(handle: TaskHandle) -> None:
    if handle.task.status is TaskStatus.WAITING:
        with suppress(BideError):  # it was just being sent, and could not be stopped any more
            await handle.cancel()


async def _settle(handle: TaskHandle) -> None:
    """Nobody waits for *handle* any more: withdraw it if it was not sent, else wait for the answer to its create.

    That answer may put it back into the queue, where it would be sent again and paid for, with nobody waiting.
    """
    with suppress(BideError):
        async for task in handle.events():
            if task.status is TaskStatus.WAITING:
                await _withdraw(handle)
            elif task.status is not TaskStatus.SUBMITTING:
                return


def _is_withdrawn(handle: TaskHandle) -> bool:
    return handle.task.status is TaskStatus.CANCELLED and handle.task_id is None


def _is_left(handle: TaskHandle, fault: Exception | None) -> bool:
    """Whether there is still something to wait for, or to fetch."""
    return handle.task_id is not None and (
        not handle.task.status.is_final or isinstance(fault, DownloadError)
    )


def _in_other_words(
    item: Item, handle: TaskHandle | None, error: Exception, timeout: float | None
) -> str | None:
    """*error* in the terms of the command line, where the library's own would be those of Python."""
    label = f'"{plain(item.label, 60)}"'
    if isinstance(error, WaitTimeoutError) and handle is not None and timeout is not None:
        if _is_withdrawn(handle):
            return f"{label} got no slot within {timeout:g} s: withdrawn, nothing was sent"
        return f"{_name(handle.task)} is {handle.task.status} after {timeout:g} s; it goes on"
    if isinstance(error, SubmissionUnknownError):
        return (
            f"nobody can say whether the create of {label} arrived; it is not sent again, since that could buy it "
            f"twice. Look in the service's console: if the task is there, bide watch its id"
        )
    return None


def _name(task: Task) -> str:
    return task.task_id or task.ticket


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
