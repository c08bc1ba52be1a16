"""A server of large files for the benchmarks, in a process of its own: only the kernel touches their bytes.

It answers `GET /200/anything` with a file of 200 MB that looks like a video and has an ETag, and continues where a
`Range` says. The bytes are in memory. It also acts as a DashScope where each task has succeeded, for clients that
poll one.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

MB = 1_000_000
LARGEST = 200 * MB
MEMORY = Path("/dev/shm")
FILE = re.compile(r"/(\d+)/\w+$")
RANGE = re.compile(r"bytes=(\d+)-$")
API = "/api/v1"
TASK = {
    "request_id": "4a6e9a5c-7c2b-9e1b-8f5b-3f6f5f1d2c11",
    "output": {"task_id": "task-1", "task_status": "SUCCEEDED", "video_url": "http://127.0.0.1/video.mp4"},
}
FIRST = (24).to_bytes(4, "big") + b"ftypisom" + bytes(4) + b"isommp42"


@contextmanager
def files() -> Iterator[str]:
    """The server, for as long as the block lasts; gives its origin."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _run(pipe: Connection) -> None:
    with tempfile.TemporaryFile(dir=MEMORY if MEMORY.is_dir() else None) as noise:
        piece = Random(6).randbytes(MB)  # no zeros: a disk may make a hole of them
        for _ in range(0, LARGEST, MB):
            noise.write(piece)
        noise.flush()
        with _Server(noise) as server:
            pipe.send(server.server_port)
            server.serve_forever()


class _Server(ThreadingHTTPServer):
    def __init__(self, noise: IO[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.noise = noise

    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """A task, or a file."""
        asked = FILE.match(self.path)
        if self.path.startswith(f"{API}/tasks/"):
            self._send_task()
        elif asked is None or int(asked[1]) * MB > LARGEST:
            self.send_error(404)
        else:
            self._send_file(int(asked[1]) * MB)

    def _send_task(self) -> None:
        body = json.dumps(TASK).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, size: int) -> None:
        """Send it from its begin, or from where one goes on."""
        tag = f'"{self.path}"'
        wanted = RANGE.match(self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.headers.get("If-Range", tag) == tag else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Type", "video/mp4")
        self.send_header("ETag", tag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        # Two boxes: a short one, and one that holds all the rest.
        begin = FIRST + (size - len(FIRST)).to_bytes(4, "big") + b"mdat"
        self.wfile.write(begin[start:])
        start = max(start, len(begin))
        if start < size:
            self.connection.sendfile(self.server.noise, start, size - start)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
