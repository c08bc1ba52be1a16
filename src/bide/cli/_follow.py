"""Following many tasks to their ends: results on standard output, everything else on standard error.

The first Ctrl-C (SIGTERM and SIGHUP alike) stops the waiting, never a task: nothing more is sent, the ids known so far
are printed at once with the command that goes on, creates under way are answered, and what they add is printed too.
What has come of a file stays beside its place: that command goes on with it.
The second one ends the program at once.

All of it is on the ledger: what a program leaves that is killed, `bide resume` goes on with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import evolve

from bide import (
    BideError,
    Client,
    ClientClosedError,
    DownloadError,
    Event,
    EventName,
    LedgerError,
    Limits,
    TaskStatus,
    WaitTimeoutError,
)
from bide.cli._exits import AUTH, FAILED, INTERRUPTED, LIMITED, status_of, worst
from bide.cli._out import Stream
from bide.cli._progress import display
from bide.cli._text import plain
from bide.cli._words import as_json, in_other_words, is_withdrawn, name_of, what_to_do

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from bide import Provider, SavedFile, SQLiteLedger, Task, TaskHandle
    from bide.cli._ledger import Place

    Items: TypeAlias = Callable[[Client], AsyncIterator["Item"]]

WINDOW = 100
"""Prompts that are under way at once; further ones are not even read."""
LAST_WORDS = 3.0
"""Seconds that a reader has at the end to take what is written."""
_NAMES_A_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Wishes:
    """What the user wants of each task.

    Attributes:
        save: the directory for the files; None prints their addresses.
        json: one JSON object for each task instead.
        timeout: seconds to wait for each at most.
        concurrency: tasks in flight at most; None is the service's documented limit.
        detach: do not wait for more than its acceptance.
        overwrite: write files anew that are there already.
    """

    save: Path | None = None
    json: bool = False
    timeout: float | None = None
    concurrency: int | None = None
    detach: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError or OSError if they cannot be fulfilled: before anything is sent."""
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"--timeout is a number of seconds above 0, not {self.timeout:g}")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"--concurrency is at least 1, not {self.concurrency}")
        if self.detach and self.save is not None:
            raise ValueError("--detach does not wait for results: bide resume --save DIR brings them home")
        if self.overwrite and self.save is None:
            raise ValueError("--overwrite is about files: give --save DIR, too")
        if self.save is not None:
            self.save.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.save):
                pass


@dataclass(frozen=True)
class Item:
    """One task to follow: what to call it, how to get its handle, and its name where it is there already."""

    label: str
    start: Callable[[Client], Awaitable[TaskHandle]]
    name: str | None = None


@dataclass(frozen=True)
class Manner:
    """How a command goes about its tasks.

    Attributes:
        goes_on: the command that goes on with what is left.
        place: where the ledger is; None where there is none. The same for *ledger*, which is opened here.
        makes: whether the tasks are the command's own: what was not sent is withdrawn with it.
        adopts: whether what nobody drives is taken over.
    """

    goes_on: Literal["watch", "resume"]
    place: Place | None = None
    ledger: SQLiteLedger | None = None
    makes: bool = False
    adopts: bool = False


def run(provider: Provider, wishes: Wishes, items: Items, total: int | None, manner: Manner) -> int:
    """Follow all *items*; returns the exit status.

    Args:
        total: how many there are; None if that is not known.

    Raises:
        ValueError, OSError: the wishes cannot be fulfilled. Nothing was sent.
        LedgerError: the ledger cannot be opened. Nothing was sent.
    """
    wishes.check()
    keep_the_log_quiet()
    return asyncio.run(_Run(provider, wishes, total, manner).follow_all(items))


def keep_the_log_quiet() -> None:
    """Unless it is asked for: commands tell what matters themselves, in its place."""
    if not os.environ.get("BIDE_LOG"):
        logging.getLogger("bide").addHandler(logging.NullHandler())


