"""A service's rules between a client and the emulator, for `recovery.py`: they are kept here, not by the client.

The emulator makes the tasks and knows when each ends. Creates beyond the rules are answered here, with 429, and do not
reach it. What was asked and what was refused is counted here, too, with the moment of each.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from bide.emulator import EmulatedTask, Emulator

LATENCY = 0.05
"""Seconds that a call takes to the service, and an answer back."""


@dataclass(frozen=True)
class Held:
    """Another user of the key takes the first *slots* that are free from *begin* on, and lets go of them at *end*."""

    slots: int
    begin: float
    end: float


@dataclass(frozen=True)
class Terms:
    """What a service does. Seconds count from the first call.

    Attributes:
        slots: how many tasks it has in flight; None is no limit.
        held: another user of the key.
        release: seconds from the end of the task with this number until its slot is free again.
        refusal: the body of the 429.
        retry_after: the header of that name on it; None is none.
        outage: from when until when no connection is made.
    """

    slots: int | None = None
    held: Held | None = None
    release: Callable[[int], float] = lambda _: 0.0
    refusal: bytes = b""
    retry_after: int | None = None
    outage: tuple[float, float] = (math.inf, math.inf)


@dataclass
class Service(httpx.AsyncBaseTransport):
    """A client's transport: the rules, and the emulator behind them. Moments are those of the loop.

    Attributes:
        calls: when each call was begun.
        refusals: when each create was refused by the rules.
    """

    emulator: Emulator
    terms: Terms
    begin: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    calls: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._entering = 0  # creates that the emulator is answering: each will use a slot
        self._wire = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))

    @property
    def now(self) -> float:
        """Seconds since the begin."""
        return asyncio.get_running_loop().time() - self.begin

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Carry the call out, if the service can be reached and its rules allow it."""
        self.calls.append(self.now)
        was_down = self.is_down
        await asyncio.sleep(LATENCY)
        if was_down or self.is_down:
            raise httpx.ConnectError("connection refused")
        answer = await (self._create if request.method == "POST" else self._wire.handle_async_request)(
            request
        )
        await asyncio.sleep(LATENCY)
        if self.is_down:
            raise httpx.ReadError("connection reset by peer")
        return answer

    async def aclose(self) -> None:
        """Close the connections to the emulator."""
        await self._wire.aclose()

    @property
    def is_down(self) -> bool:
        """Whether there is an outage now."""
        begin, end = self.terms.outage
        return begin <= self.now < end

    def tasks(self) -> list[EmulatedTask]:
        """All tasks, in order of creation."""
        return sorted(self.emulator.tasks(), key=lambda task: task.created)

    def used(self, moment: float) -> int:
        """How many slots this client's tasks use at a moment since the begin, with those that are released late."""
        at = moment + self.begin
        return sum(
            task.created <= at < task.ended + self.terms.release(number)
            for number, task in enumerate(self.tasks())
        )

    async def _create(self, request: httpx.Request) -> httpx.Response:
        refusal = self._refusal()
        if refusal is not None:
            return refusal
        self._entering += 1
        try:
            return await self._wire.handle_async_request(request)
        finally:
            self._entering -= 1

    def _refusal(self) -> httpx.Response | None:
        if self.terms.slots is None:
            return None
        held, slots = self.terms.held, self.terms.slots
        if held is not None and held.begin <= self.now < held.end:
            # A slot that this client frees is the other user's, until that one has all it wants.
            slots -= held.slots
        if self._entering + self.used(self.now) < slots:
            return None
        self.refusals.append(self.now)
        headers = {"Content-Type": "application/json"}
        if self.terms.retry_after is not None:
            headers["Retry-After"] = str(self.terms.retry_after)
        return httpx.Response(429, headers=headers, content=self.terms.refusal)
