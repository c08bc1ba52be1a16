"""Both services on this machine, to build and test clients against without a key and without a bill.

Written from the services' documents alone: it shares no code with the adapters, so what works against it works
for a reason. Needs the extra: `pip install 'bide[emulator]'`.
"""

from __future__ import annotations

try:
    import aiohttp  # noqa: F401  # asked for here, so that the error below is the first thing that is seen
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
