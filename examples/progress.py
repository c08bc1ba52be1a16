"""One video, with a line for every change of its state; Ctrl-C cancels it at the service, if that is still possible.

    DASHSCOPE_API_KEY=... python examples/progress.py "a kitten runs in the moonlight"

$DASHSCOPE_BASE_URL sets another address, for instance that of `bide emulator`.
"""

from __future__ import annotations

import asyncio
import sys

from bide import Client, DashScope, VideoRequest

MODEL = "wan2.6-t2v"


async def main(prompt: str, directory: str = "out") -> None:
    """Make a video of *prompt* and save it."""
    async with Client(DashScope()) as client:
        handle = await client.submit(VideoRequest(prompt, model=MODEL))
        try:
            async for task in handle.events():
                print(task.status, "" if task.eta is None else f"about {task.eta:.0f} s left")
        except asyncio.CancelledError:
            print(
                "cancelled" if await handle.cancel() else f"too late: {handle.task_id} goes on",
                file=sys.stderr,
            )
            raise
        for file in await handle.save(directory):
            print(file.path, f"{file.size:,} bytes")


if __name__ == "__main__":
    try:
        asyncio.run(main(" ".join(sys.argv[1:]) or "a kitten runs in the moonlight"))
    except KeyboardInterrupt:
        sys.exit(130)
