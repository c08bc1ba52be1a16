"""Every error that bide raises, as one tree.

    BideError                     .ticket .task_id once known
    ├── TransportError            no usable answer; .may_have_arrived tells if the request could have been read
    ├── UnexpectedReplyError      an answer that makes no sense; the message shows the body, cut and escaped
    ├── APIError                  the service refused: .status_code .code .message .request_id .retry_after
    │   ├── AuthenticationError   401, 403
    │   ├── BillingError          arrears, quota gone, not purchased
    │   ├── InvalidRequestError   other 4xx
    │   ├── NotFoundError         404
    │   ├── RateLimitError        429
    │   └── ServerError           5xx
    ├── SubmissionUnknownError    the create may have arrived: .request .sent_at .model, and what to do
    ├── TaskError                 the task ended without a result: .task
    │   ├── TaskFailedError       .code .message .billing .retryable
    │   ├── TaskCancelledError
    │   └── TaskExpiredError
    ├── WaitTimeoutError          (also TimeoutError) the wait ended, the task goes on: .task, the last snapshot
    ├── ClientClosedError         (also RuntimeError) the client was closed while this was waited for
    ├── DownloadError             a result file could not be fetched or written: .retryable .retry_after
    └── LedgerError               the ledger could not read or write

All of them pickle: they hold text and snapshots, never a handle, a client or an object of the HTTP library
(whose errors carry the request, and with it the key). Wrong arguments are `ValueError` or `TypeError`, raised
before anything is sent.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from datetime import datetime

    from bide.models import Billing, Request, Task

__all__ = [
    "APIError",
    "AuthenticationError",
    "BideError",
    "BillingError",
    "ClientClosedError",
    "DownloadError",
    "InvalidRequestError",
    "LedgerError",
    "NotFoundError",
    "RateLimitError",
    "ServerError",
    "SubmissionUnknownError",
    "TaskCancelledError",
    "TaskError",
    "TaskExpiredError",
    "TaskFailedError",
    "TransportError",
    "UnexpectedReplyError",
    "WaitTimeoutError",
]


class BideError(Exception):
    """The root of all errors of bide.

    Attributes:
        ticket: our id of the submission, or None if the error belongs to none.
        task_id: the service's id of the task, or None while it is not known.
    """

    def __init__(self, message: str, *, ticket: str | None = None, task_id: str | None = None) -> None:
        super().__init__(message)
        self.ticket = ticket
        self.task_id = task_id

    def about(self, *, ticket: str | None, task_id: str | None) -> Self:
        """A fresh copy of this error that names the submission: each waiter raises one of its own."""
        fresh = copy.copy(self)
        fresh.__cause__ = self.__cause__
        fresh.__suppress_context__ = True
        fresh.ticket = ticket
        fresh.task_id = task_id
        return fresh


class TransportError(BideError):
    """No usable answer came: no connection, a cut, or a time-out.

    The fault of the HTTP library is told as text and not chained, since its errors carry the key.

    Attributes:
        may_have_arrived: False if the request was certainly not sent (no connection was made); True if the
            service may have read it.
        permanent: True if trying again cannot help (a certificate that does not verify, an impossible URL).
    """

    def __init__(
        self,
        message: str,
        *,
        may_have_arrived: bool = True,
        permanent: bool = False,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message, ticket=ticket, task_id=task_id)
        self.may_have_arrived = may_have_arrived
        self.permanent = permanent


class UnexpectedReplyError(BideError):
    """The service answered something that makes no sense; the message shows it, cut and escaped."""


class APIError(BideError):
    """The service refused a request.

    Attributes:
        status_code: the HTTP status.
        code: the service's own code, such as "InvalidParameter", or None.
        message: the service's own words, or None.
        request_id: the service's id of the exchange, for its support, or None.
        retry_after: seconds that the service asks to wait, or None.
    """

    def __init__(
        self,
        text: str,
        *,
        status_code: int = 0,
        code: str | None = None,
        message: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(text, ticket=ticket, task_id=task_id)
        self.status_code = status_code
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after = retry_after


class AuthenticationError(APIError):
    """The key is not valid, or not allowed to do this (HTTP 401 and 403)."""


class BillingError(APIError):
    """The account must be paid or the product bought first: arrears, quota gone, not purchased."""


class InvalidRequestError(APIError):
    """The service does not accept the request as it is (HTTP 4xx)."""


class NotFoundError(APIError):
    """No such task, model or path (HTTP 404)."""


class RateLimitError(APIError):
    """Too many requests or tasks at once (HTTP 429); `retry_after` says when to come back, if the service does."""


class ServerError(APIError):
    """The service failed (HTTP 5xx)."""


class SubmissionUnknownError(BideError):
    """The create call may have arrived, and nobody can say whether it did.

    bide never sends it again by itself: that could buy the task twice. Look for the task at the service (its
    console or task list); if it is there, go on with it by `client.attach(task_id, ticket=error.ticket)` (or `bide
    settle`); if not, submit again.

    Attributes:
        request: what was sent.
        sent_at: when it was sent, UTC, or None.
        model: the model that was asked for, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        request: Request | None = None,
        sent_at: datetime | None = None,
        model: str | None = None,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message, ticket=ticket, task_id=task_id)
        self.request = request
        self.sent_at = sent_at
        self.model = model


