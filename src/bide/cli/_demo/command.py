"""What the demo shows: live bars on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from bide import Task, TaskStatus
from bide.cli._demo import SLOTS
from bide.cli._gauge import Gauge, GaugeBar, GaugeText

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from bide import BideError, TaskHandle
    from bide.cli._demo import Figures

_COLOURS = {
    TaskStatus.WAITING: "dim",
    TaskStatus.SUBMITTING: "yellow",
    TaskStatus.QUEUED: "yellow",
    TaskStatus.RUNNING: "cyan",
    TaskStatus.SUCCEEDED: "green",
}


def display(tickets: Iterable[str]) -> Bars | Lines:
    """Bars for these *tickets* if stderr is a terminal, lines if not. Both are context managers."""
    console = Console(stderr=True)
    return Bars(console, tickets) if console.is_terminal else Lines()


class Bars:
    """A bar for each task."""

    def __init__(self, console: Console, tickets: Iterable[str]) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            GaugeBar(),
            TextColumn("{task.fields[status]}"),
            GaugeText(),
            console=console,
        )
        self._rows = {
            ticket: self._progress.add_task(ticket, total=100.0, status="", gauge=Gauge(Task))
            for ticket in tickets
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begins(self, handle: TaskHandle) -> None:
        """Let the bar of this task show where it stands, from now on."""
        self._progress.update(self._rows[handle.ticket], gauge=Gauge(lambda: handle.task))

    def changed(self, seconds: float, task: Task) -> None:
        """Tell the status of *task*."""
        status = task.status
        self._progress.update(
            self._rows[task.ticket],
            status=f"[{_COLOURS.get(status, 'red')}]{status}"
            + (f" at {seconds:.1f} s" if status.is_final else ""),
        )

    def failed(self, seconds: float, error: BideError) -> None:
        """Tell of a fault, above the bars."""
        self._progress.console.print(_fault(seconds, error), markup=False, highlight=False)


class Lines:
    """A line when a task is accepted, and one when it has ended."""

    def __init__(self) -> None:
        self._accepted: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begins(self, handle: TaskHandle) -> None:
        """There is nothing to tell yet."""

    def changed(self, seconds: float, task: Task) -> None:
        """Print the change, if it is one of the two."""
        if task.status.is_accepted and task.ticket not in self._accepted:
            self._accepted.add(task.ticket)
            self._print(f"{seconds:5.1f} s  {task.ticket}  accepted as {task.task_id}")
        elif task.status.is_final:
            self._print(f"{seconds:5.1f} s  {task.ticket}  {task.status}")

    def failed(self, seconds: float, error: BideError) -> None:
        """Print the fault."""
        self._print(_fault(seconds, error))

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _fault(seconds: float, error: BideError) -> str:
    return f"{seconds:5.1f} s  {error.ticket}  {type(error).__name__}: {error}"


def summary(figures: Sequence[Figures], directory: Path) -> None:
    """Print the figures of each service beside each other, and what to do next."""
    table = Table(title="By the emulator's own counters", title_justify="left")
    table.add_column("")
    for each in figures:
        table.add_column(each.title, justify="right")
    rows = (
        ("creates", [f"{each.creates} for {each.submitted} tasks" for each in figures]),
        ("creates refused with 429", [str(each.creates_429) for each in figures]),
        ("most in flight", [f"{each.most_in_flight} of {SLOTS} allowed" for each in figures]),
        (
            "looks, lists included",
            [f"{each.looks}, {each.looks / each.submitted:.1f} a task" for each in figures],
        ),
        ("looks refused with 429", [str(each.queries_429) for each in figures]),
        ("from an end to our knowing", [f"{each.lag:.1f} s" for each in figures]),
        ("files that open", [f"{each.opened} of {each.submitted}" for each in figures]),
        ("wall time", [f"{each.wall:.1f} s" for each in figures]),
        ("ideal, without any lag", [f"{each.ideal:.1f} s" for each in figures]),
    )
    for name, cells in rows:
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    console.print(
        f"{sum(each.creates for each in figures)} creates, {sum(each.creates_429 for each in figures)} refused; "
        f"{sum(each.opened for each in figures)} files in {directory}/\n"
        "To try your own code: bide emulator starts both services and says how to point it at them.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
