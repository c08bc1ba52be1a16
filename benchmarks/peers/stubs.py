"""Small services that speak the peers' protocols, written from their public documents: create, poll, result.

All have the limit that the benchmark is about: some tasks at a time, and 429 with `Retry-After` beyond. Not every
real service is so strict: fal and Runway accept more tasks than a key's concurrency and queue them on their side. The
rows show what the clients do when they are refused, as they are by other limits and at other services.
"""

from __future__ import annotations

import asyncio
import json
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aiohttp import web

from peers.gate import Gate, Mishap
from peers.race import Counts

if TYPE_CHECKING:
    from typing import Self

STAMP, ISO_STAMP = 1767600000, "2026-01-05T08:00:00.000Z"
"""A moment for the answers' fields that name one; no peer reads it."""


@dataclass(frozen=True)
class Terms:
    """What a service allows and how long its tasks take: `seconds` is a range, `retry_after` goes with each 429."""

    slots: int
    seconds: tuple[float, float]
    retry_after: int
    seed: int = 0
    keeps_keys: bool = False
    """Whether a create with an `Idempotency-Key` that came before is answered with the task that it made then."""
    mishap: Mishap | None = None


@dataclass(frozen=True)
class _Task:
    id: str
    prompt: str
    ends: float

    @property
    def remaining(self) -> float:
        """Seconds until its result is there."""
        return max(0.0, self.ends - asyncio.get_running_loop().time())

    @property
    def has_ended(self) -> bool:
        return self.remaining == 0


class Stub(ABC):
    """A service on a free port of this machine, in the running loop. The n-th task always takes the same time."""

    refusal: ClassVar[dict[str, Any]] = {"detail": "Too many tasks at once."}

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._random = random.Random(terms.seed)
        self._tasks: dict[str, _Task] = {}
        self._by_key: dict[str, _Task] = {}
        self._refused = self._polls = 0
        self._others: list[float] = []
        self.origin = ""

    @abstractmethod
    def routes(self) -> list[web.RouteDef]:
        """The paths of the protocol."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.origin = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._gate = None
        if self._terms.mishap is not None:
            self._gate = await Gate(self.origin, self._terms.mishap, self._hold).__aenter__()
            self.origin = self._gate.origin
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._gate is not None:
            await self._gate.__aexit__()
        await self._runner.cleanup()

    async def _hold(self, slots: int, seconds: float) -> None:
        """Give so many slots to another user of the key."""
        self._others = [asyncio.get_running_loop().time() + seconds] * slots

    def counts(self) -> Counts:
        """What was counted since the start."""
        prompts = {task.prompt for task in self._tasks.values()}
        return Counts(
            paid=len(self._tasks),
            refused=self._refused,
            polls=self._polls,
            twice=len(self._tasks) - len(prompts),
        )

    def in_flight(self) -> int:
        """How many tasks of all users of the key are accepted and not yet at their end."""
        now = asyncio.get_running_loop().time()
        return sum(not task.has_ended for task in self._tasks.values()) + sum(
            ends > now for ends in self._others
        )

    def accept(self, request: web.Request, prompt: str) -> _Task:
        """A new task, which is paid for; beyond the limit 429."""
        key = request.headers.get("Idempotency-Key") if self._terms.keeps_keys else None
        if key is not None and key in self._by_key:
            return self._by_key[key]
        if self.in_flight() >= self._terms.slots:
            self._refused += 1
            raise web.HTTPTooManyRequests(
                text=json.dumps(self.refusal),
                content_type="application/json",
                headers={"Retry-After": str(self._terms.retry_after)},
            )
        ends = asyncio.get_running_loop().time() + self._random.uniform(*self._terms.seconds)
        task = _Task(f"task-{len(self._tasks)}", prompt, ends)
        self._tasks[task.id] = task
        if key is not None:
            self._by_key[key] = task
        return task

    def poll(self, request: web.Request) -> _Task:
        """The task that *request* asks the status of."""
        self._polls += 1
        return self._tasks[request.match_info["id"]]

    def url(self, task: _Task) -> str:
        """Where the video would be."""
        return f"{self.origin}/files/{task.id}.mp4"


class FalQueue(Stub):
    """fal's queue: POST an app, GET the request's status until COMPLETED, GET the request for the result."""

    APP = "bench/video"

    def routes(self) -> list[web.RouteDef]:
        request = f"/{self.APP}/requests/{{id}}"
        return [
            web.post(f"/{self.APP}", self._submit),
            web.get(f"{request}/status", self._status),
            web.get(request, self._result),
        ]

    async def _submit(self, request: web.Request) -> web.Response:
        task = self.accept(request, (await request.json())["prompt"])
        url = f"{self.origin}/{self.APP}/requests/{task.id}"
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return web.json_response({"request_id": task.id, "queue_position": 0, **urls})

    async def _status(self, request: web.Request) -> web.Response:
        task = self.poll(request)
        status = "COMPLETED" if task.has_ended else "IN_PROGRESS"
        return web.json_response({"status": status, "request_id": task.id, "logs": None})

    async def _result(self, request: web.Request) -> web.Response:
        task = self._tasks[request.match_info["id"]]
        return web.json_response({"video": {"url": self.url(task)}})


class RunwayTasks(Stub):
    """Runway's tasks: POST a text, GET the task until SUCCEEDED, which brings the URLs."""

    refusal: ClassVar[dict[str, Any]] = {"error": "Too many tasks at once."}

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/text_to_video", self._create), web.get("/v1/tasks/{id}", self._retrieve)]

    async def _create(self, request: web.Request) -> web.Response:
        return web.json_response({"id": self.accept(request, (await request.json())["promptText"]).id})

    async def _retrieve(self, request: web.Request) -> web.Response:
        task = self.poll(request)
        body: dict[str, Any] = {"id": task.id, "createdAt": ISO_STAMP}
        if task.has_ended:
            body |= {"status": "SUCCEEDED", "output": [self.url(task)], "cost": {"credits": 25}}
        else:
            body |= {"status": "RUNNING", "progress": 0.5, "estimatedCost": {"credits": 25}}
        return web.json_response(body)


