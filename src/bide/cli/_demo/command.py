"""The demo as a command: the progress display, the table of figures, and the exit status."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bide.cli._demo.measure import IMAGES, SLOTS, VIDEOS, measure
from bide.cli._messages import FAILED, OK
from bide.cli._output import Stream, silence_log
from bide.cli._progress import display

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bide.cli._demo.measure import Figures

MIN_SPEED, MAX_SPEED = 0.01, 100.0


def run(directory: Path, *, speed: float) -> int:
    """Run the demo and print its figures; returns the exit status: 1 if a figure is wrong.

    Raises:
        ValueError: *speed* is not from 0.01 to 100.
        OSError: *directory* cannot be created.
    """
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise ValueError(f"the speed must be from {MIN_SPEED:g} to {MAX_SPEED:g}, not {speed:g}")
    directory.mkdir(parents=True, exist_ok=True)
    silence_log()
    print(f"{IMAGES} images from Dieyuyun and {VIDEOS} videos from DashScope, {SLOTS} of each at a time:\n")
    sys.stdout.flush()
    stderr = Stream(sys.stderr, "standard error")
    with display(IMAGES + VIDEOS, stderr) as shown:
        figures = asyncio.run(measure(directory, speed=speed, display=shown))
    stderr.flush()
    _print_summary(figures, directory)
    faults = [fault for each in figures for fault in each.faults()]
    for fault in faults:
        print(f"bide: wrong figure: {fault}", file=sys.stderr)
    return FAILED if faults else OK


def _print_summary(figures: Sequence[Figures], directory: Path) -> None:
    """Print the figures of each service side by side, and what to do next."""
    table = Table(title="By the emulator's own counters", title_justify="left")
    table.add_column("")
    for each in figures:
        table.add_column(each.title, justify="right")
    rows = (
        ("creates", [f"{each.creates} for {each.submitted} tasks" for each in figures]),
        ("creates refused with 429", [str(each.creates_429) for each in figures]),
        ("most in flight", [f"{each.most_in_flight} of {SLOTS} allowed" for each in figures]),
        (
            "polls, lists included",
            [f"{each.polls}, {each.polls / each.submitted:.1f} a task" for each in figures],
        ),
        ("polls refused with 429", [str(each.queries_429) for each in figures]),
        ("detection delay", [f"{each.lag:.1f} s" for each in figures]),
        ("readable files", [f"{each.readable} of {each.submitted}" for each in figures]),
        ("wall time", [f"{each.wall:.1f} s" for each in figures]),
        ("ideal, without any delay", [f"{each.ideal:.1f} s" for each in figures]),
    )
    for name, cells in rows:
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    console.print(
        f"{sum(each.creates for each in figures)} creates, {sum(each.creates_429 for each in figures)} refused; "
        f"{sum(each.readable for each in figures)} files in {directory}/\n"
        "To try your own code: bide emulator starts both services and prints how to use them.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
