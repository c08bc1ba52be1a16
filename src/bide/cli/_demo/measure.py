"""Running the tasks of the demo at an emulator, and counting."""

from __future__ import annotations

import asyncio
import heapq
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from bide import BideError, Client, DashScope, Dieyuyun, EventName, ImageRequest, Limits, Pace, VideoRequest
from bide.cli._demo.files import is_readable
from bide.cli._output import one_line
from bide.emulator import Emulator, ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bide import Event, Provider, Request, SavedFile, TaskHandle
    from bide.cli._progress import Display
    from bide.emulator import EmulatedTask
    from bide.providers import Profile

IMAGES, VIDEOS, SLOTS = 12, 6, 3
IMAGE_SECONDS, VIDEO_SECONDS = (3.0, 5.0), (7.0, 9.0)
MAX_POLL_SECONDS = 5.0
"""The most seconds between two polls; for tasks so short it is the default."""
SUBJECTS = ("a lighthouse", "a fox", "an old tram", "a paper boat", "a teapot", "a glacier")
MOODS = ("in fog", "at noon")


@dataclass(frozen=True)
class Figures:
    """The outcome of the tasks of one service: as the client saw it, and by the emulator's counters.

    Attributes:
        title: the service and the kind of tasks.
        submitted: how many tasks there were.
        most_in_flight: the most tasks at once; `SLOTS` are allowed.
        polls: queries and lists.
        readable: files on disk that are complete.
        lag: the detection delay in seconds, on average.
        wall: seconds until the last file was on disk.
        ideal: the same, if each slot were filled again at the moment that it becomes free.
    """

    title: str
    submitted: int
    creates: int
    creates_429: int
    most_in_flight: int
    polls: int
    queries_429: int
    readable: int
    lag: float
    wall: float
    ideal: float

    def faults(self) -> list[str]:
        """The figures that are wrong."""
        expected = (
            ("creates", self.creates, self.submitted),
            ("creates refused with 429", self.creates_429, 0),
            ("polls refused with 429", self.queries_429, 0),
            ("most in flight", self.most_in_flight, SLOTS),
            ("readable files", self.readable, self.submitted),
        )
        return [
            f"{self.title}: {name}: {got}, expected {wanted}"
            for name, got, wanted in expected
            if got != wanted
        ]


async def measure(directory: Path, *, speed: float, display: Display) -> list[Figures]:
    """Run all tasks at an emulator of their own, and save their files to *directory*."""
    async with Emulator(
        image_seconds=IMAGE_SECONDS,
        video_seconds=VIDEO_SECONDS,
        speed=speed,
        dieyuyun_limits=ServiceLimits(concurrency=SLOTS),
    ) as emulator:
        _bypass_proxy("127.0.0.1")
        # In proportion to the speed: at a higher speed each second of delay costs more.
        pace = Pace(price=Pace().price / speed, cap=MAX_POLL_SECONDS / speed)
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
        self._ended_at: dict[str, float] = {}
        self._requests = requests
        self._files: list[SavedFile] = []
        self._wall = 0.0

    async def run(self, directory: Path, display: Display) -> None:
        """Submit everything at once, follow it, and save the results."""
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def follow(handle: TaskHandle) -> None:
            display.add(handle, handle.ticket)
            try:
                self._files += await handle.save(directory)
            except BideError as error:
                display.print_line(
                    f"bide: {handle.ticket}: {type(error).__name__}: {one_line(str(error), 2000)}"
                )
            display.remove(handle.ticket)

        def show_event(event: Event) -> None:
            if event.name is EventName.FINAL and event.task_id is not None:
                self._ended_at[event.task_id] = loop.time()
            display.show_event(event)

        async with Client(
            self._provider,
            api_key="sk-demo",
            limits=Limits(concurrency=SLOTS),  # Dieyuyun's documents name no limit, so the client needs one
            pace=self._pace,
            on_event=show_event,
        ) as client:
            handles = [
                await client.submit(request, ticket=ticket) for ticket, request in self._requests.items()
            ]
            async with asyncio.TaskGroup() as group:
                for handle in handles:
                    group.create_task(follow(handle))
            self._wall = loop.time() - start

    def figures(self, emulator: Emulator) -> Figures:
        """The outcome, once `run` has ended."""
        service = self._provider.name
        stats = emulator.stats()["services"][service]
        tasks = [task for task in emulator.tasks() if task.service == service]
        lags = [self._ended_at[task.id] - task.ended for task in tasks if task.id in self._ended_at]
        most = [most for kinds in stats["max_in_flight"].values() for most in kinds.values()]
        return Figures(
            title=self._title,
            submitted=len(self._requests),
            creates=stats["creates"],
            creates_429=stats["creates_429"],
            most_in_flight=max(most, default=0),
            polls=stats["queries"] + stats["lists"],
            queries_429=stats["queries_429"],
            readable=sum(is_readable(Path(file.path)) for file in self._files),
            lag=sum(lags) / max(1, len(lags)),
            wall=self._wall,
            ideal=_ideal(tasks),
        )


def _ideal(tasks: Iterable[EmulatedTask]) -> float:
    """Seconds that *tasks* take in their order, if each slot is filled again at the moment that it becomes free."""
    slots = [0.0] * SLOTS
    for task in sorted(tasks, key=lambda task: task.created):
        heapq.heapreplace(slots, slots[0] + task.ended - task.created)
    return max(slots)


def _dieyuyun(emulator: Emulator, speed: float) -> Provider:
    class EmulatedDieyuyun(Dieyuyun):
        def profile(self, kind: str) -> Profile:
            return _adapt_profile(super().profile(kind), IMAGE_SECONDS, speed)

    return EmulatedDieyuyun(base_url=emulator.dieyuyun_url)


def _dashscope(emulator: Emulator, speed: float) -> Provider:
    class EmulatedDashScope(DashScope):
        def profile(self, kind: str) -> Profile:
            return _adapt_profile(super().profile(kind), VIDEO_SECONDS, speed)

    return EmulatedDashScope(base_url=emulator.dashscope_url)


def _adapt_profile(profile: Profile, seconds: tuple[float, float], speed: float) -> Profile:
    """*profile* with the durations of the emulator: the documents of the services say minutes."""
    low, high = (each / speed for each in seconds)
    return evolve(profile, floor=profile.floor / speed, typical=(low, high))


def _bypass_proxy(host: str) -> None:
    """Reach *host* without the proxy that the environment may name."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
