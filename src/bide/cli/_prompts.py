"""Where prompts come from: the command's words, a file of lines, or standard input."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

AHEAD = 10
"""Lines that are read before anybody asks for them."""
LONGEST = 100_000
"""Characters of a line."""


def prompts_from(words: Sequence[str], file: Path | None) -> tuple[AsyncIterator[str], int | None]:
    """The prompts, and how many there are (None: that is not known before their end).

    Raises:
        ValueError: there are none, or they are given twice.
        OSError: *file* cannot be read.
    """
    if words and file is not None:
        raise ValueError("give prompts either as arguments or with --file, not both")
    blank = [word for word in words if not word.strip()]
    if blank:
        raise ValueError(f"a prompt is blank: {blank[0]!r}")
    if words:
        return _of(words), len(words)
    if file is not None and str(file) != "-":
        found = _lines_of(file)
        return _of(found), len(found)
    # Where the caller has closed standard input (a service, `<&-`), Python has None in its place.
    if sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise ValueError(
            "no prompts: give them as arguments, with --file FILE (one a line), or on standard input"
        )
    return _standard_input(), None


def _lines_of(file: Path) -> list[str]:
    """The lines of *file* that are not blank: those that standard input would have."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{file} is no UTF-8 text: {fault}") from None
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise ValueError(f"{file} has no prompts: expected one a line")
    return found


async def _of(prompts: Sequence[str]) -> AsyncIterator[str]:
    for prompt in prompts:
        yield prompt


async def _standard_input() -> AsyncIterator[str]:
    """Lines of standard input, read by a thread that nobody has to wait for: it may never get another line.

    Raises:
        ValueError: it is no text, or has no line.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | ValueError | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD)

    def read() -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody wants more
            try:
                while line := sys.stdin.readline(LONGEST + 1):
                    if len(line) > LONGEST:
                        raise ValueError(f"a line has more than {LONGEST} characters")
                    room.acquire()
                    loop.call_soon_threadsafe(lines.put_nowait, line)
                loop.call_soon_threadsafe(lines.put_nowait, None)
            except ValueError as fault:
                told = ValueError(f"standard input cannot be read as text: {fault}")
                loop.call_soon_threadsafe(lines.put_nowait, told)

    threading.Thread(target=read, name="bide prompts", daemon=True).start()
    found = False
    while (line := await lines.get()) is not None:
        if isinstance(line, ValueError):
            raise line
        room.release()
        prompt = line.removeprefix("\ufeff").strip()
        if prompt:
            found = True
            yield prompt
    if not found:
        raise ValueError("standard input has no prompts: expected one a line")
