"""Writing to standard output and standard error without waiting for whoever reads there.

A pager that nobody scrolls stops the writer. The event loop must not stop with it: creates under way would run out of
time, and the ids of tasks that are paid for would be lost. So a thread writes, and nobody waits for its end.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TextIO


class Stream:
    """One of the two streams of the program.

    Raises:
        ValueError: whoever started the program has closed it.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        if stream is None:
            raise ValueError(f"{name} is closed: there is nowhere to write to")
        self._fd = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._queue: queue.SimpleQueue[tuple[bytes, Callable[[OSError | None], object]]] = queue.SimpleQueue()
        threading.Thread(target=self._write_all, name=f"bide {name}", daemon=True).start()

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at it."""
        return os.isatty(self._fd)

    def put(self, line: str) -> None:
        """Write *line* soon, and do not care whether that works."""
        self._queue.put((self._encoded(line), lambda _: None))

    async def write(self, line: str) -> None:
        """Write *line* and wait for that. What the stream cannot encode is escaped.

        Raises:
            OSError: nobody reads any more, or the disk is full.
        """
        loop = asyncio.get_running_loop()
        written: asyncio.Future[OSError | None] = loop.create_future()

        def settle(fault: OSError | None) -> None:
            if not written.done():
                written.set_result(fault)

        def tell(fault: OSError | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(settle, fault)

        self._queue.put((self._encoded(line), tell))
        fault = await written
        if fault is not None:
            raise fault

    def flush(self, timeout: float) -> None:
        """Wait until everything is written, for *timeout* seconds at most."""
        written = threading.Event()
        self._queue.put((b"", lambda _: written.set()))
        written.wait(timeout)

    def _encoded(self, line: str) -> bytes:
        return f"{line}\n".encode(self._encoding, "backslashreplace")

    def _write_all(self) -> None:
        while True:
            data, tell = self._queue.get()
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
                tell(None)
            except OSError as fault:
                tell(fault)


def show(lines: Iterable[str]) -> None:
    """Write *lines* to standard output, for as long as somebody reads there. What it cannot encode is escaped.

    Raises:
        ValueError: whoever started the program has closed it.
        OSError: the disk is full.
    """
    if sys.stdout is None:
        raise ValueError("standard output is closed: there is nowhere to write to")
    encoding = sys.stdout.encoding or "utf-8"
    data = "".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace")
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
