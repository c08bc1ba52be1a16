"""Short names for what most tests need: a client at the emulator, a request, what the emulator saw."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import httpx

from bide import Client, DashScope, Dieyuyun, ImageRequest, Limits, VideoRequest
from bide.emulator import Emulator, ServiceLimits
from bide.emulator._answers import Call

if TYPE_CHECKING:
    from bide import Provider
    from bide.emulator import EmulatedTask, RequestRecord

KEY = "sk-canary-0123456789"
SERVICES = ("dieyuyun", "dashscope")
THREE = Limits(concurrency=3)
UNLIMITED = Limits(math.inf, math.inf)


def provider_at(emulator: Emulator, service: str, **options: Any) -> Provider:
    if service == "dashscope":
        return DashScope(base_url=emulator.dashscope_url, **options)
    return Dieyuyun(base_url=emulator.dieyuyun_url, **options)


def client_at(emulator: Emulator, service: str = "dashscope", **options: Any) -> Client:
    """A client of *service* at *emulator*, with the canary key."""
    options.setdefault("api_key", KEY)
    return Client(provider_at(emulator, service), **options)


def emulator_with(*, concurrency: int | None = None, queries: int | None = None, **options: Any) -> Emulator:
    """An emulator with the same limits for both services, and none where none is given."""
    limits = ServiceLimits(concurrency=concurrency, queries_per_second=queries)
    return Emulator(dieyuyun_limits=limits, dashscope_limits=limits, **options)


def image(prompt: str = "a cat on a windowsill", **options: Any) -> ImageRequest:
    options.setdefault("model", "wan2.5-t2i-preview")
    return ImageRequest(prompt, **options)


def video(prompt: str = "a kitten runs in the moonlight", **options: Any) -> VideoRequest:
    options.setdefault("model", "wan2.6-t2v")
    return VideoRequest(prompt, **options)


def calls(emulator: Emulator, on: str) -> list[RequestRecord]:
    """The requests of one kind that reached the emulator."""
    return [each for each in emulator.requests() if each.on == on]


def truth(emulator: Emulator, task_id: str | None) -> EmulatedTask:
    """What the emulator knows of a task."""
    return next(task for task in emulator.tasks() if task.id == task_id)


def now() -> float:
    return asyncio.get_running_loop().time()


class Wire(httpx.AsyncBaseTransport):
    """Straight to the emulator's services, without sockets: for tests of very many calls."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, body = request.url, await request.aread()
        headers = {name.lower(): value for name, value in request.headers.items()}
        target = url.raw_path.decode()
        call = Call(request.method, url.path, target, dict(url.params), headers, body)
        delivery = self.emulator._decide_api(call)
        await asyncio.sleep(delivery.delay)
        if delivery.cut or delivery.answer is None or delivery.truncate is not None:
            raise httpx.ReadError("the emulator has cut the connection")
        answer = delivery.answer
        headers = {"Date": self.emulator._clock.date(), **answer.headers}
        return httpx.Response(answer.status, headers=headers, content=answer.body)
