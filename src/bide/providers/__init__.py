"""The services that bide knows, one adapter each, and the protocol for adding another.

An adapter receives a request, a task id, or a service's HTTP reply as plain data (`Reply`). It returns the HTTP request
to send (`Call`), or what a reply means: a `Task`, or one of the outcomes below, such as `Accepted`, `NotNow` or `Gone`.
An adapter sends nothing and keeps no state. It never raises an error about a reply.

To use a service, pass its adapter to `Client`: `Client(DashScope())`. To add one, implement `Provider`.
"""

from bide._wire import Call, Reply, quote_id
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
from bide.providers._calls import is_other_prompt
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
    "is_other_prompt",
    "quote_id",
]
