"""`bide demo`: the main job from end to end, on this machine and without a bill."""

from __future__ import annotations

import asyncio
import heapq
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bide import BideError, Client, DashScope, Dieyuyun, ImageRequest, Limits, VideoRequest
from bide.cli import _files
from bide.emulator import Emulator, ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bide import Provider, Request, SavedFile, Task, TaskHandle
    from bide.emulator import EmulatedTask

IMAGES, VIDEOS, SLOTS = 12, 6, 3
IMAGE_SECONDS, VIDEO_SECONDS = (3.0, 5.0), (7.0, 9.0)
SUBJECTS = ("a lighthouse", "a fox", "an old tram", "a paper boat", "a teapot", "a glacier")
MOODS = ("in fog", "at noon")


class Display(Protocol):
    """Where the demo shows what goes on."""

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
        wall: seconds until the last file was on disk; *ideal* is what the tasks take where every slot is refilled
            the moment that it is free.
    """

    title: str
    submitted: int
    creates: int
    creates_429: int
    most_in_flight: int
    queries: int
    queries_429: int
    opened: int
    wall: float
    ideal: float

    def faults(self) -> list[str]:
        """What is not as it must be."""
        expected = (
            ("creates", self.creates, self.submitted),
            ("creates refused with 429", self.creates_429, 0),
            ("queries refused with 429", self.queries_429, 0),
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
        ValueError: *speed* is not above 0.
        OSError: *directory* cannot be made.
    """
    from bide.cli import _show

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
        images = _Batch("Dieyuyun, images", _dieyuyun(emulator, speed), image_requests())
        videos = _Batch("DashScope, videos", _dashscope(emulator, speed), video_requests())
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

    def __init__(self, title: str, provider: Provider, requests: dict[str, Request]) -> None:
        self._title = title
        self._provider = provider
        self._requests = requests
        self._files: list[SavedFile] = []
        self._wall = 0.0

    async def run(self, directory: Path, display: Display) -> None:
        """Submit everything at once, follow it, and save what comes of it."""
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def follow(handle: TaskHandle) -> None:
            try:
                async for task in handle.events():
                    display.changed(loop.time() - start, task)
                self._files += await handle.save(directory)
            except BideError as error:
                display.failed(loop.time() - start, error)

        # Dieyuyun's documents name no limit, so its client is told.
        async with Client(self._provider, api_key="sk-demo", limits=Limits(concurrency=SLOTS)) as client:
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
        most = [most for kinds in stats["max_in_flight"].values() for most in kinds.values()]
        return Figures(
            title=self._title,
            submitted=len(self._requests),
            creates=stats["creates"],
            creates_429=stats["creates_429"],
            most_in_flight=max(most, default=0),
            queries=stats["queries"],
            queries_429=stats["queries_429"],
            opened=sum(_files.opens(Path(file.path)) for file in self._files),
            wall=self._wall,
            ideal=_ideal(task for task in emulator.tasks() if task.service == service),
        )


def _ideal(tasks: Iterable[EmulatedTask]) -> float:
    """Seconds that *tasks* take in their order, where each slot is refilled the moment that it is free."""
    slots = [0.0] * SLOTS
    for task in sorted(tasks, key=lambda task: task.created):
        heapq.heapreplace(slots, slots[0] + task.ended - task.created)
    return max(slots)


def _dieyuyun(emulator: Emulator, speed: float) -> Provider:
    usual = Dieyuyun(base_url=emulator.dieyuyun_url)
    return Dieyuyun(base_url=usual.base_url, image_floor=usual.image_floor / speed)


def _dashscope(emulator: Emulator, speed: float) -> Provider:
    usual = DashScope(base_url=emulator.dashscope_url)
    return DashScope(base_url=usual.base_url, video_floor=usual.video_floor / speed)


def _bypass_proxy(host: str) -> None:
    """Let no proxy of the environment stand between this process and the emulator in it."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
