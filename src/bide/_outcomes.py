"""How a wait for a submission ends: which error a final snapshot stands for, and which errors end a wait early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from bide.errors import (
    APIError,
    BideError,
    ClientClosedError,
    SubmissionUnknownError,
    TaskCancelledError,
    TaskError,
    TaskExpiredError,
    TaskFailedError,
    TransportError,
    WaitTimeoutError,
    error_type,
)
from bide.models import NO_OUTPUT, Billing, ErrorDetail, TaskStatus

if TYPE_CHECKING:
    from bide.ledgers import Record
    from bide.models import Task


def result_of(record: Record, task: Task) -> Task:
    """Return the final snapshot *task*, or raise a new instance of the error that it stands for."""
    if task.status is TaskStatus.SUCCEEDED:
        return task
    error = _unknown(record, task) if task.status is TaskStatus.UNKNOWN else _never_made(task) or _ended(task)
    raise error.about(ticket=task.ticket, task_id=task.task_id, bought=record.bought)


def reject(task: Task, error: APIError | TransportError) -> Task:
    """*task* as rejected, because of *error* of the service or the network. `result_of` raises this error again."""
    api = error if isinstance(error, APIError) else None
    return evolve(
        task,
        status=TaskStatus.REJECTED,
        billing=Billing.NONE,
        request_id=api.request_id if api else task.request_id,
        error=ErrorDetail(
            code=api.code if api else None,
            message=api.message if api else str(error),
            type=type(error).__name__,
            text=str(error),
            status_code=api.status_code if api else None,
            retryable=False if api else None,
        ),
    )


def await_outputs(task: Task) -> Task:
    """*task*, which has succeeded without any output, as one that is polled for its outputs."""
    detail = ErrorDetail(code=NO_OUTPUT, message="the service reports success, but no output yet")
    return evolve(task, status=TaskStatus.RUNNING, error=detail)


def end_without_outputs(task: Task, seconds: float) -> Task:
    """*task*, which has succeeded and has shown no output for *seconds*."""
    detail = ErrorDetail(
        code=NO_OUTPUT, message=f"the service reports success, but has shown no output for {seconds:g} s"
    )
    return evolve(task, error=detail)


def mark_unknown(task: Task, fault: BideError) -> Task:
    """*task* as unknown: because of *fault*, its create may have arrived."""
    api = fault if isinstance(fault, APIError) else None
    detail = ErrorDetail(
        code=api.code if api else None,
        message=str(fault),
        type=SubmissionUnknownError.__name__,
        status_code=api.status_code if api else None,
    )
    return evolve(task, status=TaskStatus.UNKNOWN, error=detail, billing=Billing.UNKNOWN)


def wait_timeout(record: Record, task: Task, seconds: float, fault: BideError | None) -> WaitTimeoutError:
    """The error of a wait that has lasted *seconds*; *fault* is the last fault of the submission."""
    if task.task_id is not None:
        text = (
            f"gave up waiting for {task.task_id} after {seconds:g} s, it is {task.status}; it may still finish: "
            f"wait again, or client.attach({task.task_id!r})"
        )
    else:
        text = (
            f"gave up waiting for ticket {task.ticket} after {seconds:g} s, it is {task.status}; it stays on record: "
            f"wait again, or handle.cancel() to withdraw it"
        )
    return _timed_out(text, task, fault, record.bought)


def withdrawal(task: Task, fault: BideError | None, *, waited: str) -> WaitTimeoutError:
    """The error for a request that got no slot and was withdrawn; *waited* says how long it waited."""
    text = f"ticket {task.ticket} got no slot {waited} and was withdrawn: nothing was sent"
    return _timed_out(text, task, fault, bought=False)


def _timed_out(text: str, task: Task, fault: BideError | None, bought: bool | None) -> WaitTimeoutError:
    if fault is not None:
        text += f". The last fault: {fault}"
        # A copy, without the frames in which the fault was raised.
        fault = fault.about(ticket=task.ticket, task_id=task.task_id, bought=bought)
    error = WaitTimeoutError(text, task=task, fault=fault)
    return error.about(ticket=task.ticket, task_id=task.task_id, bought=bought)


def client_closed(record: Record, *, durable: bool) -> ClientClosedError:
    """The error of a wait whose client was closed. On a *durable* ledger a new client can continue the submission."""
    task = record.task
    if task.task_id is not None:
        text = (
            f"the client was closed while {task.task_id} was {task.status}; it goes on: a new client's "
            f"attach({task.task_id!r}) follows it"
        )
    else:
        text = f"the client was closed while ticket {task.ticket} was {task.status}; its record stays on the ledger"
    if durable:
        text += f"; on this ledger attach(ticket={task.ticket!r}) follows it"
    return ClientClosedError(text).about(ticket=task.ticket, task_id=task.task_id, bought=record.bought)


def _unknown(record: Record, task: Task) -> SubmissionUnknownError:
    why = task.error.message if task.error else None
    of_model = f" of model {task.model}" if task.model else ""
    at = f" at {record.sent_at:%Y-%m-%d %H:%M:%S} UTC" if record.sent_at else ""
    return SubmissionUnknownError(
        f"it is unknown whether the create of ticket {task.ticket} arrived ({why}). bide does not send it again, since "
        f"that could buy it twice. Check the service's console or list for a task{of_model} made{at}: if it is "
        f"there, client.attach(its id, ticket={task.ticket!r}) goes on with it; if not, submit it again with a new "
        f"ticket",
        request=record.request,
        sent_at=record.sent_at,
        model=task.model,
    )


def _never_made(task: Task) -> BideError | None:
    """The error that was recorded when the create was refused or its request withdrawn; None if it was neither."""
    detail = task.error
    kind = error_type(detail.type) if detail and detail.type else None
    if detail is None or kind is None:
        return None
    text = detail.text or detail.message or f"{task.ticket} was refused"
    if issubclass(kind, APIError):
        return kind(
            text,
            status_code=detail.status_code or 0,
            code=detail.code,
            message=detail.message,
            request_id=task.request_id,
        )
    if issubclass(kind, TransportError):
        return TransportError(text, may_have_arrived=False)
    if issubclass(kind, WaitTimeoutError):
        return WaitTimeoutError(text, task=task)
    return kind(text)


def _ended(task: Task) -> TaskError:
    """The error of a task that the service has ended without a result."""
    name, detail = task.task_id or f"ticket {task.ticket}", task.error
    words = ": ".join(filter(None, (detail.code, detail.message))) if detail else ""
    if task.status is TaskStatus.CANCELLED:
        return TaskCancelledError(f"{name} was cancelled" + (f": {words}" if words else ""), task=task)
    if task.status is TaskStatus.EXPIRED:
        text = f"{name} has expired: the service no longer knows it, or has removed its result"
        return TaskExpiredError(text + (f" ({words})" if words else ""), task=task)
    return TaskFailedError(
        f"{name} failed: {words or 'the service gives no reason; its answer is in .task.raw'} "
        f"(billing: {task.billing})",
        task=task,
        code=detail.code if detail else None,
        message=detail.message if detail else None,
        billing=task.billing,
        retryable=detail.retryable if detail else None,
    )
