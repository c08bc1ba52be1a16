"""A service in the place of the wire: the tasks of a workload behind an adapter of the benchmark's own.

Calls are answered from the drawn lives, after a drawn round trip; the service reads its state at half of it. No JSON is
written or read: an answer carries the snapshot itself, so a run of millions of polls measures the pace and takes
seconds. All else is the client's own: its scheduler, ledger and handles.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
from attrs import frozen

from bide import ImageRequest, TaskStatus, VideoRequest
from bide._http.transport import Transport
from bide._wire import Call, Reply
from bide.errors import ServerError
from bide.models import ErrorDetail, Limits, Output, Task
from bide.providers import Accepted, Profile, TryAgain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide._wire import Secret
    from bide.models import Request
    from bide.providers import CreateOutcome, QueryOutcome
    from workloads import Life, Workload

FLOOR = 1.0
"""Seconds: the least time between two polls of a task that the service allows."""
EPOCH = 1_767_600_000.0
"""The service's clock where the loop's is 0."""
BROKEN = Reply(500)
DAY = 86_400.0


@frozen
class Answer(Reply):
    """A reply that carries its snapshot, and the moment by the service's clock, which `Date` gives in whole seconds."""

    task: Task | None = None
    at: float = 0.0

    @property
    def date(self) -> float:
        """The service's clock when it answered."""
        return math.floor(self.at)


@frozen
class Imagined:
    """The adapter: no limits, a floor of one second, and the documented range of the workload."""

    documented: tuple[float, float]

    name = "imagined"
    base_url = "https://imagined.example"
    key_variables = ()
    queries_per_second = None
    idempotent = False
    lists = False
    page_size = 0

    def profile(self, _kind: str) -> Profile:
        """The same for every kind."""
        return Profile(FLOOR, self.documented, longest=DAY, unknown_hold=60.0, limits=Limits())

    def knows(self, _word: str) -> bool:
        """Statuses are ours already."""
        return True

    def create_call(self, request: Request, _ticket: str) -> Call:
        """The prompt says which of the workload's tasks it is."""
        return Call("POST", f"/{getattr(request, 'prompt', '')}")

    def read_created(self, reply: Answer, _request: Request) -> CreateOutcome:
        """Each create is taken."""
        return Accepted(reply.task or Task())

    def contradicts(self, task: Task, request: Request) -> bool:  # noqa: ARG002 - no answer shows a prompt
        return False

    def query_call(self, task_id: str) -> Call:
        """The path is the id."""
        return Call("GET", f"/{task_id}")

    def read_task(self, reply: Reply, _task_id: str) -> QueryOutcome:
        """The snapshot as it is, or a passing fault."""
        task = getattr(reply, "task", None)
        return task if task is not None else TryAgain(ServerError("later", status_code=reply.status))


@dataclass(slots=True)
class Served:
    """One task at the service, by the loop's clock."""

    life: Life
    created: float
    started: float
    ended: float
    times: dict[str, Any]
    last_poll: float = -math.inf


class Wire(Transport):
    """Takes creates and polls, and answers them from the lives of a workload.

    Attributes:
        tasks: all that were made, by their ids.
        least_gap: seconds between two polls of one task, from sending to sending.
    """

    def __init__(self, workload: Workload, lives: Sequence[Life], seed: int) -> None:
        self.unreachable = httpx.MockTransport(_refuse)
        super().__init__(Imagined.base_url, transport=self.unreachable)
        self.places = 100_000
        self.tasks: dict[str, Served] = {}
        self.creates = 0
        self.polls = 0
        self.least_gap = math.inf
        self._workload = workload
        self._lives = lives
        self._dice = Random(f"{workload.name} wire {seed}")

    async def send(
        self,
        call: Call,
        *,
        key: Secret,
        timeout: float,
        fresh: bool = False,
        limit: int = 0,
        may_be_sent: object = None,
    ) -> Reply:
        """The answer, after the round trip."""
        del key, timeout, fresh, limit, may_be_sent
        median, sigma = self._workload.round_trip
        trip = median * math.exp(self._dice.gauss(0.0, sigma))
        now = asyncio.get_running_loop().time()
        reply = (self._create if call.method == "POST" else self._poll)(call.path[1:], now, now + trip / 2)
        await asyncio.sleep(trip)
        return reply

    def _create(self, name: str, _now: float, at: float) -> Reply:
        life = self._lives[int(name)]
        started = at + life.queue
        self.creates += 1
        times = {} if self._workload.ts == "none" else {"created_at": self._clock(at)}
        self.tasks[name] = served = Served(life, at, started, started + life.run, times)
        return self._answer(served, name, at)

    def _poll(self, name: str, now: float, at: float) -> Reply:
        served = self.tasks[name]
        self.polls += 1
        self.least_gap = min(self.least_gap, now - served.last_poll)
        served.last_poll = now
        if self._dice.random() < self._workload.failing_polls:
            return BROKEN
        reply = self._answer(served, name, at)
        ends = self._workload.ends_after_poll
        if ends and at < served.ended and self._dice.random() < ends:
            served.started = min(served.started, at)
            served.ended = math.nextafter(at, math.inf)
        return reply

    def _answer(self, served: Served, name: str, at: float) -> Reply:
        """What the service reports of the task at this moment."""
        if at < served.started:
            percent = served.life.progress(0.0)
            task = Task(
                task_id=name,
                status=TaskStatus.QUEUED,
                progress=None if percent is None else 0.0,
                **served.times,
            )
        elif at < served.ended:
            percent = served.life.progress(at - served.started)
            if self._workload.ts == "full":
                served.times.setdefault("started_at", self._clock(served.started))
            # Services show whole percents.
            task = Task(
                task_id=name,
                status=TaskStatus.RUNNING,
                progress=None if percent is None else float(int(percent)),
                **served.times,
            )
        else:
            task = self._end(served, name)
        return Answer(200, task=task, at=EPOCH + at)

    def _end(self, served: Served, name: str) -> Task:
        times = served.times
        if self._workload.ts == "full":
            times["started_at"] = self._clock(served.started)
        if self._workload.ts != "none":
            times["finished_at"] = self._clock(served.ended)
        if served.life.fails:
            return Task(task_id=name, status=TaskStatus.FAILED, error=ErrorDetail("Failed"), **times)
        outputs = (Output(url=f"https://files.example/{name}"),)
        return Task(task_id=name, status=TaskStatus.SUCCEEDED, outputs=outputs, **times)

    def _clock(self, moment: float) -> datetime:
        """*moment* as the service reports it: in whole seconds or in milliseconds, cut off."""
        unit = 1.0 if self._workload.ts == "end1" else 1000.0
        return datetime.fromtimestamp(math.floor((EPOCH + moment) * unit) / unit, UTC)


def request_for(kind: str, number: int, variant: str | None) -> Request:
    """The request of a task; a variant such as "5s" is the length of a video, any other the size."""
    if kind == "image":
        return ImageRequest(str(number), model="imagined", size=variant)
    if variant is not None and variant.endswith("s") and variant[:-1].isdecimal():
        return VideoRequest(str(number), model="imagined", duration=float(variant[:-1]))
    return VideoRequest(str(number), model="imagined", size=variant)


def _refuse(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"nothing goes over the wire: {request.url}")
