"""The official SDK, `dashscope` 2.0.2 as it comes, against the emulator: what its users do works here too."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import dashscope
import pytest

from bide.emulator import Emulator, ServiceLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-official"


class EmulatorThread:
    """An emulator in a loop and a thread of its own, for the SDK's blocking classes and real clock."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Emulator:
        self._thread.start()
        assert self._ready.wait(10)
        return self._emulator

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        async with Emulator(**self._settings) as self._emulator:
            self._ready.set()
            await self._done.wait()


@pytest.fixture(autouse=True)
def never_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and a base URL where nobody answers: a call that a test forgot to redirect reaches no service."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(dashscope, "base_http_api_url", "http://127.0.0.1:9/api/v1")


@pytest.fixture
def emulator(never_live: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    settings = {"image_seconds": 0.4, "video_seconds": 0.4, "queue_seconds": 0.1}
    with EmulatorThread(**settings, dashscope_limits=ServiceLimits()) as running:
        monkeypatch.setattr(dashscope, "base_http_api_url", running.dashscope_url)
        yield running


@pytest.mark.real_time
def test_its_video_class_creates_fetches_waits_lists_and_cancels(emulator: Emulator) -> None:
    videos = dashscope.VideoSynthesis

    created = videos.async_call(model="wan2.2-t2v-plus", prompt="a kitten", api_key=KEY)
    fetched = videos.fetch(created, api_key=KEY)
    done = videos.wait(created, api_key=KEY)
    to_cancel = videos.async_call(
        model="wan2.2-t2v-plus", prompt="a kitten [queue 60] [seconds 60]", api_key=KEY
    )
    cancelled = videos.cancel(to_cancel, api_key=KEY)
    listed = videos.list(api_key=KEY)
    too_late = videos.cancel(created, api_key=KEY)

    assert (created.status_code, created.output.task_status) == (200, "PENDING")
    assert fetched.output.task_status in ("PENDING", "RUNNING")
    assert done.output.task_status == "SUCCEEDED"
    assert done.output.video_url.startswith(emulator.asset_url)
    assert done.usage.video_count == 1
    assert cancelled.status_code == 200
    assert videos.fetch(to_cancel, api_key=KEY).output.task_status == "CANCELED"
    assert [each["status"] for each in listed.output["data"]] == ["CANCELED", "SUCCEEDED"]
    assert (too_late.status_code, too_late.code) == (400, "UnsupportedOperation")


@pytest.mark.real_time
def test_its_image_class_creates_fetches_waits_lists_and_cancels(emulator: Emulator) -> None:
    images = dashscope.ImageSynthesis

    created = images.async_call(model="wan2.2-t2i-flash", prompt="a kitten", n=2, size="64*48", api_key=KEY)
    fetched = images.fetch(created, api_key=KEY)
    done = images.wait(created, api_key=KEY)
    to_cancel = images.async_call(
        model="wan2.2-t2i-flash", prompt="a cat [queue 60] [seconds 60]", api_key=KEY
    )
    cancelled = images.cancel(to_cancel, api_key=KEY)
    listed = images.list(api_key=KEY)
    failed = images.call(model="wan2.2-t2i-flash", prompt="a cat [fail DataInspectionFailed]", api_key=KEY)

    assert created.status_code == fetched.status_code == cancelled.status_code == 200
    assert done.output.task_status == "SUCCEEDED"
    assert [each.url.startswith(emulator.asset_url) for each in done.output.results] == [True, True]
    assert done.output.task_metrics["SUCCEEDED"] == done.usage.image_count == 2
    assert [each["task_id"] for each in listed.output["data"]] == [
        to_cancel.output.task_id,
        created.output.task_id,
    ]
    assert (failed.output.task_status, failed.output.code) == ("FAILED", "DataInspectionFailed")


@pytest.mark.real_time
def test_its_blocking_classes_understand_refusals(emulator: Emulator) -> None:
    refused = dashscope.VideoSynthesis.async_call(model="m", prompt="a cat [refuse Arrearage]", api_key=KEY)
    unknown = dashscope.VideoSynthesis.fetch("nothing", api_key=KEY)

    assert (refused.status_code, refused.code) == (400, "Arrearage")
    assert (unknown.status_code, unknown.output.task_status) == (200, "UNKNOWN")


async def test_its_asyncio_class_creates_fetches_waits_lists_and_cancels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dashscope.aigc.video_synthesis import AioVideoSynthesis as Videos
    from dashscope.api_entities.aio_session import close_shared_aio_session

    async with Emulator(video_seconds=60, queue_seconds=3) as emulator:
        monkeypatch.setattr(dashscope, "base_http_api_url", emulator.dashscope_url)
        created = await Videos.async_call(model="wan2.2-t2v-plus", prompt="a kitten", api_key=KEY)
        fetched = await Videos.fetch(created, api_key=KEY)
        done = await Videos.wait(created, api_key=KEY)
        to_cancel = await Videos.async_call(model="wan2.2-t2v-plus", prompt="another", api_key=KEY)
        cancelled = await Videos.cancel(to_cancel, api_key=KEY)
        listed = await Videos.list(api_key=KEY)
        await close_shared_aio_session()

    assert fetched.output.task_status == "PENDING"
    assert done.output.task_status == "SUCCEEDED"
    assert done.output.video_url.startswith(emulator.asset_url)
    assert cancelled.status_code == 200
    assert [each["status"] for each in listed.output["data"]] == ["CANCELED", "SUCCEEDED"]


async def test_its_second_generation_client_creates_fetches_waits_lists_and_cancels() -> None:
    from dashscope import AsyncClient

    async with (
        Emulator(video_seconds=60, image_seconds=20, queue_seconds=3) as emulator,
        AsyncClient(api_key=KEY, base_url=emulator.dashscope_url, max_retries=0) as client,
    ):
        created = await client.videos.jobs.create(model="wan2.6-t2v", prompt="a kitten")
        fetched = await client.videos.jobs.fetch(created.task_id)
        done = await client.videos.jobs.wait(created)
        image = await client.images.jobs.create(model="wan2.2-t2i-flash", prompt="a kitten", n=2)
        images = await client.images.jobs.wait(image)
        to_cancel = await client.videos.jobs.create(model="wan2.6-t2v", prompt="another")
        await client.videos.jobs.cancel(to_cancel.task_id)
        cancelled = await client.videos.jobs.fetch(to_cancel.task_id)
        listed = await client.videos.jobs.list()

    assert (created.status, fetched.status, done.status) == ("PENDING", "PENDING", "SUCCEEDED")
    assert done.video_url.startswith(emulator.asset_url)
    assert len(images.image_urls) == 2
    assert cancelled.status == "CANCELED"
    assert (listed.page_no, listed.total) == (1, 3)


async def test_its_second_generation_client_understands_refusals() -> None:
    from dashscope import AsyncClient
    from dashscope.v2.errors import DashScopeError

    async with (
        Emulator() as emulator,
        AsyncClient(api_key=KEY, base_url=emulator.dashscope_url, max_retries=0) as client,
    ):
        with pytest.raises(DashScopeError, match="Arrearage"):
            await client.videos.jobs.create(model="wan2.6-t2v", prompt="a cat [refuse Arrearage]")
        jobs = [await client.videos.jobs.create(model="wan2.6-t2v", prompt="a cat") for _ in range(3)]
        with pytest.raises(DashScopeError, match=r"Throttling\.Concurrency"):
            await client.videos.jobs.create(model="wan2.6-t2v", prompt="a cat")

    assert len({job.task_id for job in jobs}) == 3
    assert emulator.stats()["creates_429"] == 1
