"""Reading prompts: from the command's arguments, a file of lines, or standard input."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

LINES_AHEAD = 10
"""Lines of standard input that are read before they are needed."""
MAX_LINE_CHARACTERS = 100_000


def read_prompts(words: Sequence[str], file: Path | None) -> tuple[AsyncIterator[str], int | None]:
    """The prompts, and their number (None: it is known only at their end).

    Raises:
        ValueError: there are none, or both *words* and *file* are given.
        OSError: *file* cannot be read.
    """
    if words and file is not None:
        raise ValueError("give prompts either as arguments or with --file, not both")
    blank = [word for word in words if not word.strip()]
    if blank:
        raise ValueError(f"a prompt is blank: {blank[0]!r}")
    if words:
        return _iterate(words), len(words)
    if file is not None and str(file) != "-":
        found = _read_lines(file)
        return _iterate(found), len(found)
    # sys.stdin is None if the program was started with standard input closed (a service, `<&-`).
    if sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise ValueError(
            "no prompts: give them as arguments, with --file FILE (one per line), or on standard input"
        )
    return _standard_input(), None


def _read_lines(file: Path) -> list[str]:
    """The lines of *file* that are not blank: the same lines that standard input would give."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{file} is not UTF-8 text: {fault}") from None
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise ValueError(f"{file} has no prompts: expected one per line")
    return found


async def _iterate(prompts: Sequence[str]) -> AsyncIterator[str]:
    for prompt in prompts:
        yield prompt


async def _standard_input() -> AsyncIterator[str]:
    """Lines of standard input. A daemon thread reads them, since the next line may never come.

    Raises:
        ValueError: it is not text, or has no lines.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | ValueError | None] = asyncio.Queue()
    room = threading.Semaphore(LINES_AHEAD)

    def read() -> None:
        with suppress(RuntimeError):  # the loop has ended, and no more lines are needed
            try:
                while line := sys.stdin.readline(MAX_LINE_CHARACTERS + 1):
                    if len(line) > MAX_LINE_CHARACTERS:
                        raise ValueError(f"a line has more than {MAX_LINE_CHARACTERS} characters")
                    room.acquire()
                    loop.call_soon_threadsafe(lines.put_nowait, line)
                loop.call_soon_threadsafe(lines.put_nowait, None)
            except ValueError as fault:
                error = ValueError(f"standard input cannot be read as text: {fault}")
                loop.call_soon_threadsafe(lines.put_nowait, error)

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
        raise ValueError("standard input has no prompts: expected one per line")
