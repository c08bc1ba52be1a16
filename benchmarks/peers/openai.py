"""`openai`: `videos.create_and_poll`, which polls every second unless the service names another interval.

It repeats a refused create twice, each time after the `Retry-After` that came with it; then it raises an error.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from peers.race import Entry
from peers.stubs import OpenAIVideos

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.stubs import Terms


@asynccontextmanager
async def polled(terms: Terms) -> AsyncIterator[Entry]:
    """Its own way to run and wait."""
    import openai

    async with (
        OpenAIVideos(terms) as stub,
        openai.AsyncOpenAI(api_key="bench", base_url=f"{stub.origin}/v1") as client,
    ):
        videos = client.videos  # imports what it needs when it is first asked for

        async def make(prompt: str) -> None:
            video = await videos.create_and_poll(model="sora-2", prompt=prompt)
            if video.status != "completed":
                raise RuntimeError(f"the video ended as {video.status}")

        yield Entry(make, stub.counts)
