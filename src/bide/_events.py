"""Events: what happens to submissions, reported to the log and to the user's hook as it happens."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO

from attrs import frozen

from bide import _outside
from bide._text import excerpt, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from bide.errors import BideError
    from bide.models import SavedFile, Task, TaskStatus

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

IDS_PER_LINE = 50
"""Ids that one line of the log names at most."""

log = logging.getLogger("bide")


class EventName(StrEnum):
    """What can happen to a submission."""

    WAITING = "waiting"
    """It waits for a slot: it is new, or its create was postponed."""
    SUBMITTING = "submitting"
    """It has a slot, and its create is being sent."""
    PAUSED = "paused"
    """The service answered "too many", or could not be reached. For `seconds`, no task of the key is created; or, if
    this task is already accepted, no task of the account is polled."""
    SUBMITTED = "submitted"
    """The service has accepted it: its task id is known and recorded. A create that returns the result at once has no
    such event, and the first event of an attached task is a poll."""
    POLLED = "polled"
    """A poll of this task has ended, after `seconds`; `error` says why if it failed. (A list that replaces many polls
    gives events only for the tasks that have changed.)"""
    CHANGED = "changed"
    """Its status, progress, outputs or error have changed, and it goes on."""
    FINAL = "final"
    """It has ended, with a result or without."""
    SAVING = "saving"
    """One of its files is being fetched: `bytes` of `total` bytes have arrived, and `output` is the file's place among
    the outputs. At most five such events a second for each file."""
    SAVED = "saved"
    """Its files are on disk, after `seconds`."""
    UNSAVED = "unsaved"
    """Its files could not be saved (`error` says why), or they are not saved yet and their URLs expire soon, in
    `seconds`."""


_LEVELS = {
    EventName.POLLED: logging.DEBUG,
    EventName.SAVING: logging.DEBUG,
    EventName.UNSAVED: logging.WARNING,
}


def event_name(before: TaskStatus, after: TaskStatus) -> EventName:
    """The name of the event for the step from status *before* to status *after*."""
    if after.is_final:
        return EventName.FINAL
    if after.is_accepted:
        return EventName.CHANGED if before.is_accepted else EventName.SUBMITTED
    return EventName(after)


@frozen
class Event:
    """One thing that has happened to one submission; the argument of the function `Client(on_event=...)`.

    Attributes:
        name: what has happened.
        at: when, as an aware UTC time.
        provider: the service's name.
        kind: the kind of work, such as "image" or "video"; empty if it is not known.
        key: fingerprint of the API key that makes the task, never the key itself; None while the submission waits.
        task: the newest snapshot.
        seconds: how long the pause will last, how long the poll or the download took, or how long a result can still be
            saved; None for other events.
        error: the reason of a pause, or why a poll or a download failed; else None.
        files: the files that were saved.
        output: which of the outputs is being saved, counted from 0.
        bytes: how many bytes of it have arrived.
        total: its length in bytes, if the server states it.
    """

    name: EventName
    at: datetime
    provider: str
    kind: str
    key: str | None
    task: Task
    seconds: float | None = None
    error: BideError | None = None
    files: tuple[SavedFile, ...] = ()
    output: int | None = None
    bytes: int | None = None
    total: int | None = None

    @property
    def ticket(self) -> str:
        """Our id of the submission."""
        return self.task.ticket

    @property
    def task_id(self) -> str | None:
        """The service's id, or None until the create is accepted."""
        return self.task.task_id

    def __str__(self) -> str:
        task = self.task
        words = [self.provider, self.ticket, task.task_id or "-", self.name, str(task.status)]
        if task.progress is not None and not task.status.is_final:
            words.append(f"{task.progress:g} %")
        if self.seconds is not None:
            how = {EventName.PAUSED: "for", EventName.UNSAVED: "expires in"}.get(self.name, "in")
            words.append(f"{how} {self.seconds:.2f} s")
        if self.files:
            words.append(f"{len(self.files)} files")
        if self.bytes is not None:
            words.append(f"output {self.output}: {self.bytes} of {self.total or '?'} bytes")
        if self.error is not None:
            words.append(f"({type(self.error).__name__}: {_log_excerpt(str(self.error))})")
        elif task.error is not None and self.name is EventName.FINAL:
            words.append(f"({excerpt(task.error.code or '', 60)}: {_log_excerpt(task.error.message or '')})")
        return " ".join(words)


