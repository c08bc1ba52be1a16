"""What happens to submissions, told as it happens: to the log, and to a hook of the user's."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO

from attrs import frozen

from bide._text import excerpt, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bide.errors import BideError
    from bide.models import SavedFile, Task, TaskStatus

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

IDS_PER_LINE = 50
"""Ids that one line of the log names at most."""

log = logging.getLogger("bide")


class EventName(StrEnum):
    """What can happen to a submission."""

    WAITING = "waiting"
    """It waits for a slot: it is new, or its create was put off."""
    SUBMITTING = "submitting"
    """It has a slot, and its create goes out."""
    PAUSED = "paused"
    """The service said "too many", or could not be reached: nobody of that key creates (or, where the task is accepted
    already, nobody of the account asks) for `seconds`."""
    SUBMITTED = "submitted"
    """The service has taken it: its task id is known, and on record. A create that is answered with the result at once
    is final without it, and a task that was attached begins with being looked at."""
    POLLED = "polled"
    """A status query for this task has ended, after `seconds`; `error` says why if it failed. (A list that took the
    place of many queries tells only what has changed.)"""
    CHANGED = "changed"
    """Status, progress, outputs or error are new, and it goes on."""
    FINAL = "final"
    """It has ended, with a result or without."""
    SAVING = "saving"
    """A file of it is on its way: `output` is its place among the outputs, of whose `total` bytes so many `bytes` are
    here. At most five a second for each file."""
    SAVED = "saved"
    """Its files are on disk, after `seconds`."""
    UNSAVED = "unsaved"
    """Its files could not be saved (`error` says why), or nobody has saved them and their addresses expire soon, in
    `seconds`."""


_LEVELS = {
    EventName.POLLED: logging.DEBUG,
    EventName.SAVING: logging.DEBUG,
    EventName.UNSAVED: logging.WARNING,
}


def name_of(before: TaskStatus, after: TaskStatus) -> EventName:
    """What the step from one status to another is called."""
    if after.is_final:
        return EventName.FINAL
    if after.is_accepted:
        return EventName.CHANGED if before.is_accepted else EventName.SUBMITTED
    return EventName(after)


@frozen
class Event:
    """One thing that has happened to one submission: what `Client(on_event=...)` is called with.

    Attributes:
        at: when, as an aware UTC time.
        provider: the service's name.
        kind: of work, such as "image" or "video"; empty where it is not known.
        key: fingerprint of the API key that the task is made with, never the key; None while it waits.
        task: the newest snapshot.
        seconds: how long the pause will last, how long the look or the download took, or until when a result can be
            saved; None otherwise.
        error: what was in the way: of a pause, or of a look or a download that failed.
        files: what was saved.
        output: which of the outputs is being saved, from 0.
        bytes: how much of it is here.
        total: its length in bytes, where the server tells it.
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
            words.append(f"({type(self.error).__name__}: {_for_the_log(str(self.error))})")
        elif task.error is not None and self.name is EventName.FINAL:
            words.append(f"({excerpt(task.error.code or '', 60)}: {_for_the_log(task.error.message or '')})")
        return " ".join(words)


class Announcer:
    """Tells events to the logger "bide", a line each, and to the hook. A hook that raises disturbs nobody.

    Attributes:
        ended: how many submissions have ended, by their last status.
        files: how many were saved.

    Raises:
        TypeError: *hook* cannot be called, or is a coroutine function: nobody would await it.
    """

    def __init__(self, provider: str, hook: Callable[[Event], object] | None) -> None:
        is_async = inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__)
        if hook is not None and (not callable(hook) or is_async):
            raise TypeError(
                f"on_event must be a plain function that takes an Event and returns at once, not {hook!r}; to await "
                f"something for each event, pass put_nowait of an asyncio.Queue and read that in a task of yours"
            )
        self._provider = provider
        self._hook = hook
        self._complained = False
        self.ended: Counter[TaskStatus] = Counter()
        self.files = 0

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
        """Tell one event. Costs next to nothing where nobody listens."""
        if name is EventName.FINAL:
            self.ended[task.status] += 1
        self.files += len(files)
        level = _LEVELS.get(name, logging.INFO)
        is_logged = log.isEnabledFor(level)
        if self._hook is None and not is_logged:
            return
        at, provider = datetime.now(UTC), self._provider
        event = Event(name, at, provider, kind, key, task, seconds, error, files, output, bytes, total)
        if is_logged:
            log_line(level, str(event))
        if self._hook is None:
            return
        try:
            returned = self._hook(event)
            if inspect.iscoroutine(returned):
                returned.close()
                raise TypeError("it is a coroutine function: nobody awaits what it returns")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as fault:  # noqa: BLE001 - the result of a cancelled future raises one, too
            self._complain(fault)

    def _complain(self, fault: BaseException) -> None:
        """Tell of a hook that raises: at full length once."""
        if self._complained:
            log_line(logging.DEBUG, f"on_event raised {type(fault).__name__}")
            return
        self._complained = True
        text = "on_event raised; it is called on, and its next faults are logged as DEBUG"
        log_line(logging.ERROR, text, fault)


def log_line(level: int, text: str, fault: BaseException | None = None) -> None:
    """Log *text* as a line without signatures. A handler that raises disturbs nobody: records are being written."""
    with suppress(Exception):
        log.log(level, "%s", redacted(text), exc_info=fault)


def lines_of_ids(ids: Sequence[str]) -> Iterator[str]:
    """All *ids*, as texts of at most `IDS_PER_LINE` ids each."""
    for start in range(0, len(ids), IDS_PER_LINE):
        yield ", ".join(ids[start : start + IDS_PER_LINE])


def _for_the_log(text: str) -> str:
    return excerpt(redacted(text), 200)


class _Printer(logging.StreamHandler[TextIO]):
    """Prints to standard error, until the application sets up a log of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def log_as_the_environment_says() -> None:
    """Let $BIDE_LOG (debug, info, warning or error) set the level of the logger "bide".

    An application that has set up logging gets the lines by its own handlers; elsewhere they go to standard error.
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
