"""The progress display on standard error: bars on a terminal, and elsewhere a line for each important step."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

from bide import EventName
from bide.cli._messages import display_name
from bide.cli._output import one_line, size_text
from bide.cli._task_progress import FilesProgress, PercentColumn, PercentTextColumn, TaskProgress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from bide import Event, Task, TaskHandle
    from bide.cli._output import Stream

LABEL_CHARACTERS = 32
"""Characters of a prompt that a row shows."""
MIN_ROWS = 3


class Display(Protocol):
    """Where a command shows the progress of its tasks."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, handle: TaskHandle, label: str) -> None:
        """Show the task of *handle* under this *label*."""

    def show_event(self, event: Event) -> None:
        """Show an event: the `on_event` of the client."""

    def print_line(self, line: str) -> None:
        """Print a line for the user."""

    def pause(self) -> AbstractContextManager[None]:
        """Hide the progress while something else is written to the same terminal."""
        ...

    def remove(self, ticket: str) -> None:
        """The command is done with *ticket*."""


def display(total: int | None, stderr: Stream) -> Display:
    """Bars if standard error is a terminal and $BIDE_LOG is not set, since a log would break them; else lines.

    Args:
        total: the number of tasks; None if that is not known.
    """
    console = Console(stderr=True)
    return Bars(console, total) if console.is_terminal and not os.environ.get("BIDE_LOG") else Lines(stderr)


class Bars:
    """A row for all tasks, and one for each accepted task until its files are saved, as far as the screen has room."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._progress = Progress(
            # No markup: both texts come from others, prompts from the user and errors from the service.
            TextColumn("{task.description}", markup=False),
            PercentColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            PercentTextColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._all = self._progress.add_task("all", total=total, status="", progress=None)
        self._most_rows = max(MIN_ROWS, console.height - 4)
        self._labels: dict[str, str] = {}
        self._paused_until: float | None = None
        self._handles: dict[str, TaskHandle] = {}
        self._rows: dict[str, tuple[TaskID, TaskProgress]] = {}
        self._files: dict[str, FilesProgress] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, handle: TaskHandle, label: str) -> None:
        """Show its task under this *label*, as soon as it is accepted."""
        ticket = handle.ticket
        self._labels[ticket], self._handles[ticket] = one_line(label, LABEL_CHARACTERS), handle
        self._show(handle.task)
        if ticket in self._rows:
            self._progress.update(self._rows[ticket][0], description=self._labels[ticket])

    def show_event(self, event: Event) -> None:
        """Update the row of its task."""
        if event.name is EventName.PAUSED:
            self._progress.update(self._all, status=f"paused for {event.seconds:.0f} s: {_reason(event)}")
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
            self._add_row(task)
        if ticket in self._rows and ticket not in self._files:
            row, progress = self._rows[ticket]
            # A poll that changes only the ETA makes no event, so read the handle.
            progress.newest = lambda: task if handle is None else handle.task
            self._progress.update(row, status=task.status)

    def _show_files(self, event: Event) -> None:
        """Show the bytes of its files in the row of the task."""
        task, ticket = event.task, event.ticket
        if ticket in self._handles:  # else the command is done with it
            self._add_row(task)
        if ticket in self._rows:
            files = self._files.setdefault(
                ticket, FilesProgress(sum(each.error is None for each in task.outputs))
            )
            files.update(event.output or 0, event.bytes or 0, event.total)
            self._progress.update(self._rows[ticket][0], progress=files, status=files.status)

    def _add_row(self, task: Task) -> None:
        if task.ticket not in self._rows and len(self._rows) < self._most_rows:
            label = self._labels.get(task.ticket) or task.task_id or task.ticket
            progress = TaskProgress(lambda: task)
            row = self._progress.add_task(label, total=None, status=task.status, progress=progress)
            self._rows[task.ticket] = (row, progress)

    def print_line(self, line: str) -> None:
        """Print above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Hide the bars while something else is written to the same terminal."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def remove(self, ticket: str) -> None:
        """Remove its row, and count it as done."""
        self._labels.pop(ticket, None)
        self._handles.pop(ticket, None)
        self._files.pop(ticket, None)
        if ticket in self._rows:
            row, _ = self._rows.pop(ticket)
            self._progress.remove_task(row)
        self._progress.advance(self._all)


class Lines:
    """A line when a task is accepted (it may cost money from then on), when creates are paused, when a task ends, and
    when its files are saved."""

    def __init__(self, stderr: Stream) -> None:
        self._stderr = stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def pause(self) -> AbstractContextManager[None]:
        """Lines need no pause."""
        return nullcontext()

    def add(self, handle: TaskHandle, label: str) -> None:
        """Lines show ids, not labels."""

    def show_event(self, event: Event) -> None:
        """Print a line for an important step."""
        if event.name is EventName.SUBMITTED:
            self.print_line(f"{event.task_id} accepted")
        elif event.name is EventName.PAUSED:
            self.print_line(f"paused for {event.seconds:.0f} s: {_reason(event)}")
        elif event.name is EventName.FINAL:
            self.print_line(f"{display_name(event.task)} {event.task.status}")
        elif event.name is EventName.SAVED:
            self.print_line(_saved_line(event))

    def print_line(self, line: str) -> None:
        """Print the line."""
        self._stderr.put(line)

    def remove(self, ticket: str) -> None:
        """The line about its end is printed already."""


def _reason(event: Event) -> str:
    return one_line(str(event.error or ""), 120)


def _saved_line(event: Event) -> str:
    count = len(event.files)
    size = size_text(sum(file.size for file in event.files))
    return f"{display_name(event.task)} saved: {count} file{'s' if count > 1 else ''}, {size}"
