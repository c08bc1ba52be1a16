"""`bide demo`: its figures in virtual time, its output in real time."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from rich.console import Console

from bide import Task, TaskFailedError, TaskStatus
from bide.cli import _demo, _show, main
from bide.cli._files import opens
from bide.emulator import Emulator
from support.waits import A_MINUTE

if TYPE_CHECKING:
    from pathlib import Path

    from bide import BideError, TaskHandle

RIGHT = _demo.Figures(
    title="Dieyuyun, images",
    submitted=12,
    creates=12,
    creates_429=0,
    most_in_flight=3,
    looks=20,
    queries_429=0,
    opened=12,
    lag=0.5,
    wall=24.0,
    ideal=18.0,
)


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.statuses: dict[str, list[TaskStatus]] = {}
        self.errors: list[BideError] = []

    def begins(self, handle: TaskHandle) -> None:
        self.statuses[handle.ticket] = []

    def changed(self, seconds: float, task: Task) -> None:
        self.statuses[task.ticket].append(task.status)

    def failed(self, seconds: float, error: BideError) -> None:
        self.errors.append(error)


async def test_it_brings_everything_home_within_its_limits_and_in_time(tmp_path: Path) -> None:
    seen = Seen()
    start = asyncio.get_running_loop().time()

    figures = await _demo.measure(tmp_path, speed=1.0, display=seen)

    assert [(each.creates, each.creates_429, each.most_in_flight) for each in figures] == [
        (12, 0, 3),
        (6, 0, 3),
    ]
    assert [fault for each in figures for fault in each.faults()] == []
    assert asyncio.get_running_loop().time() - start < 30
    assert all(0 < each.lag < 2.5 and each.looks < 6 * each.submitted for each in figures)
    assert all(each.ideal <= each.wall < 2 * each.ideal for each in figures)
    assert sorted(path.suffix for path in tmp_path.iterdir() if opens(path)) == [".mp4"] * 6 + [".png"] * 12
    assert {statuses[-1] for statuses in seen.statuses.values()} == {TaskStatus.SUCCEEDED}
    assert len(seen.statuses) == 18


async def test_a_task_that_fails_is_told_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "SUBJECTS", ("a fox [fail content_policy]", *_demo.SUBJECTS[1:]))
    seen = Seen()

    images, videos = await _demo.measure(tmp_path, speed=1.0, display=seen)

    assert {type(error) for error in seen.errors} == {TaskFailedError}
    assert images.faults() == ["Dieyuyun, images: files that open: 10, expected 12"]
    assert videos.faults() == ["DashScope, videos: files that open: 5, expected 6"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"creates": 13}, "creates: 13, expected 12"),
        ({"creates_429": 1}, "creates refused with 429: 1, expected 0"),
        ({"queries_429": 2}, "looks refused with 429: 2, expected 0"),
        ({"most_in_flight": 2}, "most in flight: 2, expected 3"),
        ({"opened": 11}, "files that open: 11, expected 12"),
    ],
)
def test_a_figure_that_is_off_is_a_fault(wrong: dict[str, int], told: str) -> None:
    assert RIGHT.faults() == []
    assert replace(RIGHT, **wrong).faults() == [f"Dieyuyun, images: {told}"]  # type: ignore[arg-type]  # all are ints


@pytest.mark.real_time
async def test_as_a_program_it_prints_lines_and_a_summary_and_ends_with_0(tmp_path: Path) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bide", "demo", "--speed", "20", "--output", str(tmp_path / "files")),
        # A proxy that is not there: the emulator is reached without it.
        env={**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (each.decode() for each in await asyncio.wait_for(program.communicate(), A_MINUTE))

    assert program.returncode == 0, err
    assert "18 creates, 0 refused; 18 files" in out
    assert out.count("3 of 3 allowed") == 2
    assert err.count("succeeded") == 18
    assert err.count("accepted as") == 18
    assert "\x1b" not in out + err
    assert len(list((tmp_path / "files").iterdir())) == 18


def test_a_directory_that_cannot_be_made_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")

    assert main(["demo", "--output", str(tmp_path / "taken")]) == 1

    assert "taken" in capsys.readouterr().err


@pytest.mark.parametrize("figures", [[RIGHT], [replace(RIGHT, creates_429=1)]], ids=["right", "wrong"])
def test_the_exit_status_tells_whether_the_figures_are_right(
    figures: list[_demo.Figures],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def measured(*_: object, **__: object) -> list[_demo.Figures]:
        return figures

    monkeypatch.setattr(_demo, "measure", measured)
    right = figures == [RIGHT]

    assert main(["demo", "--output", str(tmp_path)]) == (0 if right else 1)

    shown = capsys.readouterr()
    assert "24.0 s" in shown.out
    assert ("not as it must be" in shown.err) is not right


def test_a_speed_that_makes_no_sense_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "-1", "--output", str(tmp_path)]) == 2

    assert "the speed is from 0.01 to 100, not" in capsys.readouterr().err


def test_bars_show_each_task_and_faults_above_them() -> None:
    console = Console(force_terminal=True, width=100, record=True, color_system=None)

    with _show.Bars(console, ["image-01", "video-01", "video-02"]) as bars:
        for task in (
            Task(ticket="image-01", status=TaskStatus.RUNNING, progress=40.0, eta=3.0),
            Task(ticket="video-01", status=TaskStatus.RUNNING, eta=60.0),
        ):
            bars.begins(cast("TaskHandle", SimpleNamespace(ticket=task.ticket, task=task)))
            bars.changed(0.1, task)
        bars.changed(7.5, Task(ticket="video-02", status=TaskStatus.SUCCEEDED))
        bars.failed(8.0, TaskFailedError("video-02 failed: [no] reason", ticket="video-02"))

    shown = console.export_text()
    assert "8.0 s  video-02  TaskFailedError: video-02 failed: [no] reason" in shown
    assert "succeeded at 7.5 s" in shown
    assert re.search(r"image-01 .*running +40 %, about 3 s left", shown)
    assert re.search(r"video-01 .*running +~0 %, about 60 s left", shown)


def test_lines_tell_what_is_accepted_what_ends_and_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with _show.display([]) as lines:
        lines.changed(0.0, Task(ticket="video-02"))
        lines.changed(1.0, Task(ticket="video-02", task_id="t-1", status=TaskStatus.QUEUED))
        lines.changed(2.0, Task(ticket="video-02", task_id="t-1", status=TaskStatus.RUNNING))
        lines.changed(8.0, Task(ticket="video-02", task_id="t-1", status=TaskStatus.FAILED))
        lines.failed(8.0, TaskFailedError("it failed", ticket="video-02"))

    assert isinstance(lines, _show.Lines)
    assert capsys.readouterr().err.splitlines() == [
        "  1.0 s  video-02  accepted as t-1",
        "  8.0 s  video-02  failed",
        "  8.0 s  video-02  TaskFailedError: it failed",
    ]


async def test_the_emulator_s_limit_is_what_holds_the_demo_back(tmp_path: Path) -> None:
    """Without the client's limit, the emulator refuses: the demo's zero is the client's merit."""
    async with Emulator(
        dieyuyun_limits=_demo.ServiceLimits(concurrency=_demo.SLOTS), image_seconds=4
    ) as emulator:
        async with _demo.Client(_demo.Dieyuyun(base_url=emulator.dieyuyun_url), api_key="sk-demo") as client:
            await client.gather(*_demo.image_requests().values())

        assert emulator.stats()["creates_429"] > 0
