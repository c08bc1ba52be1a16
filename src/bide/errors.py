"""Every error that bide raises, as one tree.

    BideError                     .bought: whether a task was made; .ticket .task_id once known
    ├── TransportError            no usable answer; .may_have_arrived: the service may have read the request
    ├── UnexpectedReplyError      an answer that makes no sense; the message shows the body, cut and escaped
    ├── APIError                  the service refused: .status_code .code .message .request_id .retry_after
    │   ├── AuthenticationError   401, 403
    │   ├── BillingError          arrears, quota used up, product not purchased
    │   ├── InvalidRequestError   other 4xx
    │   ├── NotFoundError         404
    │   ├── RateLimitError        429
    │   └── ServerError           5xx
    ├── SubmissionUnknownError    the service may have received the create: .request .sent_at .model
    ├── TaskError                 the task ended without a result: .task
    │   ├── TaskFailedError       .code .message .billing .retryable
    │   ├── TaskCancelledError
    │   └── TaskExpiredError
    ├── WaitTimeoutError          (also TimeoutError) the wait ended, the task goes on: .task .fault
    ├── ClientClosedError         (also RuntimeError) the client was closed before or during the wait
    ├── DownloadError             a result file could not be fetched or written: .retryable .retry_after
    └── LedgerError               the ledger could not read or write

All of them can be pickled. They hold text and snapshots, never a handle, a client or an object of the HTTP library,
whose errors hold the request and thereby the key. Wrong arguments raise `ValueError` or `TypeError` before anything
is sent.

A program acts on `.bought`. A caller that submits again exactly when it is False, request by request, never pays twice.
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
        ticket: our id of the submission, or None if the error concerns no submission.
        task_id: the service's id of the task, or None while it is unknown.
        bought: whether a task was made for the request. False: none was made, and no client on the ledger will make one
            any more: you may submit the request again, under the same ticket too. True: a task exists, or can still be
            made from the record: go on with `client.attach(ticket=error.ticket)`, or with the task id. It is True, too,
            if a client that is closed or cannot open its ledger cannot read the record of your ticket. None: it is not
            known (`SubmissionUnknownError`), or the error concerns no request.
        tickets: of an error of `gather`: the tickets of those requests for which `bought` is not False. The others may
            be submitted again.
    """

    bought: bool | None = None
    tickets: tuple[str, ...] = ()

    def __init__(self, message: str, *, ticket: str | None = None, task_id: str | None = None) -> None:
        super().__init__(message)
        self.ticket = ticket
        self.task_id = task_id

    def about(self, *, ticket: str | None, task_id: str | None, bought: bool | None) -> Self:
        """A new copy of this error that names the submission, since each waiter raises its own error."""
        fresh = copy.copy(self)
        fresh.__cause__ = self.__cause__
        fresh.__suppress_context__ = True
        fresh.ticket = ticket
        fresh.task_id = task_id
        fresh.bought = bought
        return fresh


class TransportError(BideError):
    """No usable answer came: there was no connection, it broke, or the call timed out.

    The HTTP library's error is kept as text only and is not chained, since it holds the key.

    Attributes:
        may_have_arrived: False if the request was certainly not sent (no connection was made); True if the
            service may have read it.
        permanent: True if another try cannot help (an invalid certificate, an impossible URL).
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
    """The service's answer makes no sense. The message shows the body, cut and escaped."""


class APIError(BideError):
    """The service refused a request, or failed at it.

    Attributes:
        status_code: the HTTP status.
        code: the service's own code, such as "InvalidParameter", or None.
        message: the service's own message, or None.
        request_id: the service's id of the exchange, or None; its support team needs it.
        retry_after: how many seconds the service asks to wait, or None.
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
    """The key is invalid, or it is not allowed to do this (HTTP 401 and 403)."""


class BillingError(APIError):
    """The account must pay first: it is in arrears, its quota is used up, or the product is not purchased."""


class InvalidRequestError(APIError):
    """The service does not accept the request; change it before another try (other HTTP 4xx)."""


class NotFoundError(APIError):
    """The task, model or path does not exist (HTTP 404 and 410)."""


class RateLimitError(APIError):
    """Too many requests or tasks at once (HTTP 429). `retry_after` says how long to wait, if the service does."""


class ServerError(APIError):
    """The service failed (HTTP 5xx)."""


class SubmissionUnknownError(BideError):
    """The service may have received the create call, and bide cannot find out whether it did.

    bide never sends such a call again automatically, since that could buy the task twice. Look for the task in the
    service's console or task list. If it is there, continue with `client.attach(task_id, ticket=error.ticket)` or
    `bide settle`. If not, submit the request again.

    Attributes:
        request: the request that was sent, or None.
        sent_at: when it was sent, UTC, or None.
        model: the model of the request, or None.
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
        task: the last snapshot, or None; `task.raw` is the service's own answer.
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
        code: the service's code, or None if it gives none.
        message: the service's message, or None.
        billing: what the service's documents say about the cost of such a task.
        retryable: True for an outage, False for a bad or refused prompt, None if the code does not say.
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
    """The task was cancelled: by this program, by another user of the key, or by the service."""


class TaskExpiredError(TaskError):
    """The service no longer knows the task, or it has removed the result."""


class WaitTimeoutError(BideError, TimeoutError):
    """The wait ended before the task did. The task goes on, unless the message says that it was withdrawn.

    Attributes:
        task: the last snapshot, or None.
        fault: the last temporary fault before the wait ended, such as a refused connection; None if there was none.
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
    """The client was closed before the call or while the caller waited."""


class DownloadError(BideError):
    """A result file could not be fetched or written; the message says which one and why.

    The other files of the task are saved. If `retryable` is true, the bytes that have arrived stay in a part file. The
    next `save` continues from it, unless the file's server names no version of the file.

    Attributes:
        retryable: whether a later `save` may succeed: True for a broken connection, False for a file that is gone, too
            large, or at an address that bide does not fetch from.
        retry_after: how many seconds the file's server asked to wait, or None.
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
    """The ledger could not read or write its records. bide sent nothing that depends on them.

    If `.task_id` is set, the service has accepted the request, and only the record of that is still to be written.
    """


def error_type(name: str) -> type[BideError] | None:
    """The error class with this *name*, as a record keeps it; None if this version has no such class."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, BideError) else None
