"""Await slow generations: submit image and video tasks, hold the key's slots, bring every result home.

    async with Client(DashScope()) as client:
        task = await client.run(VideoRequest("a kitten runs in the moonlight", model="wan2.6-t2v"))

Start at `Client`. Everything public is named here, in `bide.errors`, `bide.models`, `bide.providers` and
`bide.ledgers`; `bide.emulator` (extra "emulator") imitates both services on your machine.
"""

from bide._client import Client
from bide._completed import AsCompleted
from bide._events import Event, EventName
from bide._handle import TaskEvents, TaskHandle
from bide._statistics import LaneStatistics, Statistics
from bide._version import __version__
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
from bide.ledgers import MemoryLedger
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
    "ErrorDetail",
    "Event",
    "EventName",
    "ImageRequest",
    "InvalidRequestError",
    "LaneStatistics",
    "LedgerError",
    "Limits",
    "MemoryLedger",
    "NotFoundError",
    "Output",
    "Provider",
    "RateLimitError",
    "RawRequest",
    "Request",
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
