"""bide's emulator as a service of the table: what it has counted, and an emulator to which something happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bide import Client, DashScope, Dieyuyun, VideoRequest
from bide.emulator import Emulator
from peers.gate import Gate, Mishap
from peers.race import Counts

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

KEY = "sk-bench"
MODEL = "wan2.6-t2v"
OTHER = "of another user"


class Troubled(Emulator):
    """An emulator behind a gate. Both services are there; the *mishap* comes to one of them."""

    def __init__(self, mishap: Mishap, service: str, **options: Any) -> None:
        super().__init__(**options)
        self._mishap = mishap
        self._service = service
        self._gate: Gate | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._gate = await Gate(super().dieyuyun_url, self._mishap, self._hold).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gate is not None:
            await self._gate.__aexit__()
        await super().__aexit__(kind, error, trace)

    @property
    def dieyuyun_url(self) -> str:
        """Through the gate."""
        return self._gated(super().dieyuyun_url)

    @property
    def dashscope_url(self) -> str:
        """Through the gate."""
        return self._gated(super().dashscope_url)

    def _gated(self, url: str) -> str:
        return url if self._gate is None else f"{self._gate.origin}{urlsplit(url).path}"

    async def _hold(self, slots: int, seconds: float) -> None:
        """Another user of the key, who does not come through the gate."""
        url = super().dieyuyun_url
        provider = (
            Dieyuyun(base_url=url)
            if self._service == "dieyuyun"
            else DashScope(base_url=super().dashscope_url)
        )
        async with Client(provider, api_key=KEY) as other:
            prompts = [f"[seconds {seconds:g}] {number} {OTHER}" for number in range(slots)]
            handles = [await other.submit(VideoRequest(prompt, model=MODEL)) for prompt in prompts]
            await asyncio.gather(*(handle.accepted() for handle in handles))


def counts_of(emulator: Emulator, service: str) -> Counts:
    """What the emulator saw of the peer, without another user's tasks."""
    stats = emulator.stats()["services"][service]
    prompts = [task.prompt for task in emulator.tasks() if task.service == service]
    paid = [prompt for prompt in prompts if not prompt.endswith(OTHER)]
    return Counts(
        paid=len(paid),
        refused=stats["creates_429"],
        polls=stats["queries"] + stats["lists"],
        polls_refused=stats["queries_429"],
        twice=len(paid) - len(set(paid)),
    )
