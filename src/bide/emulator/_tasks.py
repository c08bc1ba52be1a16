"""A task as the service knows it. Its state is a function of time: it needs no background work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(Enum):
    """The state of a task, in the emulator's own words."""

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
    """What a create call orders, at either service.

    Attributes:
        kind: `"image"` or `"video"`.
        files: how many files it orders.
        size: width and height in pixels, of images.
        form: the shape of the results, in a word that only the code of this service uses.
        body: the create call's JSON.
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
    """Why a task fails; with `code` None the service gives no reason."""

    code: str | None
    message: str


@dataclass(frozen=True)
class EmulatedTask:
    """The truth about one task. Tests and benchmarks compare a client's view with it.

    Attributes:
        id: the service's id.
        service: `"dieyuyun"` or `"dashscope"`.
        work: what the create call ordered; `kind`, `model`, `prompt` and `body` are its fields.
        key: fingerprint of the key that created it (`bide.emulator.fingerprint`); of the account's first key, if that
            was rotated.
        created: when it was accepted. This and the other times are seconds of the loop's clock.
        started: when it left the service's queue.
        ended: when it became final, or will become final.
        expires: when the service forgets it.
        status: the service's own word for its state now.
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
        """The state of the task at this moment of loop time."""
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
        """Percent done: linear from the start to the end, and 100 only at the end."""
        if now >= self.ended:
            return 100
        if now < self.started:
            return 0
        return min(99, int(100 * (now - self.started) / (self.ended - self.started)))

    def stop(self, now: float, lag: float) -> EmulatedTask:
        """This task, cancelled *now*. If it runs, it continues for *lag* seconds, and may still finish in them."""
        end = now + (lag if now >= self.started else 0.0)
        if self.ended <= end:
            return self
        kept = self.expires - self.ended
        return replace(
            self, started=min(self.started, end), ended=end, expires=end + kept, failure=None, cancelled=True
        )
