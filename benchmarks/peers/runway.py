"""`runwayml`: `create(...)`, then `.wait_for_task_output()`, which polls every 4.5 to 7.5 s.

It repeats a refused create twice, each time after the `Retry-After` that came with it; then it raises an error.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from peers.race import Entry
from peers.stubs import RunwayTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.stubs import Terms


@asynccontextmanager
async def waited_for(terms: Terms) -> AsyncIterator[Entry]:
    """Its own way to run and wait."""
    import runwayml

    async with (
        RunwayTasks(terms) as stub,
        runwayml.AsyncRunwayML(api_key="bench", base_url=stub.origin) as client,
    ):
        texts = client.text_to_video  # imports what it needs when it is first asked for

        async def make(prompt: str) -> None:
            task = await texts.create(model="gen4.5", prompt_text=prompt, ratio="1280:720", duration=5)
            await task.wait_for_task_output()

        yield Entry(make, stub.counts)
