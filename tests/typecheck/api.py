"""The public API as a user's type checker sees it. Checked by mypy and pyright; never run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import httpx
import httpx2

from bide import (
    APIError,
    AsCompleted,
    BideError,
    Billing,
    Client,
    DashScope,
    Deadlines,
    Dieyuyun,
    Downloads,
    ErrorDetail,
    Event,
    EventName,
    ImageRequest,
    LaneStatistics,
    Limits,
    MemoryLedger,
    ModelStatistics,
    Output,
    Pace,
    Provider,
    RawRequest,
    Request,
    SavedFile,
    SubmissionUnknownError,
    Task,
    TaskFailedError,
    TaskHandle,
    TaskStatus,
    VideoRequest,
    WaitTimeoutError,
)
from bide.emulator import Emulator, ServiceLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

PROVIDERS: list[Provider] = [
    DashScope(),
    DashScope("singapore", workspace="ws-1"),
    DashScope.gateway("https://gateway.test"),
    Dieyuyun(base_url="https://dieyuyun.test", image_path="/v2/images"),
]

REQUESTS: list[Request] = [
    ImageRequest(
        "a cat", model="gpt-image-2", size="1024x1024", n=2, images=["https://files.test/a.png"], seed=1
    ),
    VideoRequest(
        "a cat", model="wan2.6-t2v", image="https://files.test/a.png", duration=5, resolution="720P"
    ),
    RawRequest("/services/x", {"model": "x", "input": {}}, kind="audio"),
]


def clients(
    transport: httpx.AsyncBaseTransport, http_client: httpx.AsyncClient, http_client_2: httpx2.AsyncClient
) -> list[Client]:
    return [
        Client(DashScope()),
        Client(DashScope(), api_key="sk-1", limits=Limits(concurrency=3)),
        Client(DashScope(), api_key=["sk-1", "sk-2"], limits={"video": Limits(creates_per_minute=2.5)}),
        Client(DashScope(), limits=Limits(concurrency=math.inf, creates_per_minute=math.inf)),
        Client(Dieyuyun(), deadlines=Deadlines(waiting=60.0, queued=None), queries_per_second=10),
        Client(Dieyuyun(), ledger=MemoryLedger(), transport=transport),
        Client(Dieyuyun(), http_client=http_client),
        Client(Dieyuyun(), http_client=http_client_2, on_event=print),
        Client(Dieyuyun(), proxy="http://proxy.test:3128"),
        Client(DashScope(), pace=Pace(price=0.05, floor=2, cap=30.0)),
        Client(DashScope(), pace=Pace.fixed(1, 2, 3.0)),
        Client(DashScope(), save_to=Path("out"), downloads=Downloads(at_once=2, hosts=[".aliyuncs.com"])),
    ]


async def submitting(client: Client, request: Request, several: list[ImageRequest]) -> None:
    assert_type(await client.submit(request, ticket="order-7"), TaskHandle)
    assert_type(await client.run(request, timeout=60), Task)
    assert_type(await client.gather(*several), list[Task])
    assert_type(await client.gather(*several, return_exceptions=True), list[Task | BideError])
    assert_type(await client.attach("task_1", kind="video"), TaskHandle)


async def following(handle: TaskHandle, directory: Path) -> None:
    async for task in handle.events():
        assert_type(task, Task)
    assert_type(handle.ticket, str)
    assert_type(handle.task_id, str | None)
    assert_type(handle.request, ImageRequest | VideoRequest | RawRequest | None)
    assert_type(handle.task, Task)
    assert_type(await handle.accepted(timeout=5), Task)
    assert_type(await handle.result(timeout=5), Task)
    assert_type(await handle.refresh(), Task)
    assert_type(await handle.cancel(), bool)
    assert_type(await handle.save(directory), list[SavedFile])
    assert_type(await handle.save("out"), list[SavedFile])
    for file in await handle.save("out", output=0, overwrite=True):
        assert_type((file.path, file.size, file.sha256), tuple[str, int, str | None])


async def completing(
    client: Client, some: Iterable[VideoRequest], endless: AsyncIterator[ImageRequest]
) -> None:
    assert_type(client.as_completed(some), AsCompleted)
    async for handle in client.as_completed(endless, window=10):
        assert_type(handle, TaskHandle)


def reading(task: Task) -> None:
    assert_type(task.status, TaskStatus)
    assert_type(task.status.is_final, bool)
    assert_type(task.progress, float | None)
    assert_type(task.eta, float | None)
    assert_type(task.outputs, tuple[Output, ...])
    assert_type([output.url for output in task.outputs], list[str | None])
    assert_type(task.error, ErrorDetail | None)
    assert_type(task.billing, Billing)
    assert_type(Task.from_dict(task.to_dict()), Task)


async def failing(client: Client, request: Request) -> None:
    try:
        await client.run(request)
    except TaskFailedError as error:
        assert_type(error.task, Task | None)
        assert_type(error.retryable, bool | None)
    except SubmissionUnknownError as error:
        assert_type(error.request, ImageRequest | VideoRequest | RawRequest | None)
    except WaitTimeoutError as error:
        timeout: TimeoutError = error
        assert_type(str(timeout), str)
    except APIError as error:
        assert_type(error.status_code, int)
        assert_type(error.retry_after, float | None)
    except BideError as error:
        assert_type(error.task_id, str | None)


async def reporting(client: Client, task: Task) -> None:
    statistics = await client.statistics()
    assert_type(statistics.lanes, tuple[LaneStatistics, ...])
    assert_type(statistics.creates_429, int)
    assert_type((await client.attach("t")).as_curl(create=False), str)
    assert_type([Path(file) for file in await client.save(task, "out")], list[Path])
    await client.aclose(grace=1)


async def learning(ledger: MemoryLedger) -> None:
    for model in await ModelStatistics.of(ledger):
        assert_type(model, ModelStatistics)
        assert_type((model.name, model.tasks), tuple[str, int])
        assert_type(model.median, float | None)
        assert_type(model.p90, float | None)
        assert_type(model.lag, float | None)
        assert_type(model.problem, str | None)


def receiving(event: Event) -> None:
    assert_type(event.name, EventName)
    assert_type((event.output, event.bytes, event.total), tuple[int | None, int | None, int | None])
    assert_type(event.task, Task)
    assert_type(event.seconds, float | None)
    assert_type(event.error, BideError | None)
    assert_type(event.files, tuple[SavedFile, ...])


async def emulating() -> None:
    limits = ServiceLimits(concurrency={"video": 3}, queries_per_second=20)
    async with Emulator(
        image_seconds=(8, 12), video_seconds="lognormal:60:0.3", dieyuyun_limits=limits
    ) as emulator:
        emulator.fault(on="create", drop="after")
        assert_type(emulator.dashscope_url, str)
        async with Client(DashScope(base_url=emulator.dashscope_url), api_key="any") as client:
            assert_type(client, Client)
