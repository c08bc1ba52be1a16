"""A tiny DashScope for the benchmarks, in a process of its own, so that its CPU is not counted with the client's.

It answers the status queries of that service (`GET /api/v1/tasks/{id}`), without limits: RUNNING for the first
`polls - 1` polls of a task and SUCCEEDED for the last one. It counts polls, tasks and connections.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

TASK = re.compile(rb"GET \S*/tasks/(\S+) ")
OPEN_TASK = {
    "request_id": "4a6e9a5c-7c2b-9e1b-8f5b-3f6f5f1d2c11",
    "output": {"task_id": "", "task_status": "RUNNING", "submit_time": "2026-01-05 10:00:00.000"},
}
FRAME = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"


class Service:
    """What the other process is asked through a pipe."""

    def __init__(self, pipe: Connection, port: int) -> None:
        self._pipe = pipe
        self.origin = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.origin}/api/v1"

    def ask(self, **settings: Any) -> dict[str, Any]:
        """Begin to count anew with these settings (`delay` in seconds, `polls`); returns what was counted so far."""
        self._pipe.send(settings)
        return dict(self._pipe.recv())


@contextmanager
def service() -> Iterator[Service]:
    """The service, for as long as the block lasts."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Service(ours, ours.recv())
    finally:
        process.terminate()
        process.join()


def _run(pipe: Connection) -> None:
    asyncio.run(_Server(pipe).run())


class _Server:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._delay = 0.0
        self._polls = 10**9
        self._seen: dict[bytes, list[float]] = {}
        self._connections = 0

    async def run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=8192)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._asked)
        self._pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    def _asked(self) -> None:
        settings = self._pipe.recv()
        counted = {
            "polls": sum(map(len, self._seen.values())),
            "tasks": len(self._seen),
            "connections": self._connections,
            "moments": {name.decode(): moments for name, moments in self._seen.items()},
        }
        self._delay = settings.get("delay", self._delay)
        self._polls = settings.get("polls", self._polls)
        self._seen = {}
        self._connections = 0
        self._pipe.send(counted)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                answer = self._answer(head)
                if self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        asked = TASK.match(head)
        name = asked[1] if asked else b""
        moments = self._seen.setdefault(name, [])
        moments.append(time.time())
        output = OPEN_TASK["output"] | {"task_id": name.decode()}
        if len(moments) >= self._polls:
            output |= {"task_status": "SUCCEEDED", "video_url": "http://127.0.0.1/video.mp4"}
        body = json.dumps(OPEN_TASK | {"output": output})
        return FRAME.format(len(body), body).encode()
