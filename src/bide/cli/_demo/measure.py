"""`bide demo`: the main job from end to end, on this machine and without a bill."""

from __future__ import annotations

import asyncio
import heapq
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import evolve

from bide import BideError, Client, DashScope, Dieyuyun, ImageRequest, Limits, Pace, VideoRequest
from bide.cli import _files
from bide.emulator import Emulator, ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bide import Provider, Request, SavedFile, Task, TaskHandle
    from bide.emulator import EmulatedTask
    from bide.providers import Profile

IMAGES, VIDEOS, SLOTS = 12, 6, 3
IMAGE_SECONDS, VIDEO_SECONDS = (3.0, 5.0), (7.0, 9.0)
SLOWEST, FASTEST = 0.01, 100.0
CAP = 5.0
"""Seconds between two looks at most, as without a `Pace` for tasks that short."""
SUBJECTS = ("a lighthouse", "a fox", "an old tram", "a paper boat", "a teapot", "a glacier")
MOODS = ("in fog", "at noon")


class Display(Protocol):
    """Where the demo shows what goes on."""

    def begins(self, handle: TaskHandle) -> None:
        """This task is followed from now on."""

    def changed(self, seconds: float, task: Task) -> None:
        """*task* is the newest snapshot of one, so many *seconds* after the start."""

    def failed(self, seconds: float, error: BideError) -> None:
        """A task ended without its files."""


@dataclass(frozen=True)
class Figures:
    """What came of the tasks of one service: our view, and the emulator's counters.

    Attributes:
        submitted: how many there were.
        most_in_flight: the most at once; *allowed* are `SLOTS`.
        opened: files on disk that are whole.
        looks: queries and lists.
        lag: seconds from the end of a task to our knowing, on average.
        wall: seconds until the last file was on disk; *ideal* is what the tasks take where every slot is refilled
            the moment that it is free.
    """

    title: str
    submitted: int
    creates: int
    creates_429: int
    most_in_flight: int
    looks: int
    queries_429: int
    opened: int
    lag: float
    wall: float
    ideal: float

    def faults(self) -> list[str]:
        """What is not as it must be."""
        expected = (
            ("creates", self.creates, self.submitted),
            ("creates refused with 429", self.creates_429, 0),
            ("looks refused with 429", self.queries_429, 0),
            ("most in flight", self.most_in_flight, SLOTS),
            ("files that open", self.opened, self.submitted),
        )
        return [
            f"{self.title}: {name}: {got}, expected {wanted}"
            for name, got, wanted in expected
            if got != wanted
        ]


def run(directory: Path, *, speed: float) -> int:
    """The demo as a command, with bars on a terminal and a summary; returns the exit status.

    Raises:
        ValueError: *speed* is not from 0.01 to 100.
        OSError: *directory* cannot be made.
    """
    from bide.cli import _show

    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(f"the speed is from {SLOWEST:g} to {FASTEST:g}, not {speed:g}")
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{IMAGES} images from Dieyuyun and {VIDEOS} videos from DashScope, {SLOTS} of each at a time:\n")
    sys.stdout.flush()
    with _show.display([*image_requests(), *video_requests()]) as display:
        figures = asyncio.run(measure(directory, speed=speed, display=display))
    _show.summary(figures, directory)
    faults = [fault for each in figures for fault in each.faults()]
    for fault in faults:
        print(f"bide: not as it must be: {fault}", file=sys.stderr)
    return 1 if faults else 0


async def measure(directory: Path, *, speed: float, display: Display) -> list[Figures]:
    """Run all tasks on an emulator of their own, and save their files to *directory*."""
    async with Emulator(
        image_seconds=IMAGE_SECONDS,
        video_seconds=VIDEO_SECONDS,
        speed=speed,
        dieyuyun_limits=ServiceLimits(concurrency=SLOTS),
    ) as emulator:
        _bypass_proxy("127.0.0.1")
        # In proportion: where all goes faster, seconds count for more.
        pace = Pace(price=Pace().price / speed, cap=CAP / speed)
        images = _Batch("Dieyuyun, images", _dieyuyun(emulator, speed), image_requests(), pace)
        videos = _Batch("DashScope, videos", _dashscope(emulator, speed), video_requests(), pace)
        async with asyncio.TaskGroup() as group:
            for batch in (images, videos):
                group.create_task(batch.run(directory, display))
        return [batch.figures(emulator) for batch in (images, videos)]


