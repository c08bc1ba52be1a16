"""`bide emulator`: serve both services until a signal ends the program."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any, TypedDict

from bide.emulator import DOCUMENTED_DASHSCOPE, UNLIMITED, Emulator, ServiceLimits


class LimitsByService(TypedDict):
    """The two limits of an `Emulator`."""

    dieyuyun_limits: ServiceLimits
    dashscope_limits: ServiceLimits


def limits_by_service(
    *, documented: bool, images: int | None, videos: int | None, queries_per_second: int | None
) -> LimitsByService:
    """The documented limits, or none; a figure that is given replaces the documented one.

    Raises:
        ValueError: a figure is below 1.
    """
    for figure in (images, videos, queries_per_second):
        if figure is not None and figure < 1:
            raise ValueError(
                f"a limit must be at least 1, not {figure}; --no-limits removes the documented ones"
            )

    def adapt(base: ServiceLimits) -> ServiceLimits:
        return ServiceLimits(
            concurrency={
                "image": images or base.in_flight("image"),
                "video": videos or base.in_flight("video"),
            },
            creates_per_minute=base.creates_per_minute,
            queries_per_second=queries_per_second or base.queries_per_second,
        )

    return {
        "dieyuyun_limits": adapt(UNLIMITED),
        "dashscope_limits": adapt(DOCUMENTED_DASHSCOPE if documented else UNLIMITED),
    }


async def serve(**settings: Any) -> int:
    """Run an `Emulator` with these *settings* until SIGINT or SIGTERM; returns the exit status.

    Raises:
        ValueError: a setting is out of its range.
        OSError: a port is in use.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has no such handlers: there Ctrl-C raises KeyboardInterrupt, which ends the program too.
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, ended.set)
    async with Emulator(**settings) as emulator:
        print(f"Dieyuyun and DashScope are emulated on this machine. Ctrl-C ends them.\n\n{usage(emulator)}")
        print(f"\nTheir counters: {emulator.dieyuyun_url}/_emulator/stats", flush=True)
        await ended.wait()
    return 0


def usage(emulator: Emulator) -> str:
    """How to use a running *emulator* from your code."""
    return (
        "Set these variables for your code; any key is accepted:\n\n"
        f"  export DIEYUYUN_BASE_URL={emulator.dieyuyun_url} DIEYUYUN_API_KEY=any\n"
        f"  export DASHSCOPE_BASE_URL={emulator.dashscope_url} DASHSCOPE_API_KEY=any"
    )
