"""`bide demo`: its figures in virtual time, its output in real time."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import pytest

from bide import Client, Dieyuyun, EventName, TaskStatus
from bide.cli import main
from bide.cli._demo import command, measure
from bide.cli._demo.files import is_readable
from bide.emulator import Emulator, ServiceLimits
from support.waits import A_MINUTE

if TYPE_CHECKING:
    from pathlib import Path

    from bide import Event, TaskHandle

RIGHT = measure.Figures(
    title="Dieyuyun, images",
    submitted=12,
    creates=12,
    creates_429=0,
    most_in_flight=3,
    polls=20,
    queries_429=0,
    readable=12,
    lag=0.5,
    wall=24.0,
    ideal=18.0,
)


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.ends: dict[str, TaskStatus] = {}
        self.lines: list[str] = []
        self.removed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, handle: TaskHandle, label: str) -> None:
        self.labels[handle.ticket] = label

    def show_event(self, event: Event) -> None:
        if event.name is EventName.FINAL:
            self.ends[event.ticket] = event.task.status

    def print_line(self, line: str) -> None:
        self.lines.append(line)

    def pause(self) -> AbstractContextManager[None]:
        return nullcontext()

    def remove(self, ticket: str) -> None:
        self.removed.add(ticket)


async def test_it_brings_everything_home_within_its_limits_and_in_time(tmp_path: Path) -> None:
    seen = Seen()
    start = asyncio.get_running_loop().time()

    figures = await measure.measure(tmp_path, speed=1.0, display=seen)

    assert [(each.creates, each.creates_429, each.most_in_flight) for each in figures] == [
        (12, 0, 3),
        (6, 0, 3),
    ]
    assert [fault for each in figures for fault in each.faults()] == []
    assert asyncio.get_running_loop().time() - start < 30
    assert all(0 < each.lag < 2.5 and each.polls < 6 * each.submitted for each in figures)
    assert all(each.ideal <= each.wall < 2 * each.ideal for each in figures)
    assert (
        sorted(path.suffix for path in tmp_path.iterdir() if is_readable(path))
        == [".mp4"] * 6 + [".png"] * 12
    )
    assert set(seen.ends.values()) == {TaskStatus.SUCCEEDED}
    assert len(seen.ends) == len(seen.labels) == len(seen.removed) == 18
    assert seen.lines == []


async def test_a_task_that_fails_is_told_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SUBJECTS", ("a fox [fail content_policy]", *measure.SUBJECTS[1:]))
    seen = Seen()

    images, videos = await measure.measure(tmp_path, speed=1.0, display=seen)

    assert len(seen.lines) == 3
    assert all(": TaskFailedError: " in line for line in seen.lines)
    assert len(seen.removed) == 18
    assert images.faults() == ["Dieyuyun, images: readable files: 10, expected 12"]
    assert videos.faults() == ["DashScope, videos: readable files: 5, expected 6"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"creates": 13}, "creates: 13, expected 12"),
        ({"creates_429": 1}, "creates refused with 429: 1, expected 0"),
        ({"queries_429": 2}, "polls refused with 429: 2, expected 0"),
        ({"most_in_flight": 2}, "most in flight: 2, expected 3"),
        ({"readable": 11}, "readable files: 11, expected 12"),
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
    assert err.count(" accepted") == 18
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
    figures: list[measure.Figures],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def measured(*_: object, **__: object) -> list[measure.Figures]:
        return figures

    monkeypatch.setattr(command, "measure", measured)
    right = figures == [RIGHT]

    assert main(["demo", "--output", str(tmp_path)]) == (0 if right else 1)

    shown = capfd.readouterr()
    assert "24.0 s" in shown.out
    assert ("wrong figure" in shown.err) is not right


def test_a_speed_that_makes_no_sense_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "-1", "--output", str(tmp_path)]) == 2

    assert "the speed must be from 0.01 to 100, not" in capsys.readouterr().err


async def test_the_emulator_s_limit_is_what_holds_the_demo_back(tmp_path: Path) -> None:
    """Without the client's limit, the emulator refuses: the demo's zero is the client's merit."""
    async with Emulator(
        dieyuyun_limits=ServiceLimits(concurrency=measure.SLOTS), image_seconds=4
    ) as emulator:
        async with Client(Dieyuyun(base_url=emulator.dieyuyun_url), api_key="sk-demo") as client:
            await client.gather(*measure.image_requests().values())

        assert emulator.stats()["creates_429"] > 0
