"""Writing to standard output and standard error so that a slow reader does not stop the event loop.

A pager blocks the writer while its user does not scroll. If that stopped the event loop, creates under way would time
out, and the ids of tasks that are paid for would be lost. So a thread writes, and the loop does not wait for it to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TextIO

FLUSH_SECONDS = 3.0
"""Seconds that a reader has to take the rest of the text when the program ends."""


class Stream:
    """Standard output or standard error of the program.

    Raises:
        ValueError: the program was started with this stream closed.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        if stream is None:
            raise ValueError(f"{name} is closed: the command cannot write to it")
        self._fd = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._queue: queue.SimpleQueue[tuple[bytes, Callable[[OSError | None], object]]] = queue.SimpleQueue()
        threading.Thread(target=self._write_all, name=f"bide {name}", daemon=True).start()

    @property
    def is_terminal(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._fd)

    def put(self, line: str) -> None:
        """Write *line* soon, and ignore errors."""
        self._queue.put((self._encode(line), lambda _: None))

    async def write(self, line: str) -> None:
        """Write *line* and wait until it is written. Characters outside the stream's encoding are escaped.

        Raises:
            OSError: the reader has closed the stream, or the disk is full.
        """
        loop = asyncio.get_running_loop()
        written: asyncio.Future[OSError | None] = loop.create_future()

        def set_result(fault: OSError | None) -> None:
            if not written.done():
                written.set_result(fault)

        def report(fault: OSError | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nothing waits for the result any more
                loop.call_soon_threadsafe(set_result, fault)

        self._queue.put((self._encode(line), report))
        fault = await written
        if fault is not None:
            raise fault

    def flush(self, timeout: float = FLUSH_SECONDS) -> None:
        """Wait until everything is written, at most *timeout* seconds."""
        written = threading.Event()
        self._queue.put((b"", lambda _: written.set()))
        written.wait(timeout)

    def _encode(self, line: str) -> bytes:
        return f"{line}\n".encode(self._encoding, "backslashreplace")

    def _write_all(self) -> None:
        while True:
            data, report = self._queue.get()
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
                report(None)
            except OSError as fault:
                report(fault)


def print_lines(lines: Iterable[str]) -> None:
    """Write *lines* to standard output until its reader closes it. Characters outside its encoding are escaped.

    Raises:
        ValueError: the program was started with standard output closed.
        OSError: the disk is full.
    """
    if sys.stdout is None:
        raise ValueError("standard output is closed: the command cannot write to it")
    encoding = sys.stdout.encoding or "utf-8"
    data = "".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace")
    with suppress(BrokenPipeError):
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]


def silence_log() -> None:
    """Do not print the library's log, unless $BIDE_LOG asks for it: the command itself reports what matters."""
    if not os.environ.get("BIDE_LOG"):
        logging.getLogger("bide").addHandler(logging.NullHandler())


# Text for one line -------------------------------------------------------------------------------------------


def one_line(text: str, width: int = 500) -> str:
    """*text* on one line of at most *width* characters. Characters that could control a terminal are escaped.

    It is for text that others wrote: prompts, ids, and the messages of services.
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: width + 1])
    return safe if len(safe) <= width else safe[: width - 1] + "…"


_SIZE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TIME_UNITS = ((48 * 3600, 86400, "d"), (100 * 60, 3600, "h"), (100, 60, "min"), (0, 1, "s"))
"""From how many seconds a unit is used, its seconds, and its name."""


def size_text(size: int, total: int | None = None) -> str:
    """*size* bytes, such as "3.2 MB"; with a *total* as "3.2/10.0 MB"."""
    unit, name = next((each for each in _SIZE_UNITS if (total or size) >= each[0]), _SIZE_UNITS[-1])
    return f"{size / unit:.1f}" + (f"/{total / unit:.1f}" if total else "") + f" {name}"


def duration_text(seconds: float) -> str:
    """*seconds* in one rounded figure, such as "90 s" or "5 h"."""
    unit, name = next((unit, name) for least, unit, name in _TIME_UNITS if seconds >= least)
    return f"{seconds / unit:.0f} {name}"
