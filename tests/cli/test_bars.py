"""The bars of the commands: told progress as it is, and an estimate that the clock moves on where none is told."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bide import Event, EventName, Output, SavedFile, Task, TaskStatus
from bide.cli import _progress
from bide.cli._output import Stream
from bide.cli._task_progress import FilesProgress, TaskProgress

if TYPE_CHECKING:
    from pathlib import Path

    from bide import TaskHandle

NEW = Task(ticket="order-1")


def running(**what: Any) -> Task:
    return Task(ticket="order-1", task_id="t-1", status=TaskStatus.RUNNING, **what)


class Followed:
    """A handle, as far as a bar sees one; and a gauge on it."""

    ticket = "order-1"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.progress = TaskProgress(lambda: self.task)

    def percent(self, now: float) -> float:
        percent = self.progress.percent(now)
        assert percent is not None
        return percent


# Where no progress is told -----------------------------------------------------------------------------------


def test_an_estimate_moves_evenly_between_two_looks() -> None:
    followed = Followed(running(eta=100.0))

    percents = [followed.percent(100.0 + seconds) for seconds in range(0, 80, 10)]

    assert percents[0] == 0
    assert {round(after - before, 3) for before, after in itertools.pairwise(percents)} == {9.9}


def test_an_estimate_counts_what_was_waited_before_it_was_known() -> None:
    followed = Followed(running())
    assert followed.progress.percent(100.0) is None
    followed.task = running(eta=30.0)

    assert followed.percent(110.0) == pytest.approx(99 / 4)


def test_an_estimate_that_comes_true_is_as_if_no_look_had_been_made() -> None:
    looked_at, left_alone = Followed(running(eta=100.0)), Followed(running(eta=100.0))
    for seconds in range(0, 70, 7):
        looked_at.task = running(eta=100.0 - seconds)
        assert looked_at.percent(seconds) == pytest.approx(left_alone.percent(seconds))


def test_an_estimate_slows_down_where_the_end_is_late_and_never_comes_to_it() -> None:
    followed = Followed(running(eta=10.0))

    percents = [followed.percent(seconds) for seconds in (0, 10, 20, 50, 100, 1e6)]

    assert percents == sorted(percents)
    assert percents[1] < 95
    assert percents[-1] <= 99


@given(st.lists(st.tuples(st.floats(0, 1e4), st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 100))))
def test_no_history_moves_a_bar_backwards_or_to_its_end(
    looks: list[tuple[float, float | None, float | None]],
) -> None:
    followed, now, shown, told = Followed(NEW), 0.0, 0.0, 0.0
    for gap, eta, progress in looks:
        told = told if progress is None else max(told, progress)
        followed.task = running(eta=eta, progress=told or None)
        for _ in range(2):
            percent = followed.progress.percent(now)
            now += gap
            if percent is not None:
                assert shown - 1e-9 <= percent <= max(99, told)
                shown = percent


def test_an_estimate_is_marked_as_one() -> None:
    followed = Followed(running(eta=100.0))
    followed.percent(0.0)

    assert followed.progress.text(40.0) == "~40 %, about 60 s left"
    followed.task = running(eta=600.0)
    assert followed.progress.text(40.0) == "~40 %, about 10 min left"


def test_once_half_of_such_tasks_have_ended_no_time_is_promised() -> None:
    followed = Followed(running(eta=10.0))
    followed.percent(0.0)

    assert followed.progress.text(30.0) == "~99 %"


# Where progress is told --------------------------------------------------------------------------------------


def test_told_progress_is_shown_as_it_is() -> None:
    followed = Followed(running(progress=30.0, eta=12.0))

    assert followed.progress.text(0.0) == "30 %, about 12 s left"
    assert followed.progress.text(5.0) == "30 %, about 7 s left"
    followed.task = running(progress=45.0)
    assert followed.percent(6.0) == 45


def test_progress_that_is_told_late_does_not_set_the_bar_back() -> None:
    followed = Followed(running(eta=100.0))
    followed.percent(0.0)
    followed.percent(40.0)
    followed.task = running(progress=10.0)

    assert followed.progress.text(40.0).startswith("~40 %")
    followed.task = running(progress=60.0)
    assert followed.progress.text(50.0).startswith("60 %")


# The bar of a row --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "percent"), [(NEW, 0.0), (running(), None)])
def test_what_nobody_knows_is_not_shown(task: Task, percent: float | None) -> None:
    followed = Followed(task)

    assert followed.progress.percent(0.0) == percent
    assert followed.progress.text(0.0) == ""


def test_what_has_ended_is_full() -> None:
    followed = Followed(Task(ticket="order-1", task_id="t-1", status=TaskStatus.SUCCEEDED))

    assert (followed.progress.percent(0.0), followed.progress.text(0.0)) == (100.0, "")


def test_a_bar_follows_its_handle_from_look_to_look() -> None:
    """A look that has told nothing but the time that is left makes no event."""
    console = Console(force_terminal=True, width=120, record=True, color_system=None)
    followed = Followed(Task(ticket="order-1", task_id="t-1", status=TaskStatus.QUEUED))
    with _progress.Bars(console, 2) as bars:
        bars.show_event(event(EventName.SUBMITTED, followed.task))
        bars.add(cast("TaskHandle", followed), "a paper [boat]")
        followed.task = running(eta=300.0)
        bars.show_event(event(EventName.CHANGED, followed.task))
        bars._progress.refresh()
        followed.task = running(eta=40.0)
        bars._progress.refresh()
        bars.remove("order-1")

    shown = console.export_text()
    assert "a paper [boat]" in shown
    assert "running ~0 %, about 5 min left" in shown
    assert "about 40 s left" in shown
    assert "1/2" in shown


# Files on their way ------------------------------------------------------------------------------------------


def test_the_files_of_a_task_are_one_bar_by_their_bytes() -> None:
    files = FilesProgress(2)
    files.update(0, 1_500_000, 6_000_000)

    assert (files.percent(0.0), files.text(0.0), files.status) == (None, "1.5 MB", "saving 0/2")
    files.update(1, 500_000, 2_000_000)
    assert (files.percent(0.0), files.text(0.0), files.status) == (25.0, "2.0/8.0 MB", "saving 0/2")
    files.update(0, 6_000_000, 6_000_000)
    assert (files.percent(0.0), files.text(0.0), files.status) == (81.25, "6.5/8.0 MB", "saving 1/2")


@pytest.mark.parametrize(
    ("size", "total", "words"),
    [
        (0, None, "0.0 kB"),
        (0, 0, "0.0 kB"),
        (900, 1_200, "0.9/1.2 kB"),
        (3_200_000, None, "3.2 MB"),
        (500_000_000, 1_500_000_000, "0.5/1.5 GB"),
    ],
)
def test_bytes_are_told_as_a_person_says_them(size: int, total: int | None, words: str) -> None:
    file = FilesProgress(1)
    file.update(0, size, total)

    assert (file.text(0.0), file.status) == (words, "saving")


def saving(task: Task, size: int, total: int | None, output: int = 0) -> Event:
    return evolve(event(EventName.SAVING, task), output=output, bytes=size, total=total)


def test_the_row_of_a_task_goes_on_while_its_files_are_saved() -> None:
    console = Console(force_terminal=True, width=120, record=True, color_system=None)
    followed = Followed(running(progress=50.0))
    done = Task(
        ticket="order-1", task_id="t-1", status=TaskStatus.SUCCEEDED, outputs=(Output(url="https://a/1"),) * 2
    )
    shown = []
    with _progress.Bars(console, None) as bars:
        bars.add(cast("TaskHandle", followed), "a paper boat")
        rows = bars._progress.task_ids
        for at, each in [
            (done, event(EventName.FINAL, done)),
            (done, saving(done, 1_000_000, 4_000_000)),
            (done, saving(done, 3_000_000, 6_000_000, output=1)),
            (done, event(EventName.UNSAVED, done)),
            (done, saving(done, 4_000_000, 4_000_000)),
        ]:
            followed.task = at
            bars.show_event(each)
            bars._progress.refresh()
            assert bars._progress.task_ids == rows, "it does not vanish and come back"
            shown.append(" ".join(console.export_text().split("boat")[-1].split()))
        bars.remove("order-1")
        bars.show_event(saving(done, 4_000_000, 4_000_000))
        assert bars._progress.task_ids == rows[:1], "nor does it come back when nobody waits any more"

    assert shown[0].endswith("succeeded")
    assert shown[1].endswith("saving 0/2 1.0 MB")
    assert shown[2].endswith("saving 0/2 4.0/10.0 MB")
    assert shown[3].endswith("saving 0/2 4.0/10.0 MB")
    assert shown[4].endswith("saving 1/2 7.0/10.0 MB")


def test_what_had_ended_before_gets_its_row_when_its_files_come() -> None:
    console = Console(force_terminal=True, width=120, record=True, color_system=None)
    followed = Followed(
        Task(
            ticket="order-1", task_id="t-1", status=TaskStatus.SUCCEEDED, outputs=(Output(url="https://a/1"),)
        )
    )
    with _progress.Bars(console, None) as bars:
        bars.add(cast("TaskHandle", followed), "a paper boat")
        bars.show_event(saving(followed.task, 2_000, None))
        bars._progress.refresh()

    assert "saving 2.0 kB" in " ".join(console.export_text().split())


@pytest.mark.real_time
async def test_without_a_terminal_one_line_tells_of_saved_files(tmp_path: Path) -> None:
    done = Task(ticket="order-1", task_id="t-1", status=TaskStatus.SUCCEEDED)
    files = (SavedFile("out/order-1-0.png", 1_000_000), SavedFile("out/order-1-1.png", 2_500_000))
    with (tmp_path / "err").open("w+") as stream:
        stderr = Stream(stream, "standard error")
        lines = _progress.Lines(stderr)
        lines.show_event(saving(done, 1_000_000, 1_000_000))
        lines.show_event(evolve(event(EventName.SAVED, done), files=files))
        await asyncio.to_thread(stderr.flush, 5.0)

    assert (tmp_path / "err").read_text() == "t-1 saved: 2 files, 3.5 MB\n"


def event(name: EventName, task: Task) -> Event:
    return Event(name, datetime.now(UTC), "dashscope", "image", None, task)
