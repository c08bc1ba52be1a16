"""What a command reports of a task: the exit status, the text of an error, and the JSON object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bide import (
    AuthenticationError,
    BideError,
    BillingError,
    DownloadError,
    RateLimitError,
    SubmissionUnknownError,
    TaskStatus,
    WaitTimeoutError,
)
from bide.cli._output import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide import SavedFile, Task, TaskHandle
    from bide.cli._place import Place

OK, FAILED, USAGE, AUTH, LIMITED, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
_WORST_FIRST = (AUTH, LIMITED, TIMEOUT, USAGE, FAILED)


def exit_status(error: BaseException) -> int:
    """The exit status for *error*."""
    if isinstance(error, AuthenticationError):
        return AUTH
    if isinstance(error, BillingError | RateLimitError):
        return LIMITED
    if isinstance(error, WaitTimeoutError):
        return TIMEOUT
    return FAILED if isinstance(error, BideError) else USAGE


def worst_status(statuses: set[int]) -> int:
    """The most useful of several exit statuses: one about the key comes before one about a single task."""
    return next((status for status in _WORST_FIRST if status in statuses), OK)


def display_name(task: Task) -> str:
    """The service's id of *task*, or its ticket if it has no id yet."""
    return task.task_id or task.ticket


def is_withdrawn(handle: TaskHandle) -> bool:
    """Whether it has ended and was never sent."""
    return handle.task.status is TaskStatus.CANCELLED and handle.task_id is None


def explain(
    label: str, handle: TaskHandle | None, error: Exception, timeout: float | None, place: Place | None
) -> str | None:
    """The text of *error* for a user of the command line; None if the library's own text fits."""
    label = f'"{one_line(label, 60)}"'
    if isinstance(error, WaitTimeoutError) and handle is not None and timeout is not None:
        if is_withdrawn(handle):
            return f"{label} got no slot within {timeout:g} s: withdrawn, nothing was sent"
        return f"{display_name(handle.task)} is {handle.task.status} after {timeout:g} s; it continues"
    if isinstance(error, DownloadError) and handle is not None:
        return "; ".join([f"{display_name(handle.task)}: {error}", *getattr(error, "__notes__", ())])
    if isinstance(error, SubmissionUnknownError):
        text = (
            f"it is not known whether the create of {label} arrived; it is not sent again, since that could buy it "
            f"twice. Check the service's console: "
        )
        return text + settle_advice(None if handle is None else handle.ticket, place)
    return None


def settle_advice(ticket: str | None, place: Place | None) -> str:
    """How the user settles a create whose outcome is unknown."""
    if ticket is None or place is None:
        return "if the task is there, run bide watch with its id"
    return (
        f"if the task is there, {place.command('settle', ticket)} ITS_ID; "
        f"if it is not, {place.command('forget', ticket)}"
    )


def task_json(
    label: str, task: Task | None, files: Sequence[SavedFile], fault: Exception | None = None
) -> str:
    """One task as one line of JSON."""
    error: dict[str, Any] | None = None
    if fault is not None:
        error = {
            "type": type(fault).__name__,
            "message": str(fault),
            "code": getattr(fault, "code", None),
            "exit_status": exit_status(fault),
        }
    return json.dumps(
        {
            "input": label,
            "task": None if task is None else task.to_dict(),
            "files": [
                {"path": str(file.path), "size": file.size, "media_type": file.media_type} for file in files
            ],
            "error": error,
        }
    )
