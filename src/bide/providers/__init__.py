"""One file per API: requests to calls, replies to tasks or refusals. No I/O, no state.

`Provider` is the protocol to implement for a further service.
"""

from bide._wire import Call, Reply, quoted
from bide.providers._base import (
    Accepted,
    CancelOutcome,
    CreateOutcome,
    Denied,
    Gone,
    ListedTask,
    ListOutcome,
    NotNow,
    Page,
    Profile,
    Provider,
    QueryOutcome,
    Refused,
    Stopped,
    TooLate,
    TryAgain,
    Unclear,
)
from bide.providers.dashscope import DashScope
from bide.providers.dieyuyun import Dieyuyun

__all__ = [
    "Accepted",
    "Call",
    "CancelOutcome",
    "CreateOutcome",
    "DashScope",
    "Denied",
    "Dieyuyun",
    "Gone",
    "ListOutcome",
    "ListedTask",
    "NotNow",
    "Page",
    "Profile",
    "Provider",
    "QueryOutcome",
    "Refused",
    "Reply",
    "Stopped",
    "TooLate",
    "TryAgain",
    "Unclear",
    "quoted",
]