def image_requests() -> dict[str, Request]:
    """The images, by ticket."""
    prompts = [f"{subject} {mood}" for mood in MOODS for subject in SUBJECTS][:IMAGES]
    return {f"image-{n:02}": ImageRequest(text, model="gpt-image-2") for n, text in enumerate(prompts, 1)}


def video_requests() -> dict[str, Request]:
    """The videos, by ticket."""
    prompts = [f"{subject} comes to life" for subject in SUBJECTS][:VIDEOS]
    return {f"video-{n:02}": VideoRequest(text, model="wan2.6-t2v") for n, text in enumerate(prompts, 1)}


class _Batch:
    """All tasks of one service."""

    def __init__(self, title: str, provider: Provider, requests: dict[str, Request], pace: Pace) -> None:
        self._title = title
        self._provider = provider
        self._pace = pace
        self._seen_at: dict[str, float] = {}
        self._requests = requests
        self._files: list[SavedFile] = []
        self._wall = 0.0

    async def run(self, directory: Path, display: Display) -> None:
        """Submit everything at once, follow it, and save what comes of it."""
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def follow(handle: TaskHandle) -> None:
            try:
                display.begins(handle)
                async for task in handle.events():
                    display.changed(loop.time() - start, task)
                    if task.status.is_final and task.task_id is not None:
                        self._seen_at[task.task_id] = loop.time()
                self._files += await handle.save(directory)
            except BideError as error:
                display.failed(loop.time() - start, error)

        # Dieyuyun's documents name no limit, so its client is told.
        limits = Limits(concurrency=SLOTS)
        async with Client(self._provider, api_key="sk-demo", limits=limits, pace=self._pace) as client:
            handles = [
                await client.submit(request, ticket=ticket) for ticket, request in self._requests.items()
            ]
            async with asyncio.TaskGroup() as group:
                for handle in handles:
                    group.create_task(follow(handle))
            self._wall = loop.time() - start

    def figures(self, emulator: Emulator) -> Figures:
        """What came of it."""
        service = self._provider.name
        stats = emulator.stats()["services"][service]
        tasks = [task for task in emulator.tasks() if task.service == service]
        lags = [self._seen_at[task.id] - task.ended for task in tasks if task.id in self._seen_at]
        most = [most for kinds in stats["max_in_flight"].values() for most in kinds.values()]
        return Figures(
            title=self._title,
            submitted=len(self._requests),
            creates=stats["creates"],
            creates_429=stats["creates_429"],
            most_in_flight=max(most, default=0),
            looks=stats["queries"] + stats["lists"],
            queries_429=stats["queries_429"],
            opened=sum(_files.opens(Path(file.path)) for file in self._files),
            lag=sum(lags) / max(1, len(lags)),
            wall=self._wall,
            ideal=_ideal(tasks),
        )


def _ideal(tasks: Iterable[EmulatedTask]) -> float:
    """Seconds that *tasks* take in their order, where each slot is refilled the moment that it is free."""
    slots = [0.0] * SLOTS
    for task in sorted(tasks, key=lambda task: task.created):
        heapq.heapreplace(slots, slots[0] + task.ended - task.created)
    return max(slots)


def _dieyuyun(emulator: Emulator, speed: float) -> Provider:
    class Hurried(Dieyuyun):
        def profile(self, kind: str) -> Profile:
            return _hurried(super().profile(kind), IMAGE_SECONDS, speed)

    return Hurried(base_url=emulator.dieyuyun_url)


def _dashscope(emulator: Emulator, speed: float) -> Provider:
    class Hurried(DashScope):
        def profile(self, kind: str) -> Profile:
            return _hurried(super().profile(kind), VIDEO_SECONDS, speed)

    return Hurried(base_url=emulator.dashscope_url)


def _hurried(profile: Profile, seconds: tuple[float, float], speed: float) -> Profile:
    """*profile*, had it been written for the emulator: the services' documents promise minutes."""
    low, high = (each / speed for each in seconds)
    return evolve(profile, floor=profile.floor / speed, typical=(low, high))


def _bypass_proxy(host: str) -> None:
    """Let no proxy of the environment stand between this process and the emulator in it."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
