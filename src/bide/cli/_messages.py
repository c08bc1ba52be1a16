"""What became of a task, in the words of the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bide import DownloadError, SubmissionUnknownError, TaskStatus, WaitTimeoutError
from bide.cli._exits import status_of
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bide import SavedFile, Task, TaskHandle
    from bide.cli._ledger import Place


def name_of(task: Task) -> str:
    """What to call *task*: by the service's id, if it has one."""
    return task.task_id or task.ticket


def is_withdrawn(handle: TaskHandle) -> bool:
    """Whether it has ended without having been sent."""
    return handle.task.status is TaskStatus.CANCELLED and handle.task_id is None


def in_other_words(
    label: str, handle: TaskHandle | None, error: Exception, timeout: float | None, place: Place | None
) -> str | None:
    """*error* in the terms of the command line, where the library's own would be those of Python."""
    label = f'"{plain(label, 60)}"'
    if isinstance(error, WaitTimeoutError) and handle is not None and timeout is not None:
        if is_withdrawn(handle):
            return f"{label} got no slot within {timeout:g} s: withdrawn, nothing was sent"
        return f"{name_of(handle.task)} is {handle.task.status} after {timeout:g} s; it goes on"
    if isinstance(error, DownloadError) and handle is not None:
        text = "; ".join([str(error), *getattr(error, "__notes__", ())])
        return f"{name_of(handle.task)}: {text.replace('with overwrite=True', 'with --overwrite')}"
    if isinstance(error, SubmissionUnknownError):
        text = (
            f"nobody can say whether the create of {label} arrived; it is not sent again, since that could buy it "
            f"twice. Look in the service's console: "
        )
        return text + what_to_do(None if handle is None else handle.ticket, place)
    return None


def what_to_do(ticket: str | None, place: Place | None) -> str:
    """How to settle a create whose outcome nobody knows."""
    if ticket is None or place is None:
        return "if the task is there, bide watch its id"
    return (
        f"if the task is there, {place.command('settle', ticket)} ITS_ID; "
        f"if it is not, {place.command('forget', ticket)}"
    )


def as_json(label: str, task: Task | None, files: Sequence[SavedFile], fault: Exception | None = None) -> str:
    """One task as one line."""
    error: dict[str, Any] | None = None
    if fault is not None:
        error = {
            "type": type(fault).__name__,
            "message": str(fault),
            "code": getattr(fault, "code", None),
            "exit_status": status_of(fault),
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
