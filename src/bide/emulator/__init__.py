"""Both services emulated on this machine, to build and test clients without a key and at no cost.

The emulator receives HTTP requests through sockets, and faults that a test orders through `Emulator.fault`. It sends
answers and result files. It also returns the truth about each task (`Emulator.tasks`), the requests that arrived, and
counters.

It is written from the documents of the services and imports nothing else of bide. So it does not repeat a mistake of
bide's adapters, and a test with it can find that mistake. It needs the extra: `pip install 'bide[emulator]'`.
"""

from __future__ import annotations

try:
    import aiohttp  # noqa: F401  # imported here, so that the error below is raised first
except ImportError as _error:
    raise ImportError("the emulator needs aiohttp: pip install 'bide[emulator]'") from _error

from bide.emulator._dieyuyun import DieyuyunStyle
from bide.emulator._durations import Duration
from bide.emulator._emulator import Emulator, RequestRecord
from bide.emulator._limits import DOCUMENTED_DASHSCOPE, UNLIMITED, ServiceLimits
from bide.emulator._settings import fingerprint
from bide.emulator._tasks import EmulatedTask

__all__ = [
    "DOCUMENTED_DASHSCOPE",
    "UNLIMITED",
    "DieyuyunStyle",
    "Duration",
    "EmulatedTask",
    "Emulator",
    "RequestRecord",
    "ServiceLimits",
    "fingerprint",
]
