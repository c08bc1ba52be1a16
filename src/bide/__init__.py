"""Await slow generations: submit image and video tasks, hold the key's slots, bring every result home.

    async with Client(DashScope()) as client:
        task = await client.run(VideoRequest("a kitten runs in the moonlight", model="wan2.6-t2v"))

Start with `Client`. All public names are here, in `bide.errors`, `bide.models`, `bide.providers` and `bide.ledgers`.
`bide.emulator` (extra "emulator") imitates both services on your machine.
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

# A name is imported at its first use, so that `import bide` costs almost nothing in a process that never uses it.
_PUBLIC_MODULES = ("errors", "ledgers", "models", "providers")
_NAMES_BY_MODULE = {
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
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name in _PUBLIC_MODULES:
        return import_module(f"bide.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bide' has no attribute {name!r}")
    value = getattr(import_module(f"bide.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_PUBLIC_MODULES]
