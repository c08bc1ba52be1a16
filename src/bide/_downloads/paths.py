"""Folders and places that a caller names, checked."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from bide._text import excerpt
from bide.errors import DownloadError


def folder_of(directory: str | os.PathLike[str]) -> Path:
    """*directory* as a path.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(directory, str | os.PathLike) or isinstance(os.fspath(directory), bytes):
        raise TypeError(f"directory must be a str or a path, not {excerpt(repr(directory), 60)}")
    if not str(directory) or "\0" in str(directory):
        raise ValueError(f"directory must name a folder, not {excerpt(repr(str(directory)), 60)}")
    return Path(directory)


def check_output(output: object) -> None:
    """Raise ValueError unless *output* can be a place among the outputs, or None for all of them."""
    if output is not None and (isinstance(output, bool) or not isinstance(output, int) or output < 0):
        raise ValueError(
            f"output must be a whole number, 0 for the first one, or None for all, not {output!r}"
        )


async def check_writable(folder: Path) -> None:
    """Make *folder* and try it out: before anything is bought whose result could not be saved.

    Raises:
        DownloadError: files cannot be written there.
    """
    try:
        await asyncio.to_thread(_try_out, folder)
    except OSError as fault:
        raise DownloadError(f"save_to: cannot write to {folder}: {fault}; nothing was sent") from None


def _try_out(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
