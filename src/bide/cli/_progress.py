"""What goes on, on standard error: bars on a terminal, a line for each step that matters elsewhere."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

from bide import EventName
from bide.cli._gauge import Files, Gauge, GaugeBar, GaugeText, amount
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from bide import Event, Task, TaskHandle
    from bide.cli._out import Stream

LABEL = 32
"""Characters of a prompt that a bar shows."""
LEAST_ROWS = 3


class Display(Protocol):
    """Where a command shows what goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def name(self, handle: TaskHandle, label: str) -> None:
        """Call its task so, and show where it stands."""

    def heard(self, event: Event) -> None:
        """Something has happened: the `on_event` of the client."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def aside(self) -> AbstractContextManager[None]:
        """Make room for results on the same terminal."""
        ...

    def ended(self, ticket: str) -> None:
        """Nobody waits for *ticket* any more."""


def display(total: int | None, stderr: Stream) -> Display:
    """Bars if standard error is a terminal and no log is printed between them, lines if not.

    Args:
        total: how many tasks there will be; None if that is not known.
    """
    console = Console(stderr=True)
    return Bars(console, total) if console.is_terminal and not os.environ.get("BIDE_LOG") else Lines(stderr)


class Bars:
    """A bar for all, and one for each task under way, as far as the screen has room: until its files are saved."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._progress = Progress(
            # Both show the words of others: prompts, and what the service says.
            TextColumn("{task.description}", markup=False),
            GaugeBar(),
            TextColumn("{task.fields[status]}", markup=False),
            GaugeText(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._all = self._progress.add_task("all", total=total, status="", gauge=None)
        self._most_rows = max(LEAST_ROWS, console.height - 4)
        self._labels: dict[str, str] = {}
        self._paused_until: float | None = None
        self._handles: dict[str, TaskHandle] = {}
        self._rows: dict[str, tuple[TaskID, Gauge]] = {}
        self._files: dict[str, Files] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def name(self, handle: TaskHandle, label: str) -> None:
        """Call its task so, and show where it stands."""
        ticket = handle.ticket
        self._labels[ticket], self._handles[ticket] = plain(label, LABEL), handle
        self._show(handle.task)
        if ticket in self._rows:
            self._progress.update(self._rows[ticket][0], description=self._labels[ticket])

    def heard(self, event: Event) -> None:
        """Move the bar of a task."""
        if event.name is EventName.PAUSED:
            self._progress.update(self._all, status=f"paused for {event.seconds:.0f} s: {_why(event)}")
            self._paused_until = time.monotonic() + (event.seconds or 0.0)
        elif self._paused_until is not None and time.monotonic() > self._paused_until:
            self._paused_until = None
            self._progress.update(self._all, status="")
        if event.name is EventName.SAVING:
            self._show_files(event)
        else:
            self._show(event.task)

    def _show(self, task: Task) -> None:
        ticket, handle = task.ticket, self._handles.get(task.ticket)
        if task.status.is_accepted:
            self._give_a_row(task)
        if ticket in self._rows and ticket not in self._files:
            row, gauge = self._rows[ticket]
            # A look that has told nothing but the time that is left makes no event: the handle has it.
            gauge.newest = lambda: task if handle is None else handle.task
            self._progress.update(row, status=task.status)

    def _show_files(self, event: Event) -> None:
        """The row of the task goes on, by the bytes of its files."""
        task, ticket = event.task, event.ticket
        if ticket in self._handles:  # else nobody waits for it any more
            self._give_a_row(task)
        if ticket in self._rows:
            files = self._files.setdefault(ticket, Files(sum(each.error is None for each in task.outputs)))
            files.heard(event.output or 0, event.bytes or 0, event.total)
            self._progress.update(self._rows[ticket][0], gauge=files, status=files.status)

    def _give_a_row(self, task: Task) -> None:
        if task.ticket not in self._rows and len(self._rows) < self._most_rows:
            label = self._labels.get(task.ticket) or task.task_id or task.ticket
            gauge = Gauge(lambda: task)
            row = self._progress.add_task(label, total=None, status=task.status, gauge=gauge)
            self._rows[task.ticket] = (row, gauge)

    def say(self, line: str) -> None:
        """Print above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bars away for as long as something else is written to their terminal."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def ended(self, ticket: str) -> None:
        """Take the bar away, and count."""
        self._labels.pop(ticket, None)
        self._handles.pop(ticket, None)
        self._files.pop(ticket, None)
        if ticket in self._rows:
            row, _ = self._rows.pop(ticket)
            self._progress.remove_task(row)
        self._progress.advance(self._all)


class Lines:
    """A line when a task is accepted, since it may cost from then on, one for each pause, one at its end, and one when
    its files are saved."""

    def __init__(self, stderr: Stream) -> None:
        self._stderr = stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def aside(self) -> AbstractContextManager[None]:
        """There is nothing in the way."""
        return nullcontext()

    def name(self, handle: TaskHandle, label: str) -> None:
        """Nobody is shown it."""

    def heard(self, event: Event) -> None:
        """Print the step, if it is one that matters."""
        if event.name is EventName.SUBMITTED:
            self.say(f"{event.task_id} accepted")
        elif event.name is EventName.PAUSED:
            self.say(f"paused for {event.seconds:.0f} s: {_why(event)}")
        elif event.name is EventName.FINAL:
            self.say(_end(event.task))
        elif event.name is EventName.SAVED:
            self.say(_saved(event))

    def say(self, line: str) -> None:
        """Print it."""
        self._stderr.put(line)

    def ended(self, ticket: str) -> None:
        """It has been told."""


def _why(event: Event) -> str:
    return plain(str(event.error or ""), 120)


def _end(task: Task) -> str:
    return f"{task.task_id or task.ticket} {task.status}"


def _saved(event: Event) -> str:
    count = len(event.files)
    size = amount(sum(file.size for file in event.files))
    return f"{event.task_id or event.ticket} saved: {count} file{'s' if count > 1 else ''}, {size}"
