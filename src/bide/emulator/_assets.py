"""The origin of the result files: it checks signed URLs, and needs no key."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bide.emulator._answers import Answer
from bide.emulator._faults import RandomCuts, mislead
from bide.emulator._files import FileSlice, mp4, png
from bide.emulator._tasks import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from bide.emulator._answers import Call
    from bide.emulator._faults import Fault
    from bide.emulator._files import ResultFile
    from bide.emulator._settings import Clock, Settings
    from bide.emulator._tasks import EmulatedTask

_PATH = re.compile(r"/(\w+)/([^/]+)/(\d{1,3})\.(png|mp4)")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MAX_INLINE_BYTES = 100_000_000
"""The largest filler of a file inside JSON. A file at a URL of its own may be larger."""


class Assets:
    """Makes the URLs of result files, and answers the requests for them.

    Args:
        find: returns the task of a service and an id, or None.
        settings: how long a URL works, whether that time starts at the task's end or (fresh URLs) at each poll, and how
            many answers break off.
    """

    def __init__(
        self, find: Callable[[str, str], EmulatedTask | None], *, clock: Clock, settings: Settings
    ) -> None:
        self.origin = ""
        self._find = find
        self._clock = clock
        self._settings = settings
        self._secret = secrets.token_bytes(16)
        self._fresh_urls_made = 0
        self.reset()

    def reset(self) -> None:
        """Forget which files have changed, and start the random cuts again."""
        self._changes: dict[str, _Change] = {}
        self._cuts = RandomCuts(self._settings.cut_share, self._settings.seed)

    def url(self, task: EmulatedTask, index: int) -> str:
        """The URL of a task's file: always the same, or with the setting `fresh_urls` a new one."""
        path = f"/{task.service}/{task.id}/{index}.{_extension(task)}"
        start, nonce = task.ended, ""
        if self._settings.fresh_urls:
            self._fresh_urls_made += 1
            start, nonce = max(start, self._clock.now), str(self._fresh_urls_made)
        expires = int(self._clock.wall(min(task.expires, start + self._settings.url_seconds)))
        query = f"?Expires={expires}" + (f"&Nonce={nonce}" if nonce else "")
        return f"{self.origin}{path}{query}&Signature={self._signature(path, expires, nonce)}"

    def content(self, task: EmulatedTask, index: int) -> bytes:
        """A task's file as bytes, with at most 100 MB of filler since it is in memory."""
        smaller = replace(task, file_bytes=min(task.file_bytes, _MAX_INLINE_BYTES))
        file = self._file(smaller, f"{task.prompt}#{index}")
        return b"".join(file.pieces(0, len(file)))

    def change(self, call: Call) -> None:
        """Replace the file that *call* asks for with another one."""
        match = _PATH.fullmatch(call.path)
        task = self._find(match[1], match[2]) if match else None
        if task is None:
            return
        known = self._changes.get(call.path) or _Change(0, task.ended)
        # Two versions of a file never have the same second, so their dates differ.
        self._changes[call.path] = _Change(known.number + 1, max(self._clock.now, known.moment + 1))

    def service_of(self, call: Call) -> str | None:
        """The service whose file a URL names."""
        match = _PATH.fullmatch(call.path)
        return match[1] if match else None

    def answer(self, call: Call, fault: Fault | None = None) -> Answer:
        """Answer GET or HEAD of a file, with the *fault* if one is ordered."""
        own = self._own(call, fault)
        return own if fault is None else mislead(call, own, fault, self.origin)

    def random_cut(self, call: Call, answer: Answer | None) -> int | None:
        """After how many bytes an answer breaks off by chance; None if it does not."""
        if call.method != "GET" or answer is None or answer.file is None:
            return None
        return self._cuts.place(answer.length)

    def _own(self, call: Call, fault: Fault | None) -> Answer:
        if call.method not in ("GET", "HEAD"):
            return Answer.json({"code": "MethodNotAllowed"}, status=405, headers={"Allow": "GET, HEAD"})
        match = _PATH.fullmatch(call.path)
        task = self._find(match[1], match[2]) if match else None
        if match is None or task is None or match[4] != _extension(task):
            return Answer.json({"code": "NoSuchKey"}, status=404)
        if not self._is_valid(call) or task.phase(self._clock.now) is not Phase.SUCCEEDED:
            return Answer.json({"code": "AccessDenied", "message": "Request has expired."}, status=403)
        # Only existing files have a signed URL, so the index needs no check.
        change = self._changes.get(call.path)
        text = f"{task.prompt}#{match[3]}" + (f"#{change.number}" if change else "")
        file = self._file(task, text)
        modified = self._clock.date(change.moment if change else task.ended)
        ranged = fault is None or not (fault.unranged or fault.bomb)
        return _file_answer(call, file, _validators(file, modified, fault), ranged=ranged)

    @staticmethod
    def _file(task: EmulatedTask, text: str) -> ResultFile:
        if task.kind == "video":
            return mp4(text, task.file_bytes)
        return png(text, *task.work.size, task.file_bytes)

    def _is_valid(self, call: Call) -> bool:
        expires = call.query.get("Expires", "")
        if not re.fullmatch(r"\d{1,12}", expires):
            return False
        due = self._signature(call.path, int(expires), call.query.get("Nonce", ""))
        signed = secrets.compare_digest(call.query.get("Signature", "").encode(), due.encode())
        return signed and self._clock.wall() < int(expires)

    def _signature(self, path: str, expires: int, nonce: str) -> str:
        return hashlib.sha256(self._secret + f"{path}?{expires}&{nonce}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Change:
    """How often a file has changed since its task ended, and when it changed last."""

    number: int
    moment: float


def _extension(task: EmulatedTask) -> str:
    return "mp4" if task.kind == "video" else "png"


def _validators(file: ResultFile, modified: str, fault: Fault | None) -> dict[str, str]:
    """The headers by which a client recognizes this file."""
    kind = fault.validator if fault else None
    if kind == "none":
        return {}
    tags = {"weak": {"ETag": f'W/"{file.digest}"'}, "last-modified": {}}
    return {**tags.get(kind or "", {"ETag": f'"{file.digest}"'}), "Last-Modified": modified}


def _file_answer(call: Call, file: ResultFile, validators: dict[str, str], *, ranged: bool) -> Answer:
    """The whole file, or the one range in the request. For several ranges it is the whole file, as RFC 9110 allows."""
    headers = {"Content-Type": file.media_type, **validators}
    if ranged:
        headers["Accept-Ranges"] = "bytes"
    if "ETag" in validators and call.headers.get("if-none-match") == validators["ETag"]:
        return Answer(304, b"", headers)
    match = _RANGE.fullmatch(call.headers.get("range", "").replace(" ", ""))
    if not ranged or match is None or match[0] == "bytes=-" or not _matches_if_range(call, validators):
        return Answer(200, b"", headers, file=FileSlice(file))
    bounds = _slice_bounds(match[1], match[2], len(file))
    if bounds is None:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(file)}"})
    start, stop = bounds
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(file)}"
    return Answer(206, b"", headers, file=FileSlice(file, start, stop))


def _matches_if_range(call: Call, validators: dict[str, str]) -> bool:
    """Whether `If-Range` allows a range (RFC 9110, 13.1.5): a strong tag or a date, equal to that of the file."""
    known = call.headers.get("if-range")
    return known is None or (not known.startswith("W/") and known in validators.values())


def _slice_bounds(first: str, last: str, length: int) -> tuple[int, int] | None:
    """Start and stop of a range, from the numbers in its header; None if the file has no byte in that range."""
    if not first:
        start, stop = max(0, length - int(last)), length
    else:
        start, stop = int(first), min(length, int(last) + 1) if last else length
    return (start, stop) if start < stop else None