class _Run:
    """One command's tasks."""

    def __init__(self, provider: Provider, wishes: Wishes, total: int | None, manner: Manner) -> None:
        self._provider = provider
        self._wishes = wishes
        self._manner = manner
        self._total = total
        self._stdout = Stream(sys.stdout, "standard output")
        self._stderr = Stream(sys.stderr, "standard error")
        self._display = display(total, self._stderr)
        self._window = asyncio.Semaphore(WINDOW)
        self._open: dict[int, tuple[Item, TaskHandle | None]] = {}  # what has not been told yet
        self._left: list[str] = []  # ids of tasks that go on, or whose files are still to be fetched
        self._kept: list[str] = []  # tickets on record that have no task yet
        self._mine: set[str] = set()  # tickets; others are watched only since their slots are waited for
        self._saved_by_id: dict[str, TaskHandle] = {}
        self._detached = 0
        self._taking: asyncio.Task[None] | None = None
        self._told_left = 0
        self._statuses: set[int] = set()
        self._taken = 0
        self._not_sent = 0
        self._hopeless = False  # the key was refused, or the account cannot pay
        self._stopped: int | None = None  # the exit status of what has stopped the whole
        self._interrupts = 0
        self._closing: asyncio.Task[None] | None = None

    async def follow_all(self, items: Items) -> int:
        """Follow each of *items*; returns the exit status."""
        async with AsyncExitStack() as stack:
            if self._manner.ledger is not None:
                await stack.enter_async_context(self._manner.ledger)
            self._client = Client(
                self._provider,
                limits=self._limits(),
                ledger=self._manner.ledger,
                adopt=self._manner.adopts,
                on_event=self._heard,
            )
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

    def _heard(self, event: Event) -> None:
        if event.name is EventName.WAITING:
            self._mine.add(event.ticket)
        by_id = self._saved_by_id.get(event.ticket)
        if by_id is not None:
            event = evolve(event, task=by_id.task)
        if event.ticket in self._mine or not self._manner.makes:
            self._display.heard(event)

    def _limits(self) -> dict[str, Limits] | None:
        """The service's documented limits, with the user's in the place of one of them."""
        concurrency = self._wishes.concurrency
        if concurrency is None:
            return None
        profiles = {kind: self._provider.profile(kind) for kind in ("image", "video")}
        return {kind: evolve(profile.limits, concurrency=concurrency) for kind, profile in profiles.items()}

    # Following ---------------------------------------------------------------------------------------------

    async def _follow_each(self, items: Items) -> None:
        async with self._client, asyncio.TaskGroup() as group:
            self._group = group
            self._taking = group.create_task(self._take_each(items))

    async def _take_each(self, items: Items) -> None:
        """Begin with each item, as far as the window has room."""
        try:
            async for item in items(self._client):
                if item.name is None:
                    await self._window.acquire()
                self._taken += 1
                following = self._group.create_task(self._follow(item))
                if item.name is None:
                    following.add_done_callback(lambda _: self._window.release())
        except ClientClosedError:
            return  # it is told at the end
        except (BideError, ValueError) as error:  # there are no more of them; what was begun goes on
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
            self._display.name(handle, item.label)
            if self._hopeless and self._manner.makes:
                await _withdraw(handle)
            await self._wait(handle)
            files = await self._save(handle)
        except ClientClosedError:
            return  # it is told at the end
        except (BideError, ValueError, TypeError) as error:
            fault = error
            self._told_or_not_sent(item, handle, error)
        if handle is not None:
            self._display.ended(handle.ticket)
            if self._wishes.detach and fault is None:
                self._detached += 1
            elif not handle.task.status.is_final or _is_to_be_saved(fault):
                self._leave(handle)
        elif item.name is not None:
            self._left.append(item.name)
        del self._open[id(item)]
        await self._print(item, handle, files, fault)

    async def _wait(self, handle: TaskHandle) -> None:
        """Wait until it has succeeded, or was accepted.

        Raises:
            BideError: it has not, or its time is up.
        """
        wait = handle.accepted if self._wishes.detach else handle.result
        try:
            await wait(timeout=self._wishes.timeout)
        except WaitTimeoutError:
            if self._manner.makes:
                await _settle(handle)
            if self._wishes.detach and handle.task.status.is_accepted:
                return
            if is_withdrawn(handle) or not handle.task.status.is_final:
                raise
            await handle.result()  # it has ended meanwhile: what came of it says more

    async def _save(self, handle: TaskHandle) -> Sequence[SavedFile]:
        """Bring the files of a task home, if that is wished.

        Raises:
            DownloadError: one of them could not be fetched or written.
        """
        wishes, task = self._wishes, handle.task
        if wishes.save is None:
            return ()
        if self._manner.ledger is None and _NAMES_A_FILE.fullmatch(task.task_id or ""):
            # The ticket of a task on no record is another one each time: by its id the next command finds what this one
            # has begun.
            task = evolve(task, ticket=str(task.task_id))
            self._saved_by_id[task.ticket] = handle
        return await self._client.save(task, wishes.save, overwrite=wishes.overwrite)

    def _leave(self, handle: TaskHandle) -> None:
        """There is still something to wait for, or to fetch."""
        if handle.task_id is not None:
            self._left.append(handle.task_id)
        elif self._manner.ledger is not None:
            self._kept.append(handle.ticket)

    def _told_or_not_sent(self, item: Item, handle: TaskHandle | None, error: Exception) -> None:
        """Tell the *error*, unless it is only that the request was withdrawn with others."""
        if handle is None and item.name is None:
            self._not_sent += 1
        elif handle is not None and is_withdrawn(handle) and self._manner.makes:
            self._not_sent += 1
            if self._hopeless:
                return
        words = in_other_words(item.label, handle, error, self._wishes.timeout, self._manner.place)
        self._tell(error, words)

    def _tell(self, error: Exception, text: str | None = None) -> None:
        """Tell what went wrong. Where the next ones would fare no better, they are not sent."""
        status = status_of(error)
        self._statuses.add(status)
        self._display.say(f"bide: {plain(text or str(error), 2000)}")
        if (status in (AUTH, LIMITED) or isinstance(error, LedgerError)) and not self._hopeless:
            self._hopeless = True
            if self._taking is not None:
                self._taking.cancel()
            for _, handle in self._open.values() if self._manner.makes else ():
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
            lines = [as_json(item.label, task, files, fault)]
        elif self._wishes.detach and task is not None and fault is None:
            lines = [f"{task.ticket} {task.task_id or '-'}"]
        elif task is not None and fault is None:
            lines += self._addresses(task)
        if lines:
            await self._write("\n".join(lines))

    def _addresses(self, task: Task) -> list[str]:
        """Where the results are, if they were not saved; and a word on those that are nowhere."""
        addresses = []
        for output in task.outputs:
            if output.error is not None:
                self._display.say(f"bide: {name_of(task)}: a part failed: {plain(str(output.error.message))}")
            elif self._wishes.save is None and output.url is not None:
                addresses.append(plain(output.url, 10_000))
            elif self._wishes.save is None and output.data is not None:
                self._display.say(f"bide: {name_of(task)}: the file came inline; --save DIR writes it")
            elif self._wishes.save is None:
                self._display.say(f"bide: {name_of(task)}: the address of its file has expired")
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
        self._tell_how_to_go_on([*self._left, *known])

    def _stop(self, status: int) -> None:
        """Send nothing more, and wait for nothing but the answers of creates under way."""
        if self._stopped is None:
            self._stopped = status
            self._closing = asyncio.create_task(self._client.aclose(withdraw=self._manner.makes))
            self._following.cancel()

    def _tell_left(self) -> None:
        """Name the tasks that go on, or whose results are still there, and what to do about them."""
        not_sent = self._not_sent
        if self._total is not None:
            not_sent += self._total - self._taken
        for item, handle in self._open.values():
            if handle is None:
                if item.name is not None:
                    self._left.append(item.name)
                else:
                    not_sent += 1
                continue
            status = handle.task.status
            if self._wishes.json:
                self._stdout.put(as_json(item.label, handle.task, ()))
            if handle.task_id is not None or status is TaskStatus.SUCCEEDED:
                self._leave(handle)
            elif status is TaskStatus.UNKNOWN:
                advice = what_to_do(handle.ticket, self._manner.place)
                self._stderr.put(f"bide: {plain(item.label, 60)}: its create may have arrived")
                self._stderr.put(f"bide: look in the service's console: {advice}")
            elif not status.is_final and self._manner.ledger is not None:
                self._kept.append(handle.ticket)
                if status is TaskStatus.SUBMITTING:
                    self._stderr.put(f"bide: {plain(item.label, 60)}: its create may have arrived")
            else:
                not_sent += 1
        if not_sent:
            self._stderr.put(f"bide: {not_sent} not sent")
        if len(self._left) + len(self._kept) > self._told_left:
            self._tell_how_to_go_on(self._left)
        if self._detached:
            command = self._command(["resume", "--save", "DIR"])
            self._display.say(f"bide: {self._detached} run on; to bring them home: {command}")

    def _tell_how_to_go_on(self, ids: Sequence[str]) -> None:
        """Name what is left, and how to go on with it."""
        self._told_left = len(ids) + len(self._kept)
        if not self._told_left:
            return
        words: list[str] = [self._manner.goes_on]
        if self._wishes.save is not None:
            words += ["--save", str(self._wishes.save)]
        if self._wishes.overwrite:
            words.append("--overwrite")
        if self._wishes.json:
            words.append("--json")
        if ids:
            self._display.say(f"bide: {len(ids)} left as they are: {', '.join(ids)}")
        if self._kept:
            self._display.say(f"bide: {len(self._kept)} stay on record: {', '.join(self._kept)}")
        if self._manner.goes_on == "watch":
            words += [*ids, *self._kept]
        self._display.say(f"bide: to watch on: {self._command(words)}")

    def _command(self, words: Sequence[str]) -> str:
        """A command of ours for this service and ledger."""
        with_service = [*words[:1], "--provider", self._provider.name, *words[1:]]
        place = self._manner.place
        return shlex.join(["bide", *with_service]) if place is None else place.command(*with_service)


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


def _is_to_be_saved(fault: Exception | None) -> bool:
    """Whether a later command may bring home what this one could not."""
    return isinstance(fault, DownloadError) and fault.retryable
