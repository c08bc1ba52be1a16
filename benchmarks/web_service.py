"""The example of a web service under a burst: how long fifty posts at once wait for their answers.

`examples/fastapi_app.py` runs under uvicorn in a process of its own, at an emulator whose videos take ten minutes:
three slots are busy, and none comes free. The time counts from when all posts are sent to the last answer. What else
the machine does can only add to it, so the best of a few bursts is the service's own. The last row is the emulator's:
the time for five hundred creates, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from bide.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
from goals import Row, arguments, show

EXAMPLES = Path(__file__).parents[1] / "examples"
POSTS, BURSTS, CREATES = 50, 5, 500
SERVED = re.compile(rb"http://127\.0\.0\.1:(\d+)")


@asynccontextmanager
async def serving(emulator: Emulator) -> AsyncIterator[int]:
    """The example at *emulator*; the port that it listens at."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "DASHSCOPE_API_KEY": "sk-benchmark",
            "DASHSCOPE_BASE_URL": emulator.dashscope_url,
            "LEDGER": str(Path(folder) / "videos.db"),
            "NO_PROXY": "127.0.0.1",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app", "--port", "0"),
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            served = SERVED.search(await process.stderr.readuntil(b"Press CTRL+C"))
            assert served is not None
            yield int(served[1])
        finally:
            process.kill()
            await process.communicate()


async def burst(port: int) -> list[float]:
    """Post videos at once; the seconds until each answer.

    On connections that are open, and without an HTTP client: fifty requests of one would measure that.
    """
    body = b'{"prompt": "a boat"}'
    fields = f"Host: site\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    request = f"POST /videos HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(POSTS)]
    began = time.perf_counter()

    async def answered(reader: asyncio.StreamReader) -> float:
        assert await reader.readline() == b"HTTP/1.1 202 Accepted\r\n"
        return time.perf_counter() - began

    for _, writer in connections:
        writer.write(request)
    seconds = await asyncio.gather(*(answered(reader) for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    return seconds


async def created() -> float:
    """Seconds for five hundred creates at an emulator, whose tasks all go on."""
    body = {"model": "gpt-image-2", "prompt": "a boat", "async": True}
    async with Emulator(image_seconds=600) as emulator, httpx.AsyncClient(trust_env=False) as caller:
        began = time.perf_counter()
        for _ in range(CREATES):
            answer = await caller.post(
                f"{emulator.dieyuyun_url}/v1/images/generations",
                json=body,
                headers={"Authorization": "Bearer sk-benchmark"},
            )
            answer.raise_for_status()
        return time.perf_counter() - began


async def main() -> list[Row]:
    async with Emulator(video_seconds=600) as emulator, serving(emulator) as port:
        slowest = [max(await burst(port)) for _ in range(BURSTS)]
        creates = emulator.stats()["creates"]
    best = min(slowest)
    emulated = await created()
    return [
        Row("fifty posts at once", "last answer, best of 5, s", best, "at most 0.1", best <= 0.1),
        Row("fifty posts at once", "last answer, worst of 5, s", max(slowest)),
        Row("fifty posts at once", "creates meanwhile", creates, "at most 3", creates <= 3),
        Row("emulator", "500 creates in a row, s", emulated, "at most 5", emulated <= 5),
    ]


if __name__ == "__main__":
    options = arguments(__doc__)
    show("A web service under a burst", asyncio.run(main()), options)
