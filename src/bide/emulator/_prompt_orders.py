"""Magic words in a prompt that order what happens to its task; the emulator's docstring lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"\[(fail|part|status|seconds|queue|expire|refuse|bytes)(?:\s+([^\]]*?))?\s*\]")
_MOST_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Orders:
    """What a prompt orders. Where it orders nothing (None or False), the emulator's settings apply.

    Attributes:
        fails: the task ends as failed, with `failure_code` (None: the service gives no code).
        failed_parts: how many of the task's files fail (always fewer than all).
        status_word: the status word while the task runs.
        seconds: from the create to the end (`speed` does not divide them).
        queue_seconds: how many of these seconds the task is in the service's queue.
        expire_seconds: how long after its end the service forgets the task.
        refusal_code: the create is refused with this code.
        file_bytes: the minimum size of each file.
    """

    fails: bool = False
    failure_code: str | None = None
    failed_parts: int = 0
    status_word: str | None = None
    seconds: float | None = None
    queue_seconds: float | None = None
    expire_seconds: float | None = None
    refusal_code: str | None = None
    file_bytes: int = 0


def orders_in(prompt: str) -> Orders:
    """The orders in a *prompt*. A word with an argument that makes no sense is plain text."""
    words = dict(_WORD.findall(prompt))
    return Orders(
        fails="fail" in words,
        failure_code=words.get("fail") or None,
        failed_parts=int(_number(words["part"]) or 1) if "part" in words else 0,
        status_word=words.get("status") or None,
        seconds=_number(words.get("seconds")),
        queue_seconds=_number(words.get("queue")),
        expire_seconds=_number(words.get("expire")),
        refusal_code=words.get("refuse") or None,
        file_bytes=min(int(_number(words.get("bytes")) or 0), _MOST_BYTES),
    )


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text):
        return None
    return float(text)
