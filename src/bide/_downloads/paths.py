"""Folders and output numbers that a caller names, and paths of files."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from pathlib import Path

from bide._text import excerpt
from bide.errors import DownloadError


def folder_of(directory: str | os.PathLike[str]) -> Path:
    """*directory* as a path.

    Raises:
        TypeError, ValueError: it cannot name a folder.
    """
    if not isinstance(directory, str | os.PathLike) or isinstance(os.fspath(directory), bytes):
        raise TypeError(f"directory must be a str or a path, not {excerpt(repr(directory), 60)}")
    if not str(directory) or "\0" in str(directory):
        raise ValueError(f"directory must name a folder, not {excerpt(repr(str(directory)), 60)}")
    return Path(directory)


def check_output(output: object) -> None:
    """Raise ValueError unless *output* is the number of an output, from 0, or None for all outputs."""
    if output is not None and (isinstance(output, bool) or not isinstance(output, int) or output < 0):
        raise ValueError(
            f"output must be a whole number, 0 for the first one, or None for all, not {output!r}"
        )


def absolute(path: str | Path) -> str:
    """*path* as an absolute path. Links are kept, since their targets may change; ".." is resolved through them."""
    path = Path(path).absolute()
    return str(path.resolve() if ".." in path.parts else path)


def size_of(path: Path) -> int | None:
    """The size of a plain file in bytes; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


async def check_writable(folder: Path) -> None:
    """Make *folder* and write a test file there, before the client pays for a result that could not be saved.

    Raises:
        DownloadError: files cannot be written there.
    """
    try:
        await asyncio.to_thread(_write_test_file, folder)
    except OSError as fault:
        raise DownloadError(f"save_to: cannot write to {folder}: {fault}; nothing was sent") from None


def _write_test_file(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