class Announcer:
    """Reports events: writes one log line for each, and calls the hook. An error of the hook stops nothing.

    Attributes:
        ended: how many submissions have ended, by their last status.
        files: how many files were saved.

    Raises:
        TypeError: *hook* cannot be called, or is a coroutine function, which would never be awaited.
    """

    def __init__(self, provider: str, hook: Callable[[Event], object] | None) -> None:
        is_async = inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__)
        if hook is not None and (not callable(hook) or is_async):
            raise TypeError(
                f"on_event must be a plain function that takes an Event and returns at once, not {hook!r}; to await "
                f"something for each event, pass put_nowait of an asyncio.Queue and read the queue in a task of yours"
            )
        self._provider = provider
        self._hook = hook
        self._has_reported_fault = False
        self.ended: Counter[TaskStatus] = Counter()
        self.files: int = 0

    def emit(
        self,
        name: EventName,
        task: Task,
        *,
        kind: str = "",
        key: str | None = None,
        seconds: float | None = None,
        error: BideError | None = None,
        files: tuple[SavedFile, ...] = (),
        output: int | None = None,
        bytes: int | None = None,  # noqa: A002 - the event's own word for it
        total: int | None = None,
    ) -> None:
        """Report one event. Costs almost nothing if there is no hook and the log's level is too high for it."""
        if name is EventName.FINAL:
            self.ended[task.status] += 1
        self.files += len(files)
        level = _LEVELS.get(name, logging.INFO)
        is_logged = log.isEnabledFor(level)
        if self._hook is None and not is_logged:
            return
        at, provider = _outside.utc_now(), self._provider
        event = Event(name, at, provider, kind, key, task, seconds, error, files, output, bytes, total)
        if is_logged:
            log_line(level, str(event))
        if self._hook is None:
            return
        try:
            returned = self._hook(event)
            if inspect.iscoroutine(returned):
                returned.close()
                raise TypeError("it returned a coroutine, which is never awaited")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as fault:  # noqa: BLE001 - a hook that reads a cancelled future raises CancelledError
            self._report_fault(fault)

    def _report_fault(self, fault: BaseException) -> None:
        """Log that the hook raised: the first time with its traceback, later as one line."""
        if self._has_reported_fault:
            log_line(logging.DEBUG, f"on_event raised {type(fault).__name__}")
            return
        self._has_reported_fault = True
        text = "on_event raised; bide goes on calling it, and logs its next faults as DEBUG"
        log_line(logging.ERROR, text, fault)


def log_line(level: int, text: str, fault: BaseException | None = None) -> None:
    """Log *text* as one line without signatures. An error of a log handler must not stop the writing to the ledger."""
    with suppress(Exception):
        log.log(level, "%s", redact(text), exc_info=fault)


def _log_excerpt(text: str) -> str:
    return excerpt(redact(text), 200)


def lines_of_ids(ids: Sequence[str]) -> Iterator[str]:
    """All *ids*, as texts of at most `IDS_PER_LINE` ids each."""
    for start in range(0, len(ids), IDS_PER_LINE):
        yield ", ".join(ids[start : start + IDS_PER_LINE])


class _Printer(logging.StreamHandler[TextIO]):
    """Prints to standard error until the application sets up its own logging."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def set_log_level_from_environment() -> None:
    """Set the level of the logger "bide" to $BIDE_LOG: debug, info, warning or error.

    The handlers of the application get the lines. If it has set up none, the lines go to standard error.
    """
    word = os.environ.get("BIDE_LOG", "").strip().lower()
    if not word:
        return
    if word not in LEVELS:
        log.warning("$BIDE_LOG is %r; expected one of %s", excerpt(word, 40), ", ".join(LEVELS))
        return
    log.setLevel(LEVELS[word])
    if not log.hasHandlers():
        handler = _Printer(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
