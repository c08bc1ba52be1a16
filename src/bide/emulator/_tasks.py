"""A task as the service knows it. Its state is a function of time: nothing runs, nothing ticks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(Enum):
    """Where a task stands, in words of neither service."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_open(self) -> bool:
        """Whether the task is still in flight."""
        return self in (Phase.QUEUED, Phase.RUNNING)


@dataclass(frozen=True)
class Work:
    """What a create call asks for, whichever service it went to.

    Attributes:
        kind: `"image"` or `"video"`.
        files: how many files are asked for.
        size: width and height in pixels, of images.
        form: how the service shapes the results (a word of the service's own).
        body: the create call's JSON as it came.
    """

    kind: str
    model: str
    prompt: str
    files: int
    size: tuple[int, int]
    form: str
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Failure:
    """Why a task fails; `code` None is a service that does not say."""

    code: str | None
    message: str


@dataclass(frozen=True)
class EmulatedTask:
    """The truth about one task, for tests and benchmarks to compare a client's view with.

    Attributes:
        id: the service's id.
        service: `"dieyuyun"` or `"dashscope"`.
        work: what the create call asked for; `kind`, `model`, `prompt` and `body` are its fields.
        key: fingerprint of the key that created it (`bide.emulator.fingerprint`).
        created: when it was accepted. This and the other moments are seconds of the loop's clock.
        started: when it left the service's queue.
        ended: when it became final; planned, while that lies ahead.
        expires: when the service forgets it.
        status: the service's own word for its state at the moment of asking.
    """

    id: str
    service: str
    work: Work
    key: str
    created: float
    started: float
    ended: float
    expires: float
    status: str
    failure: Failure | None = field(default=None, repr=False)
    failed_parts: int = field(default=0, repr=False)
    status_word: str | None = field(default=None, repr=False)
    file_bytes: int = field(default=0, repr=False)
    cancelled: bool = field(default=False, repr=False)

    @property
    def kind(self) -> str:
        """`"image"` or `"video"`."""
        return self.work.kind

    @property
    def model(self) -> str:
        """The model's name as the create call gave it."""
        return self.work.model

    @property
    def prompt(self) -> str:
        """The prompt as the create call gave it; empty without one."""
        return self.work.prompt

    @property
    def body(self) -> Mapping[str, Any]:
        """The create call's JSON."""
        return self.work.body

    def phase(self, now: float) -> Phase:
        """Where the task stands at this moment of loop time."""
        if now >= self.expires:
            return Phase.EXPIRED
        if now < self.started:
            return Phase.QUEUED
        if now < self.ended:
            return Phase.RUNNING
        if self.cancelled:
            return Phase.CANCELLED
        return Phase.FAILED if self.failure else Phase.SUCCEEDED

    def progress(self, now: float) -> int:
        """Per cent done: linear from the start to the end, 100 at the end alone."""
        if now >= self.ended:
            return 100
        if now < self.started:
            return 0
        return min(99, int(100 * (now - self.started) / (self.ended - self.started)))

    def stopped(self, now: float, lag: float) -> EmulatedTask:
        """This task, cancelled *now*; what runs goes on for *lag* seconds, and may still finish within them."""
        end = now + (lag if now >= self.started else 0.0)
        if self.ended <= end:
            return self
        kept = self.expires - self.ended
        return replace(
            self, started=min(self.started, end), ended=end, expires=end + kept, failure=None, cancelled=True
        )
