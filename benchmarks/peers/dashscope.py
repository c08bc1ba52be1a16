"""`dashscope` 2.0.2 against bide's emulator: its classes, blocking (a thread for each job) and asyncio, and its client.

`call` of the classes creates once, polls at once, then every 1, 2, 4 and at last 5 s. A call answered 429 is not
repeated: a refused create is an error, and a refused poll ends the wait for a task that goes on and is paid for. The
client (`AsyncClient`) repeats a refused call twice.

The blocking `call` uses its `base_address` only for the create, and then polls the task at the address that is set for
the whole module. So that address is set here to the emulator, and before that to one where no server listens: whatever
a version of the SDK forgets, nothing is sent to the live service.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from peers.emulated import counts_of
from peers.race import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bide.emulator import Emulator

os.environ["DASHSCOPE_HTTP_BASE_URL"] = "http://127.0.0.1:9/api/v1"  # read when the SDK is imported

Kind = Literal["image", "video"]
MODELS = {"image": "wan2.2-t2i-flash", "video": "wan2.2-t2v-plus"}


@asynccontextmanager
async def in_threads(emulator: Emulator, kind: Kind, jobs: int) -> AsyncIterator[Entry]:
    """`VideoSynthesis.call` or `ImageSynthesis.call`, with as many threads as there are jobs."""
    import dashscope

    _quiet()
    synthesis: Any = {"image": dashscope.ImageSynthesis, "video": dashscope.VideoSynthesis}[kind]
    threads = ThreadPoolExecutor(jobs)
    async with emulator:
        dashscope.base_http_api_url = emulator.dashscope_url
        arguments = _arguments(kind)

        async def make(prompt: str) -> None:
            loop = asyncio.get_running_loop()
            _check(await loop.run_in_executor(threads, lambda: synthesis.call(prompt=prompt, **arguments)))

        yield Entry(make, lambda: counts_of(emulator, "dashscope"))
        threads.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def in_asyncio(emulator: Emulator, kind: Kind) -> AsyncIterator[Entry]:
    """`AioVideoSynthesis.call` or `AioImageSynthesis.call`."""
    from dashscope.aigc.image_synthesis import AioImageSynthesis
    from dashscope.aigc.video_synthesis import AioVideoSynthesis
    from dashscope.api_entities.aio_session import close_shared_aio_session

    _quiet()
    synthesis: Any = {"image": AioImageSynthesis, "video": AioVideoSynthesis}[kind]
    async with emulator:
        arguments = _arguments(kind) | {"base_address": emulator.dashscope_url}

        async def make(prompt: str) -> None:
            _check(await synthesis.call(prompt=prompt, **arguments))

        yield Entry(make, lambda: counts_of(emulator, "dashscope"))
        await close_shared_aio_session()


@asynccontextmanager
async def in_client(emulator: Emulator) -> AsyncIterator[Entry]:
    """`AsyncClient`, the second generation of its interface: `videos.jobs.create`, then `wait`."""
    from dashscope import AsyncClient

    _quiet()
    async with emulator, AsyncClient(api_key="sk-bench", base_url=emulator.dashscope_url) as client:

        async def make(prompt: str) -> None:
            job = await client.videos.jobs.create(model=MODELS["video"], prompt=prompt)
            if (await client.videos.jobs.wait(job)).status != "SUCCEEDED":
                raise RuntimeError("no result")

        yield Entry(make, lambda: counts_of(emulator, "dashscope"))


def _arguments(kind: Kind) -> dict[str, str]:
    return {"model": MODELS[kind], "api_key": "sk-bench"}


def _check(answer: Any) -> None:
    if answer.status_code != 200 or answer.output.task_status != "SUCCEEDED":
        raise RuntimeError(f"no result: {answer.status_code} {answer.code}")


def _quiet() -> None:
    logging.getLogger("dashscope").setLevel(logging.CRITICAL)
