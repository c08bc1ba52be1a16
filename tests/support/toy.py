"""A service of a few lines, for edges that no real one shows: scripted replies and an adapter for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from attrs import field, frozen

from bide import Client
from bide._wire import Call, Reply, quote_id
from bide.errors import InvalidRequestError, NotFoundError, ServerError, UnexpectedReplyError
from bide.models import Limits, Output, Request, Task, TaskStatus
from bide.providers import (
    Accepted,
    Denied,
    Gone,
    NotNow,
    Profile,
    Refused,
    Stopped,
    TooLate,
    TryAgain,
    Unclear,
)

if TYPE_CHECKING:
    from datetime import datetime

    from bide.providers import CancelOutcome, CreateOutcome, ListOutcome, QueryOutcome

Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


@frozen
class Toy:
    """A provider of a service that answers `{"id", "status", "progress"}`."""

    idempotent: bool = False
    limits: Limits = field(factory=Limits)
    longest: float = 3600.0
    unknown_hold: float = 100.0
    read: Callable[[Reply], QueryOutcome] | None = None
    queries_per_second: float | None = None

    name = "toy"
    base_url = "https://toy.example/api"
    key_variables = ("TOY_KEY", "TOY_TOKEN")
    lists = False
    page_size = 0

    def profile(self, kind: str) -> Profile:
        return Profile(3.0, (10, 30), self.longest, self.unknown_hold, self.limits)

    def knows(self, word: str) -> bool:
        return word in {str(status) for status in TaskStatus}

    def create_call(self, request: Request, ticket: str) -> Call:
        if request.model == "impossible":
            raise ValueError("the toy knows no model 'impossible'")
        return Call(
            "POST", "/tasks", headers={"x-ticket": ticket}, body={"prompt": getattr(request, "prompt", "")}
        )

    def read_created(self, reply: Reply, request: Request) -> CreateOutcome:
        if reply.status == 429:
            error = ServerError("busy", status_code=429, retry_after=reply.retry_after)
            return NotNow(error, "slots")
        if reply.status >= 500:
            return Unclear(ServerError("broken", status_code=reply.status))
        if reply.status >= 400:
            return Refused(InvalidRequestError("no", status_code=reply.status, code="No", message="no"))
        return Accepted(self._task(reply))

    def query_call(self, task_id: str) -> Call:
        return Call("GET", f"/tasks/{quote_id(task_id)}")

    def read_task(self, reply: Reply, task_id: str) -> QueryOutcome:
        if self.read is not None:
            return self.read(reply)
        if reply.status == 404:
            return Gone(NotFoundError("no such task", status_code=404, message="gone"))
        if reply.status in (401, 403, 400):
            return Denied(InvalidRequestError("denied", status_code=reply.status))
        if reply.status != 200:
            return TryAgain(ServerError("later", status_code=reply.status, retry_after=reply.retry_after))
        try:
            return self._task(reply)
        except UnexpectedReplyError as fault:
            return TryAgain(fault)

    def contradicts(self, task: Task, request: Request) -> bool:
        return False

    def cancel_call(self, task_id: str) -> Call:
        return Call("DELETE", f"/tasks/{quote_id(task_id)}")

    def read_cancelled(self, reply: Reply, task_id: str) -> CancelOutcome:
        if reply.status == 409:
            return TooLate()
        if reply.status == 403:
            return Denied(InvalidRequestError("may not cancel", status_code=403))
        return Stopped() if reply.status < 400 else TryAgain(ServerError("later", status_code=reply.status))

    def list_call(self, since: datetime, until: datetime, page: int, model: str | None = None) -> Call:
        raise LookupError("the toy has no list")

    def read_list(self, reply: Reply) -> ListOutcome:
        raise LookupError("the toy has no list")

    def _task(self, reply: Reply) -> Task:
        data = reply.object()
        word = data.get("status", "running")
        status = TaskStatus(word) if self.knows(word) else TaskStatus.RUNNING
        has_output = status is TaskStatus.SUCCEEDED and data.get("outputs", 1)
        outputs = (Output(url="https://toy.example/file.png", kind="image"),) if has_output else ()
        return Task(
            task_id=data.get("id"),
            status=status,
            raw_status=word,
            progress=data.get("progress"),
            outputs=outputs,
            raw=data,
        )


class ToyService:
    """The other side: counts what comes, and answers what the test says.

    `creates`, `queries` and `cancels` take a list of answers, used up one by one; the last one stays. An answer is
    a dict (200 with that JSON), a number (that status), an exception (raised by the transport), or a response.
    """

    def __init__(self, *, creates: Any = None, queries: Any = None, cancels: Any = None) -> None:
        self.script = {
            "POST": list(creates or [{"status": "queued"}]),
            "GET": list(queries or [{"status": "running"}]),
            "DELETE": list(cancels or [{}]),
        }
        self.name = "toy"  # its tasks are named by it
        self.seen: list[tuple[str, float]] = []
        self.tickets: list[str] = []
        self.delay = {"POST": 0.0, "GET": 0.0, "DELETE": 0.0}
        self._gates = {method: asyncio.Event() for method in self.delay}
        for method in self.delay:
            self.let_go(method)

    @asynccontextmanager
    async def holding(self, method: str) -> AsyncIterator[None]:
        """Answer no call of this *method* until `let_go`, or the end of the block."""
        self._gates[method].clear()
        yield
        self.let_go(method)

    def let_go(self, method: str) -> None:
        self._gates[method].set()

    def count(self, method: str) -> int:
        return sum(each == method for each, _ in self.seen)

    def times(self, method: str) -> list[float]:
        return [time for each, time in self.seen if each == method]

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.method, asyncio.get_running_loop().time()))
        script = self.script[request.method]
        answer = script.pop(0) if len(script) > 1 else script[0]
        number = self.count("POST")
        if request.method == "POST":
            self.tickets.append(request.headers["x-ticket"])
        await asyncio.sleep(self.delay[request.method])
        await self._gates[request.method].wait()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        if isinstance(answer, int):
            return httpx.Response(answer, json={})
        if request.method == "POST" and "status" in answer:
            answer = {"id": f"{self.name}-{number}", **answer}
        return httpx.Response(200, json=answer)

    def client(self, provider: Toy | None = None, **options: Any) -> Client:
        options.setdefault("api_key", "sk-toy")
        return Client(provider or Toy(), transport=httpx.MockTransport(self), **options)


class TimedService(ToyService):
    """A service whose tasks end by the clock: after so many seconds in its queue and at work.

    A prompt orders them, as "20" or "5 20"; a word behind them is how it ends, as "20 failed".
    """

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, tuple[float, float, float, str]] = {}
        self.looks: dict[str, list[float]] = {}

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        now, task_id = asyncio.get_running_loop().time(), request.url.path.rpartition("/")[2]
        self.seen.append((request.method, now))
        await asyncio.sleep(0.01)
        if request.method == "POST":
            *seconds, word = f"{json.loads(request.content)['prompt']} succeeded".split()[:3]
            if not seconds[-1].isdigit():
                word = seconds.pop()
            queue, run = ([0.0, *map(float, seconds)])[-2:]
            task_id = f"{self.name}-{len(self.tasks) + 1}"
            self.tasks[task_id] = (now, queue, run, word)
            return httpx.Response(200, json={"id": task_id, "status": "queued"})
        created, queue, run, word = self.tasks[task_id]
        if request.method == "DELETE":
            self.tasks[task_id] = (created, 0.0, now - created, "cancelled")
            return httpx.Response(200, json={})
        self.looks.setdefault(task_id, []).append(now)
        age = now - created
        status = "queued" if age < queue else "running" if age < queue + run else word
        return httpx.Response(200, json={"id": task_id, "status": status})

    def end(self, task_id: str) -> float:
        """When a task has ended or will."""
        created, queue, run, _ = self.tasks[task_id]
        return created + queue + run