class OpenAIVideos(Stub):
    """OpenAI's videos: POST a form, GET the video until completed."""

    refusal: ClassVar[dict[str, Any]] = {
        "error": {"message": "Too many videos at once.", "type": "requests", "code": "rate_limit_exceeded"}
    }

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/videos", self._create), web.get("/v1/videos/{id}", self._retrieve)]

    async def _create(self, request: web.Request) -> web.Response:
        form = await request.post()
        return web.json_response(self._video(self.accept(request, str(form["prompt"]))))

    async def _retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._video(self.poll(request)))

    def _video(self, task: _Task) -> dict[str, Any]:
        status = {"status": "completed", "progress": 100, "completed_at": STAMP}
        if not task.has_ended:
            status = {"status": "in_progress", "progress": 50}
        video = {"id": task.id, "object": "video", "model": "sora-2", "seconds": "4", "size": "720x1280"}
        return video | {"created_at": STAMP} | status


class ReplicatePredictions(Stub):
    """Replicate's predictions: POST the input, GET the prediction until succeeded.

    A POST with `Prefer: wait` is held open until the result is there, or for 60 s.
    """

    MODEL = "bench/video"
    LONGEST_HOLD = 60.0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(f"/v1/models/{self.MODEL}/predictions", self._create),
            web.get("/v1/predictions/{id}", self._get),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        task = self.accept(request, (await request.json())["input"]["prompt"])
        if request.headers.get("Prefer", "").startswith("wait"):
            await asyncio.sleep(min(task.remaining, self.LONGEST_HOLD))
        return web.json_response(self._prediction(task), status=201)

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._prediction(self.poll(request)))

    def _prediction(self, task: _Task) -> dict[str, Any]:
        prediction = {"id": task.id, "model": self.MODEL, "version": "hidden", "created_at": ISO_STAMP}
        if task.has_ended:
            return prediction | {"status": "succeeded", "output": self.url(task)}
        return prediction | {"status": "starting", "output": None}


class ComfyRouter(Stub):
    """Comfy Router's queue: POST a model's input, GET the request's status until COMPLETED, GET it for the result."""

    MODEL = "bench/video"
    refusal: ClassVar[dict[str, Any]] = {
        "error": {"code": "queue_backlog_full", "message": "Too many requests are waiting."}
    }

    def routes(self) -> list[web.RouteDef]:
        requests = f"/v2/models/{self.MODEL}/requests"
        return [
            web.post(requests, self._submit),
            web.get(f"{requests}/{{id}}/status", self._status),
            web.get(f"{requests}/{{id}}", self._result),
        ]

    async def _submit(self, request: web.Request) -> web.Response:
        task = self.accept(request, (await request.json())["prompt"])
        return web.json_response({"request_id": task.id, "status": "IN_QUEUE"}, status=202)

    async def _status(self, request: web.Request) -> web.Response:
        task = self.poll(request)
        status = "COMPLETED" if task.has_ended else "IN_PROGRESS"
        return web.json_response({"request_id": task.id, "status": status})

    async def _result(self, request: web.Request) -> web.Response:
        task = self._tasks[request.match_info["id"]]
        return web.json_response({"video": {"url": self.url(task)}})
