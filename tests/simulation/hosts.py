"""Hosts: a process each, with an event loop, a client and a ledger of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bide import BideError, Client, DashScope, Dieyuyun, Limits, SQLiteLedger
from simulation.service import KEYS

if TYPE_CHECKING:
    from bide import Event
    from simulation.ledger import Steps
    from simulation.plans import Plan
    from simulation.service import Service
    from simulation.world import World


class Host:
    """One process: it may be stopped, killed and started again.

    Args:
        on_event: called with the prompt and the name of each event.
    """

    def __init__(
        self,
        number: int,
        plan: Plan,
        world: World,
        service: Service,
        steps: Steps,
        path: Path,
        on_event: Callable[[str, str], object],
    ) -> None:
        self.number = number
        self.name = f"host {number}"
        self.plan = plan
        self.world = world
        self.service = service
        self.steps = steps
        self._path = path
        self._on_event = on_event
        self.key = KEYS[0]
        self.client: Client | None = None
        self.is_alive = False
        self.lives = 0
        self.closing: asyncio.Task[None] | None = None

    def tell(self, text: str) -> None:
        self.world.tell(f"{self.name}: {text}")

    def start(self) -> None:
        """The process starts, and opens a client."""
        self.loop = self.world.new_loop()
        self.loop.name = self.name  # type: ignore[attr-defined]
        self.is_alive = True
        self.lives += 1
        self._changed: asyncio.Event = asyncio.Event()
        self.loop.create_task(self._open())

    async def _open(self) -> None:
        while self.is_alive:
            provider: Any = DashScope if self.plan.service == "dashscope" else Dieyuyun
            client = Client(
                provider(base_url=self.service.base_url, video_unknown_hold=30.0),
                api_key=self.key,
                limits=Limits(concurrency=self.plan.cap),
                ledger=SQLiteLedger(self._path) if self.plan.durable else None,
                transport=self.service.transport(self.loop, self.name),
                on_event=self._note_event,
            )
            try:
                await client.__aenter__()
            except BideError as error:
                self.tell(f"no client: {error}")
                await asyncio.sleep(1.0)
                continue
            self.client = client
            self.tell("a client is open")
            self._changed.set()
            return

    async def open_client(self) -> Client:
        """The client of this host, once one is open."""
        while self.client is None or self.client._closed:
            self._changed.clear()
            await self._changed.wait()
        return self.client

    def close_client(self, *, grace: float, withdraw: bool, again_after: float | None) -> None:
        """Close the client, as a deploy does; and open the next one later."""
        client, self.client = self.client, None
        if client is not None:
            self.tell(f"closes its client{' and withdraws' if withdraw else ''}, {grace:g} s of grace")
            self.closing = self.loop.create_task(self._close(client, grace, withdraw, again_after))

    async def _close(self, client: Client, grace: float, withdraw: bool, again_after: float | None) -> None:
        await client.aclose(grace, withdraw=withdraw)
        self.tell("the client is closed")
        if again_after is not None:
            await asyncio.sleep(again_after)
            await self._open()

    def kill(self) -> None:
        """The process dies."""
        self.tell("is killed")
        self.is_alive = False
        self.client = None
        for worker in self.steps.workers:
            if worker._loop is self.loop and not worker._is_dead and not worker.ended.done():
                worker.die()
        self.world.end_loop(self.loop)
        self.loop.drop()
        self.service.open -= {each.number for each in self.service.exchanges if each.host == self.name}

    def _note_event(self, event: Event) -> None:
        prompt = ""
        if self.client is not None and self.client._engine is not None:
            found = self.client._engine.submissions.get(event.ticket)
            prompt = getattr(found.record.request, "prompt", "") if found is not None else ""
        if event.name != "polled":
            about, task_id = prompt or event.ticket, event.task.task_id or ""
            self.tell(f"{about}: {event.name}, {event.task.status} {task_id}".rstrip())
        self._on_event(prompt, str(event.name))

    def close_for_good(self) -> None:
        self.close_client(grace=10.0, withdraw=False, again_after=None)
