"""Bringing results home: each file is streamed to a part file and renamed when it is whole."""

from __future__ import annotations

import asyncio
import base64
import os
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import uuid4

import anyio

from bide._transport import without_query
from bide.errors import DownloadError
from bide.models import SavedFile, TaskStatus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from bide._transport import Transport
    from bide.models import Output, Task

AT_ONCE = 4
"""Files of one call that are fetched at the same time."""
PIECE = 2**20
"""Bytes that are gathered for one write: each is a hop to a thread."""
SLICE = 64 * 1024
"""Characters of base64 that are decoded in one go: it holds up the event loop. A multiple of 4."""

_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
)
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "application/json": "json",
}


async def save(transport: Transport, task: Task, directory: str | os.PathLike[str]) -> list[SavedFile]:
    """Write the files of *task* to *directory* as `{ticket}-{index}.{ext}`. Parts that failed are left out.

    Raises:
        DownloadError: a file could not be fetched or written. Files that are whole by then stay.
        ValueError: the task has no results, or its ticket cannot name a file.
    """
    if task.status is not TaskStatus.SUCCEEDED:
        raise ValueError(
            f"nothing to save: {task.task_id or task.ticket} is {task.status}, not succeeded: await handle.result()"
        )
    folder = Path(directory)
    if not task.ticket or Path(task.ticket).name != task.ticket or "\0" in task.ticket:
        raise ValueError(f"the ticket {task.ticket!r} cannot name a file")
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, output: Output) -> SavedFile:
        async with gate:
            return await _save_one(transport, output, folder, f"{task.ticket}-{index}")

    saves: list[asyncio.Task[SavedFile]] = []
    try:
        await _in_thread(partial(folder.mkdir, parents=True, exist_ok=True))
        saves = [
            asyncio.create_task(one(i, output))
            for i, output in enumerate(task.outputs)
            if output.error is None
        ]
        return list(await asyncio.gather(*saves))
    except DownloadError as fault:
        raise fault.about(ticket=task.ticket, task_id=task.task_id) from None
    except OSError as fault:
        raise DownloadError(
            f"cannot write to {folder}: {fault}; the result is still at the service",
            ticket=task.ticket,
            task_id=task.task_id,
        ) from None
    finally:
        for each in saves:
            each.cancel()
        await asyncio.gather(*saves, return_exceptions=True)


async def _save_one(transport: Transport, output: Output, folder: Path, stem: str) -> SavedFile:
    """Save one output; the part file never outlives a failure."""
    part = folder / f".{stem}.{uuid4().hex}.part"
    try:
        if output.data is not None:
            async with aclosing(_decoded(output.data)) as chunks:
                size, media_type = await _write(part, chunks)
        elif output.url is not None:
            size, media_type = await _fetch(transport, output, part)
        else:
            raise DownloadError(f"output {stem} has neither a URL nor data")
        media_type = media_type or output.media_type
        target = folder / f"{stem}.{_EXTENSIONS.get(media_type or '', 'bin')}"
        await _in_thread(partial(part.replace, target))
        return SavedFile(str(target), size, media_type)
    finally:
        with suppress(OSError):
            part.unlink()


async def _fetch(transport: Transport, output: Output, part: Path) -> tuple[int, str | None]:
    url = output.url or ""
    place = without_query(url)
    async with transport.download(url) as download:
        if download.status != 200:
            raise DownloadError(
                f"{place} answered HTTP {download.status}: {_advice(download.status, output)}"
            )
        declared = download.headers.get("content-type", "").partition(";")[0].strip().lower()
        if declared in ("text/html", "application/json") and output.kind in ("image", "video", "audio"):
            raise DownloadError(f"{place} answered with {declared} and not with the {output.kind}")
        size, media_type = await _write(part, download.chunks)
        length = download.headers.get("content-length", "")
        if length.isdecimal() and int(length) != size:
            raise DownloadError(f"{place} broke off: {size} of {length} bytes came; save again")
    return size, media_type or declared or None


def _advice(status: int, output: Output) -> str:
    if status in (401, 403, 404, 410):
        until = f" (this one until {output.expires_at:%Y-%m-%d %H:%M} UTC)" if output.expires_at else ""
        return (
            f"results are kept for a limited time{until}; client.attach(task_id) asks for a fresh address, while the "
            f"service keeps the result"
        )
    return "the file server has a problem; the result is still there: save again"


async def _write(part: Path, chunks: AsyncIterator[bytes]) -> tuple[int, str | None]:
    """Write *chunks* to *part*, on disk when this returns. Returns the size and the media type that it shows."""
    size, media_type = 0, None
    file = part.open("xb")  # not in a thread: a cancel would lose the open file
    try:
        piece = bytearray()
        async for chunk in chunks:
            piece += chunk
            if len(piece) >= PIECE:
                media_type = media_type if size else _magic(piece)
                size += len(piece)
                await _in_thread(partial(file.write, piece))
                piece = bytearray()
        media_type = media_type if size else _magic(piece)
        size += len(piece)
        if not size:
            raise DownloadError("the result is empty: no byte came")
        await _in_thread(partial(_finish, file, piece))
    finally:
        await _in_thread(file.close)
    return size, media_type


def _finish(file: BinaryIO, piece: bytearray) -> None:
    file.write(piece)
    file.flush()
    os.fsync(file.fileno())


async def _in_thread(work: Callable[[], object]) -> None:
    """Do *work* in a thread. A cancel waits for its end: it must not write, or hold a file, behind our back."""
    job = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(job)
    except asyncio.CancelledError:
        while not job.done():
            # anyio cancels again at each await, asyncio as often as it is asked to.
            with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
                await asyncio.wait([job])
        job.exception()  # nobody asks for it any more
        raise


async def _decoded(data: str) -> AsyncGenerator[bytes]:
    """*data* from base64, slice by slice, so that the event loop goes on between."""
    if data.startswith("data:"):
        data = data.partition(",")[2]
    rest = ""
    for start in range(0, len(data), SLICE):
        text = rest + "".join(data[start : start + SLICE].split())
        cut = len(text) - len(text) % 4
        rest = text[cut:]
        try:
            yield base64.b64decode(text[:cut], validate=True)
        except ValueError as fault:
            raise DownloadError(f"the inline result is not base64: {fault}") from None
        await asyncio.sleep(0)
    if rest:
        raise DownloadError("the inline result is not base64: it is cut off")


def _magic(begin: bytes | bytearray) -> str | None:
    """The media type that a file's first bytes show."""
    return next((kind for at, magic, kind in _MAGIC if begin[at : at + len(magic)] == magic), None)
