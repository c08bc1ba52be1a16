"""Several images at once: each file is saved as soon as its task is done, and one failure does not stop the others.

    DIEYUYUN_API_KEY=... python examples/gather.py "a lighthouse in fog" "a fox at noon"

$DIEYUYUN_BASE_URL sets another address, for instance that of `bide emulator`.
"""

from __future__ import annotations

import asyncio
import sys

from bide import BideError, Client, Dieyuyun, ImageRequest, Limits

MODEL = "gpt-image-2"


async def main(prompts: list[str], directory: str = "out") -> int:
    """Make an image of each prompt; returns how many failed."""
    failed = 0
    async with Client(Dieyuyun(), limits=Limits(concurrency=3)) as client:
        requests = [ImageRequest(prompt, model=MODEL) for prompt in prompts]
        async for handle in client.as_completed(requests):
            try:
                files = await handle.save(directory)
            except BideError as error:
                failed += 1
                print(f"{handle.ticket}: {error}", file=sys.stderr)
            else:
                print(*(file.path for file in files))
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:] or ["a lighthouse in fog", "a fox at noon"])) > 0)
