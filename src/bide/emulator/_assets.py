"""The origin that the result files come from: it knows signed URLs, and no key."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING

from bide.emulator._answers import Answer
from bide.emulator._media import mp4, png
from bide.emulator._tasks import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from bide.emulator._answers import Call
    from bide.emulator._clock import Clock
    from bide.emulator._tasks import EmulatedTask

_PATH = re.compile(r"/(\w+)/([^/]+)/(\d{1,3})\.(png|mp4)")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPES = {"png": "image/png", "mp4": "video/mp4"}


class Assets:
    """Makes the URLs of result files, and answers them.

    Args:
        find: the task of a service and an id, or None.
        url_seconds: how long a URL works, from the end of its task.
    """

    def __init__(
        self, find: Callable[[str, str], EmulatedTask | None], *, clock: Clock, url_seconds: float
    ) -> None:
        self.origin = ""
        self._find = find
        self._clock = clock
        self._url_seconds = url_seconds
        self._secret = secrets.token_bytes(16)

    def url(self, task: EmulatedTask, index: int) -> str:
        """The URL of a task's file; always the same one."""
        path = f"/{task.service}/{task.id}/{index}.{_extension(task)}"
        expires = int(self._clock.wall(min(task.expires, task.ended + self._url_seconds)))
        return f"{self.origin}{path}?Expires={expires}&Signature={self._signature(path, expires)}"

    def content(self, task: EmulatedTask, index: int) -> bytes:
        """A task's file."""
        text = f"{task.prompt}#{index}"
        if task.kind == "video":
            return mp4(text, task.file_bytes)
        return png(text, *task.work.size, task.file_bytes)

    def service_of(self, call: Call) -> str | None:
        """The service whose file a URL names."""
        match = _PATH.fullmatch(call.path)
        return match[1] if match else None

    def answer(self, call: Call) -> Answer:
        """GET or HEAD of a file."""
        if call.method not in ("GET", "HEAD"):
            return Answer.json({"code": "MethodNotAllowed"}, status=405, headers={"Allow": "GET, HEAD"})
        match = _PATH.fullmatch(call.path)
        task = self._find(match[1], match[2]) if match else None
        if match is None or task is None or match[4] != _extension(task):
            return Answer.json({"code": "NoSuchKey"}, status=404)
        if not self._is_valid(call) or task.phase(self._clock.now) is not Phase.SUCCEEDED:
            return Answer.json({"code": "AccessDenied", "message": "Request has expired."}, status=403)
        # Only files that were made have a signed URL, so the index needs no look.
        return _ranged(call, self.content(task, int(match[3])), _TYPES[match[4]])

    def _is_valid(self, call: Call) -> bool:
        expires = call.query.get("Expires", "")
        if not re.fullmatch(r"\d{1,12}", expires):
            return False
        signed = secrets.compare_digest(
            call.query.get("Signature", "").encode(), self._signature(call.path, int(expires)).encode()
        )
        return signed and self._clock.wall() < int(expires)

    def _signature(self, path: str, expires: int) -> str:
        return hashlib.sha256(self._secret + f"{path}?{expires}".encode()).hexdigest()[:32]


def _extension(task: EmulatedTask) -> str:
    return "mp4" if task.kind == "video" else "png"


def _ranged(call: Call, content: bytes, media_type: str) -> Answer:
    """The whole file, or the one range that is asked for (several are answered with the whole, as RFC 9110 allows)."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Content-Type": media_type, "ETag": tag, "Accept-Ranges": "bytes"}
    if call.headers.get("if-none-match") == tag:
        return Answer(304, b"", headers)
    match = _RANGE.fullmatch(call.headers.get("range", "").replace(" ", ""))
    if match is None or match[0] == "bytes=-" or call.headers.get("if-range", tag) != tag:
        return Answer(200, content, headers)
    span = _span(match[1], match[2], len(content))
    if span is None:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    start, stop = span
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return Answer(206, content[start:stop], headers)


def _span(first: str, last: str, length: int) -> tuple[int, int] | None:
    """From a range header's figures to a slice; None if no byte of the file is in it."""
    if not first:
        start, stop = max(0, length - int(last)), length
    else:
        start, stop = int(first), min(length, int(last) + 1) if last else length
    return (start, stop) if start < stop else None
