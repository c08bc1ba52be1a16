"""Following many tasks to their ends: results on standard output, everything else on standard error.

The first Ctrl-C (or SIGTERM, or SIGHUP) stops the waiting, never a task. The command sends nothing more. It prints at
once the ids known so far and the command that continues. It waits for the answers of creates under way, and prints the
ids in them. Part files stay beside the files that they will become, and the next command continues them.
The second Ctrl-C ends the program at once.

Everything is in the ledger: if the program is killed, `bide resume` continues with its tasks.
"""

from __future__ import annotations

import asyncio
import os
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
from bide.cli._messages import (
    AUTH,
    FAILED,
    INTERRUPTED,
    LIMITED,
    display_name,
    exit_status,
    explain,
    is_withdrawn,
    settle_advice,
    task_json,
    worst_status,
)
from bide.cli._output import Stream, one_line, silence_log
from bide.cli._progress import display

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from bide import Provider, SavedFile, SQLiteLedger, Task, TaskHandle
    from bide.cli._place import Place

    Items: TypeAlias = Callable[[Client], AsyncIterator["Item"]]

MAX_NEW_ITEMS = 100
"""The most new requests under way at once. The next prompt is read when one of them has ended."""


@dataclass(frozen=True)
class Goal:
    """What the user wants of each task.

    Attributes:
        save: the directory for the files; None prints their addresses instead.
        json: print one JSON object for each task instead.
        timeout: seconds to wait for each task.
        concurrency: the most tasks in flight; None means the documented limit of the service.
        detach: wait only until the task is accepted.
        overwrite: fetch and write existing files again.
    """

    save: Path | None = None
    json: bool = False
    timeout: float | None = None
    concurrency: int | None = None
    detach: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError or OSError if the goal cannot be reached, before anything is sent."""
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"--timeout must be a number of seconds above 0, not {self.timeout:g}")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"--concurrency must be at least 1, not {self.concurrency}")
        if self.detach and self.save is not None:
            raise ValueError("--detach does not wait for results: bide resume --save DIR gets them")
        if self.overwrite and self.save is None:
            raise ValueError("--overwrite applies to saved files: give --save DIR, too")
        if self.save is not None:
            self.save.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.save):
                pass


@dataclass(frozen=True)
class Item:
    """One task to follow.

    Attributes:
        label: how to show it.
        start: returns its handle.
        name: its task id or ticket, if it exists already; None for a new request.
    """

    label: str
    start: Callable[[Client], Awaitable[TaskHandle]]
    name: str | None = None


@dataclass(frozen=True)
class Mode:
    """How a command treats its tasks.

    Attributes:
        next_command: the command that continues with what is left.
        place: where the ledger is; None without one.
        ledger: the ledger at *place*, which `follow` opens.
        creates: whether the command creates its tasks. If so, it withdraws what was not sent when it ends.
        adopts: whether it takes over records that no process drives.
    """

    next_command: Literal["watch", "resume"]
    place: Place | None = None
    ledger: SQLiteLedger | None = None
    creates: bool = False
    adopts: bool = False


def follow(provider: Provider, goal: Goal, items: Items, total: int | None, mode: Mode) -> int:
    """Follow all *items*; returns the exit status.

    Args:
        total: the number of items; None if that is not known.

    Raises:
        ValueError, OSError: the goal cannot be reached. Nothing was sent.
        LedgerError: the ledger cannot be opened. Nothing was sent.
    """
    goal.check()
    silence_log()
    return asyncio.run(_Follower(provider, goal, total, mode).follow_all(items))


class _Follower:
    """Follows the tasks of one command, and prints their outcomes."""

    def __init__(self, provider: Provider, goal: Goal, total: int | None, mode: Mode) -> None:
        self._provider = provider
        self._goal = goal
        self._mode = mode
        self._total = total
        self._stdout = Stream(sys.stdout, "standard output")
        self._stderr = Stream(sys.stderr, "standard error")
        self._display = display(total, self._stderr)
        self._window = asyncio.Semaphore(MAX_NEW_ITEMS)
        self._open: dict[int, tuple[Item, TaskHandle | None]] = {}  # not reported yet
        self._left: list[str] = []  # ids of tasks that continue, or whose files are still to be fetched
        self._kept: list[str] = []  # tickets on record that have no task yet
        self._own: set[str] = (
            set()
        )  # tickets; the client polls other tasks only because it waits for their slots
        self._saved_by_id: dict[str, TaskHandle] = {}
        self._detached = 0
        self._starting: asyncio.Task[None] | None = None
        self._printed_left = 0
        self._statuses: set[int] = set()
        self._started = 0
        self._not_sent = 0
        self._has_given_up = False  # the key was refused, the account cannot pay, or the ledger failed
        self._stopped: int | None = None  # the exit status of the reason to stop
        self._interrupts = 0
        self._closing: asyncio.Task[None] | None = None

    async def follow_all(self, items: Items) -> int:
        """Follow each of *items*; returns the exit status."""
        async with AsyncExitStack() as stack:
            if self._mode.ledger is not None:
                await stack.enter_async_context(self._mode.ledger)
            self._client = Client(
                self._provider,
                limits=Limits(concurrency=self._goal.concurrency),
                ledger=self._mode.ledger,
                adopt=self._mode.adopts,
                on_event=self._show_event,
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
                self._report_left()
                self._stdout.flush()
                self._stderr.flush()
        return worst_status(self._statuses) if self._stopped is None else self._stopped

    def _show_event(self, event: Event) -> None:
        if event.name is EventName.WAITING:
            self._own.add(event.ticket)
        by_id = self._saved_by_id.get(event.ticket)
        if by_id is not None:
            event = evolve(event, task=by_id.task)
        if event.ticket in self._own or not self._mode.creates:
            self._display.show_event(event)

    # Following ---------------------------------------------------------------------------------------------

    async def _follow_each(self, items: Items) -> None:
        async with self._client, asyncio.TaskGroup() as group:
            self._group = group
            self._starting = group.create_task(self._start_each(items))

    async def _start_each(self, items: Items) -> None:
        """Start each item, as soon as the window has room."""
        try:
            async for item in items(self._client):
                if item.name is None:
                    await self._window.acquire()
                self._started += 1
                following = self._group.create_task(self._follow(item))
                if item.name is None:
                    following.add_done_callback(lambda _: self._window.release())
        except ClientClosedError:
            return  # `_report_left` reports it
        except (BideError, ValueError) as error:  # no more items will come; those that have started continue
            self._report_error(error)

    async def _follow(self, item: Item) -> None:
        """Follow one task from its submission to its results. Its errors are reported, and do not stop the others."""
        handle: TaskHandle | None = None
        files: Sequence[SavedFile] = ()
        fault: Exception | None = None
        self._open[id(item)] = (item, None)
        try:
            handle = await item.start(self._client)
            self._open[id(item)] = (item, handle)
            self._display.add(handle, item.label)
            if self._has_given_up and self._mode.creates:
                await _withdraw(handle)
            await self._wait(handle)
            files = await self._save(handle)
        except ClientClosedError:
            return  # `_report_left` reports it
        except (BideError, ValueError, TypeError) as error:
            fault = error
            if handle is not None and self._mode.creates:
                await _withdraw(handle)  # the command ends: what it could not send must not be sent later
            self._report_or_count(item, handle, error)
        if handle is not None:
            self._display.remove(handle.ticket)
            if self._goal.detach and fault is None:
                self._detached += 1
            elif not handle.task.status.is_final or _can_be_saved_later(fault):
                self._note_left(handle)
        elif item.name is not None:
            self._left.append(item.name)
        del self._open[id(item)]
        await self._print(item, handle, files, fault)

    async def _wait(self, handle: TaskHandle) -> None:
        """Wait until it has succeeded; with --detach, until it is accepted.

        Raises:
            BideError: it has failed, or the timeout has passed.
        """
        wait = handle.accepted if self._goal.detach else handle.result
        try:
            await wait(timeout=self._goal.timeout)
        except WaitTimeoutError:
            if self._mode.creates:
                await _withdraw_or_settle(handle)
            if self._goal.detach and handle.task.status.is_accepted:
                return
            if is_withdrawn(handle) or not handle.task.status.is_final:
                raise
            await handle.result()  # it has ended meanwhile: its result or error says more

    async def _save(self, handle: TaskHandle) -> Sequence[SavedFile]:
        """Save the files of a task, if the user wants that.

        Raises:
            DownloadError: one of them could not be fetched or written.
        """
        goal, task = self._goal, handle.task
        if goal.save is None:
            return ()
        if self._mode.ledger is None and task.task_id is not None:
            # Without a record each command makes a new ticket. So the task id names the files: then the next command
            # finds the part files of this one.
            by_id = evolve(task, ticket=task.task_id)
            self._saved_by_id[by_id.ticket] = handle
            with suppress(ValueError):  # this id cannot name a file
                return await self._client.save(by_id, goal.save, overwrite=goal.overwrite)
        return await self._client.save(task, goal.save, overwrite=goal.overwrite)

    def _note_left(self, handle: TaskHandle) -> None:
        """Note that there is still a task to wait for, or a file to fetch."""
        if handle.task_id is not None:
            self._left.append(handle.task_id)
        elif self._mode.ledger is not None:
            self._kept.append(handle.ticket)

    def _report_or_count(self, item: Item, handle: TaskHandle | None, error: Exception) -> None:
        """Report the *error*; a request that was withdrawn with others is only counted."""
        if handle is None and item.name is None:
            self._not_sent += 1
        elif handle is not None and is_withdrawn(handle) and self._mode.creates:
            self._not_sent += 1
            if self._has_given_up:
                return
        text = explain(item.label, handle, error, self._goal.timeout, self._mode.place)
        self._report_error(error, text)

    def _report_error(self, error: Exception, text: str | None = None) -> None:
        """Print what went wrong. If the next requests would fail in the same way, they are not sent."""
        status = exit_status(error)
        self._statuses.add(status)
        self._display.print_line(f"bide: {one_line(text or str(error), 2000)}")
        if (status in (AUTH, LIMITED) or isinstance(error, LedgerError)) and not self._has_given_up:
            self._has_given_up = True
            if self._starting is not None:
                self._starting.cancel()
            for _, handle in self._open.values() if self._mode.creates else ():
                if handle is not None:
                    self._group.create_task(_withdraw(handle))

    # Results -----------------------------------------------------------------------------------------------

    async def _print(
        self, item: Item, handle: TaskHandle | None, files: Sequence[SavedFile], fault: Exception | None
    ) -> None:
        """Print the outcome of one task in a single write, so that an interrupt cannot split it."""
        task = None if handle is None else handle.task
        lines = [str(file.path) for file in files]
        if self._goal.json:
            lines = [task_json(item.label, task, files, fault)]
        elif self._goal.detach and task is not None and fault is None:
            lines = [f"{task.ticket} {task.task_id or '-'}"]
        elif task is not None and fault is None:
            lines += self._addresses(task)
        if lines:
            await self._write("\n".join(lines))

    def _addresses(self, task: Task) -> list[str]:
        """The addresses of the results, unless they are saved. Prints a message for each result without an address."""
        addresses = []
        for output in task.outputs:
            if output.error is not None:
                self._display.print_line(
                    f"bide: {display_name(task)}: a part failed: {one_line(str(output.error.message))}"
                )
            elif self._goal.save is None and output.url is not None:
                addresses.append(one_line(output.url, 10_000))
            elif self._goal.save is None and output.data is not None:
                self._display.print_line(
                    f"bide: {display_name(task)}: the service sent the file in its answer; --save DIR writes it"
                )
            elif self._goal.save is None:
                self._display.print_line(f"bide: {display_name(task)}: the address of its file has expired")
        return addresses

    async def _write(self, line: str) -> None:
        with self._display.pause() if self._stdout.is_terminal else nullcontext():
            try:
                await self._stdout.write(line)
            except OSError as fault:
                # The reader has ended, or the disk is full. What was sent continues, and `_report_left` prints its ids.
                if not isinstance(fault, BrokenPipeError) and self._stopped is None:
                    self._display.print_line(f"bide: standard output cannot be written: {fault}")
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
            self._display.__exit__(None, None, None)  # shows the cursor again
            self._stderr.flush(0.2)
            os._exit(INTERRUPTED)
        self._stop(INTERRUPTED)
        self._display.print_line(
            "bide: stopping: what was sent continues. Ctrl-C again ends this program at once"
        )
        known = [str(handle.task_id) for _, handle in self._open.values() if handle and handle.task_id]
        self._print_next_command([*self._left, *known])

    def _stop(self, status: int) -> None:
        """Send nothing more, and wait only for the answers of creates under way."""
        if self._stopped is None:
            self._stopped = status
            self._closing = asyncio.create_task(self._client.aclose(withdraw=self._mode.creates))
            self._following.cancel()

    def _report_left(self) -> None:
        """Print the tasks that continue, or whose results can still be fetched, and what to do about them."""
        not_sent = self._not_sent
        if self._total is not None:
            not_sent += self._total - self._started
        for item, handle in self._open.values():
            if handle is None:
                if item.name is not None:
                    self._left.append(item.name)
                else:
                    not_sent += 1
                continue
            status = handle.task.status
            if self._goal.json:
                self._stdout.put(task_json(item.label, handle.task, ()))
            if handle.task_id is not None or status is TaskStatus.SUCCEEDED:
                self._note_left(handle)
            elif status is TaskStatus.UNKNOWN:
                advice = settle_advice(handle.ticket, self._mode.place)
                self._stderr.put(f"bide: {one_line(item.label, 60)}: its create may have arrived")
                self._stderr.put(f"bide: check the service's console: {advice}")
            elif not status.is_final and self._mode.ledger is not None:
                self._kept.append(handle.ticket)
                if status is TaskStatus.SUBMITTING:
                    self._stderr.put(f"bide: {one_line(item.label, 60)}: its create may have arrived")
            else:
                not_sent += 1
        if not_sent:
            self._stderr.put(f"bide: {not_sent} not sent")
        if len(self._left) + len(self._kept) > self._printed_left:
            self._print_next_command(self._left)
        if self._detached:
            command = self._command(["resume", "--save", "DIR"])
            self._display.print_line(f"bide: {self._detached} still running; to get their results: {command}")

    def _print_next_command(self, ids: Sequence[str]) -> None:
        """Print what is left, and the command that continues with it."""
        self._printed_left = len(ids) + len(self._kept)
        if not self._printed_left:
            return
        words: list[str] = [self._mode.next_command]
        if self._goal.save is not None:
            words += ["--save", str(self._goal.save)]
        if self._goal.overwrite:
            words.append("--overwrite")
        if self._goal.json:
            words.append("--json")
        if ids:
            self._display.print_line(f"bide: {len(ids)} left at the service: {', '.join(ids)}")
        if self._kept:
            self._display.print_line(f"bide: {len(self._kept)} stay on record: {', '.join(self._kept)}")
        if self._mode.next_command == "watch":
            words += [*ids, *self._kept]
        self._display.print_line(f"bide: to continue: {self._command(words)}")

    def _command(self, words: Sequence[str]) -> str:
        """A `bide` command for this service and ledger."""
        with_service = [*words[:1], "--provider", self._provider.name, *words[1:]]
        place = self._mode.place
        return shlex.join(["bide", *with_service]) if place is None else place.command(*with_service)


async def _withdraw(handle: TaskHandle) -> None:
    if handle.task.status is TaskStatus.WAITING:
        with suppress(BideError):  # it was just being sent, and could not be withdrawn any more
            await handle.cancel()


async def _withdraw_or_settle(handle: TaskHandle) -> None:
    """Withdraw *handle* if it was not sent; else wait for the answer to its create.

    That answer may put the request back into the queue. Then it would be sent again and paid for, although the user's
    timeout has passed.
    """
    with suppress(BideError):
        async for task in handle.events():
            if task.status is TaskStatus.WAITING:
                await _withdraw(handle)
            elif task.status is not TaskStatus.SUBMITTING:
                return


def _can_be_saved_later(fault: Exception | None) -> bool:
    """Whether a later command may save the files that this one could not save."""
    return isinstance(fault, DownloadError) and fault.retryable