class TaskError(BideError):
    """The task ended without a result.

    Attributes:
        task: the last snapshot; `task.raw` is the service's own answer.
    """

    def __init__(
        self,
        message: str,
        *,
        task: Task | None = None,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message, ticket=ticket, task_id=task_id)
        self.task = task


class TaskFailedError(TaskError):
    """The service reports that the task failed.

    Attributes:
        code: the service's code, or None where it gives none.
        message: the service's words, or None.
        billing: what the service says of the cost of such a task.
        retryable: True for an outage, False for a bad or refused prompt, None if the code does not tell.
    """

    def __init__(
        self,
        text: str,
        *,
        task: Task | None = None,
        code: str | None = None,
        message: str | None = None,
        billing: Billing | None = None,
        retryable: bool | None = None,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(text, task=task, ticket=ticket, task_id=task_id)
        self.code = code
        self.message = message
        self.billing = billing
        self.retryable = retryable


class TaskCancelledError(TaskError):
    """The task was cancelled: by us, by someone else with the key, or by the service."""


class TaskExpiredError(TaskError):
    """The service no longer knows the task or has removed its result."""


class WaitTimeoutError(BideError, TimeoutError):
    """A wait ended before the task did. The task goes on, unless the message says that it was withdrawn.

    Attributes:
        task: the last snapshot.
        fault: the last passing fault before the wait ended, such as a refused connection; None if there was none.
    """

    def __init__(
        self,
        message: str,
        *,
        task: Task | None = None,
        fault: BideError | None = None,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message, ticket=ticket, task_id=task_id)
        self.task = task
        self.fault = fault


class ClientClosedError(BideError, RuntimeError):
    """The client was closed while this was waited for, or before it was asked."""


class DownloadError(BideError):
    """A result file could not be fetched or written; the message says which and why. Other files of the task are saved.

    Where `retryable` is true, what has come of it stays in a part file, from which the next `save` goes on (unless its
    server names no version of it).

    Attributes:
        retryable: whether a later `save` may do better: True for a connection that breaks, False for a file that is
            gone, too large, or at an address that is not fetched from.
        retry_after: seconds that the file's server asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        ticket: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message, ticket=ticket, task_id=task_id)
        self.retryable = retryable
        self.retry_after = retry_after


class LedgerError(BideError):
    """The ledger could not read or write its records; nothing was sent on the strength of it.

    Where `.task_id` is set the service has accepted the request, and only recording that has to wait.
    """


def error_type(name: str) -> type[BideError] | None:
    """The class that a record names as the reason of an end, or None if this version has no such class."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, BideError) else None
