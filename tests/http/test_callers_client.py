"""`http_client=`: an `httpx.AsyncClient` of the caller's and an `httpx2.AsyncClient` do the whole job alike."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from bide import (
    BideError,
    Client,
    Dieyuyun,
    SubmissionUnknownError,
    TaskStatus,
    TransportError,
    WaitTimeoutError,
)
from support.emulated import KEY, SERVICES, calls, client_at, emulator_with, image, truth, video
from support.scripted_server import cut, late, reply, serving

LIBRARIES = [httpx, httpx2]
library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda each: each.__name__)


@library
@pytest.mark.parametrize("service", SERVICES)
async def test_the_whole_job_goes_through_the_callers_client(
    service: str, library: Any, tmp_path: Path
) -> None:
    heads: list[Any] = []

    async def note(request: Any) -> None:
        heads.append(request)

    async with emulator_with(image_seconds=5) as emulator:
        async with library.AsyncClient(event_hooks={"request": [note]}) as mine:
            async with client_at(emulator, service, http_client=mine) as client:
                handle = await client.submit(image())
                files = await handle.save(tmp_path)

                assert (await handle.refresh()).status is TaskStatus.SUCCEEDED
                assert (await client.statistics()).connections == 0, "none is ours"
            assert not mine.is_closed
            asked = {request.method for request in heads}

        assert truth(emulator, handle.task_id).status
        assert asked == {"POST", "GET"}
        assert len(heads) == len(calls(emulator, "create")) + len(calls(emulator, "query"))
        assert Path(files[0].path).stat().st_size == files[0].size
        assert all("authorization" not in request.headers for request in calls(emulator, "asset"))


@library
async def test_a_create_that_may_have_arrived_is_not_sent_again_by_it(library: Any) -> None:
    async with emulator_with() as emulator:
        emulator.fault(on="create", drop="after")
        async with library.AsyncClient() as mine, client_at(emulator, "dieyuyun", http_client=mine) as client:
            with pytest.raises(SubmissionUnknownError):
                await client.run(image())

        assert len(calls(emulator, "create")) == 1


@library
async def test_a_create_that_was_certainly_not_sent_waits_and_goes_out_later(library: Any) -> None:
    async with emulator_with(image_seconds=1) as emulator, library.AsyncClient() as mine:
        port = await unused_port()
        nobody = Client(Dieyuyun(base_url=f"http://127.0.0.1:{port}/v1"), api_key=KEY, http_client=mine)
        async with nobody as client:
            with pytest.raises(TransportError, match="nothing was sent") as caught:
                await client.run(image())
        assert not caught.value.may_have_arrived

        async with client_at(emulator, http_client=mine) as client:
            assert (await client.run(image())).status is TaskStatus.SUCCEEDED


@library
async def test_a_look_that_breaks_off_or_hangs_is_made_again(library: Any) -> None:
    running = reply(b'{"task_id": "t", "status": "processing"}')
    done = reply(b'{"task_id": "t", "status": "completed", "data": [{"url": "https://files.example/a.png"}]}')
    half = cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    async with serving([cut(), half, late(1000), running, done]) as server:
        async with library.AsyncClient() as mine:
            async with Client(Dieyuyun(base_url=server.url), api_key=KEY, http_client=mine) as client:
                handle = await client.attach("t")
                try:
                    task = await handle.result(timeout=600)
                except WaitTimeoutError as error:
                    raise AssertionError(str(error)) from None

    assert task.status is TaskStatus.SUCCEEDED


@library
async def test_its_errors_are_told_by_name_and_without_the_key(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving([cut()]) as server, library.AsyncClient() as mine:
        async with Client(Dieyuyun(base_url=server.url), api_key=KEY, http_client=mine) as client:
            handle = await client.attach("t")
            with (
                caplog.at_level(logging.DEBUG),
                pytest.raises(BideError, match="RemoteProtocolError") as caught,
            ):
                await handle.refresh()

    assert caught.value.__cause__ is None
    assert KEY not in caplog.text + repr(caught.value)


@library
async def test_ten_requests_at_once_are_all_that_it_carries(library: Any) -> None:
    async with emulator_with(video_seconds=60) as emulator, library.AsyncClient() as mine:
        emulator.fault(on="query", times=10**6, delay=1.0)
        most = 0
        async with client_at(emulator, "dieyuyun", http_client=mine) as client:
            handles = [await client.submit(video(str(number))) for number in range(40)]
            await asyncio.gather(*(handle.accepted() for handle in handles))
            for _ in range(200):
                await asyncio.sleep(0.1)
                under_way = [task for task in asyncio.all_tasks() if task.get_name().startswith("bide poll")]
                most = max(most, len(under_way))
            await asyncio.gather(*(handle.result() for handle in handles))

        assert 2 <= most <= 10
        assert emulator.stats()["creates"] == 40


@library
def test_a_blocking_client_is_refused_with_words(library: Any) -> None:
    with (
        library.Client() as blocking,
        pytest.raises(TypeError, match=r"must be an httpx\.AsyncClient, not Client"),
    ):
        Client(Dieyuyun(), api_key=KEY, http_client=blocking)


async def unused_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
