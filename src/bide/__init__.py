"""Await slow generations: submit image and video tasks, hold the key's slots, bring every result home.

    async with Client(DashScope()) as client:
        task = await client.run(VideoRequest("a kitten runs in the moonlight", model="wan2.6-t2v"))

Start at `Client`. Everything public is named here, in `bide.errors`, `bide.models`, `bide.providers` and
`bide.ledgers`; `bide.emulator` (extra "emulator") imitates both services on your machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bide._version import __version__

if TYPE_CHECKING:
    from bide._client import Client
    from bide._downloads.settings import Downloads
    from bide._events import Event, EventName
    from bide._handles import AsCompleted, TaskEvents, TaskHandle
    from bide._polling.pace import Pace
    from bide._statistics import LaneStatistics, ModelStatistics, Statistics
    from bide.errors import (
        APIError,
        AuthenticationError,
        BideError,
        BillingError,
        ClientClosedError,
        DownloadError,
        InvalidRequestError,
        LedgerError,
        NotFoundError,
        RateLimitError,
        ServerError,
        SubmissionUnknownError,
        TaskCancelledError,
        TaskError,
        TaskExpiredError,
        TaskFailedError,
        TransportError,
        UnexpectedReplyError,
        WaitTimeoutError,
    )
    from bide.ledgers import MemoryLedger, SQLiteLedger
    from bide.models import (
        Billing,
        Deadlines,
        ErrorDetail,
        ImageRequest,
        Limits,
        Output,
        RawRequest,
        Request,
        SavedFile,
        Task,
        TaskStatus,
        VideoRequest,
    )
    from bide.providers import DashScope, Dieyuyun, Provider

__all__ = [
    "APIError",
    "AsCompleted",
    "AuthenticationError",
    "BideError",
    "Billing",
    "BillingError",
    "Client",
    "ClientClosedError",
    "DashScope",
    "Deadlines",
    "Dieyuyun",
    "DownloadError",
    "Downloads",
    "ErrorDetail",
    "Event",
    "EventName",
    "ImageRequest",
    "InvalidRequestError",
    "LaneStatistics",
    "LedgerError",
    "Limits",
    "MemoryLedger",
    "ModelStatistics",
    "NotFoundError",
    "Output",
    "Pace",
    "Provider",
    "RateLimitError",
    "RawRequest",
    "Request",
    "SQLiteLedger",
    "SavedFile",
    "ServerError",
    "Statistics",
    "SubmissionUnknownError",
    "Task",
    "TaskCancelledError",
    "TaskError",
    "TaskEvents",
    "TaskExpiredError",
    "TaskFailedError",
    "TaskHandle",
    "TaskStatus",
    "TransportError",
    "UnexpectedReplyError",
    "VideoRequest",
    "WaitTimeoutError",
    "__version__",
]

# Names are imported when they are first asked for: `import bide` alone costs a process that may never need it nothing.
_MODULES = ("errors", "ledgers", "models", "providers")
_HOMES = {
    "_client": "Client",
    "_downloads.settings": "Downloads",
    "_events": "Event EventName",
    "_handles": "AsCompleted TaskEvents TaskHandle",
    "_polling.pace": "Pace",
    "_statistics": "LaneStatistics ModelStatistics Statistics",
    "errors": (
        "APIError AuthenticationError BideError BillingError ClientClosedError DownloadError "
        "InvalidRequestError LedgerError NotFoundError RateLimitError ServerError SubmissionUnknownError "
        "TaskCancelledError TaskError TaskExpiredError TaskFailedError TransportError UnexpectedReplyError "
        "WaitTimeoutError"
    ),
    "ledgers": "MemoryLedger SQLiteLedger",
    "models": (
        "Billing Deadlines ErrorDetail ImageRequest Limits Output RawRequest Request SavedFile Task "
        "TaskStatus VideoRequest"
    ),
    "providers": "DashScope Dieyuyun Provider",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"bide.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bide' has no attribute {name!r}")
    value = getattr(import_module(f"bide.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
