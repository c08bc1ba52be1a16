"""`Saver`: saves results on request or automatically, records them, and warns of results that expire unsaved."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, evolve

from bide import _outside
from bide._concurrency import in_thread, wait_done, wait_unless_closed
from bide._downloads.download import DownloadJob
from bide._downloads.downloader import Downloader
from bide._downloads.paths import absolute, check_output, folder_of, size_of
from bide._events import EventName, lines_of_ids, log_line
from bide._text import excerpt, redact_url
from bide._validators import is_ticket
from bide.errors import BideError, DownloadError, LedgerError
from bide.models import SavedFile, Task, TaskStatus
from bide.providers import Denied, Gone, TryAgain

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from bide._concurrency import Background
    from bide._downloads.settings import Downloads
    from bide._http.fetcher import Fetcher
    from bide._service.account import Account
    from bide._submissions import Submissions
    from bide.ledgers import Record
    from bide.models import Output

_Name: TypeAlias = tuple[str, str, str | None]
"""Identifies one file: its folder, its name without the extension, and the id of its task."""

MAX_REMEMBERED_FILES = 1000
"""Saved files that a client remembers at most."""
MAX_QUERIES = 3
"""Queries for a fresh address before the service's fault is raised."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
"""Seconds until an automatic save is tried again, after the first fault and at most."""
GIVE_UP_SECONDS = 24 * 3600.0
"""Seconds after which an automatic save stops trying, unless a fault shows earlier that the result is lost."""
EXPIRY_CHECK_SECONDS = 60.0
"""Seconds between two checks for results that expire unsaved."""
WARNING_SECONDS = 3600.0
"""Seconds before its expiry at which an unsaved result causes a warning; at most half of its lifetime."""
ORPHAN_SECONDS = 300.0
"""Seconds after its end at which an unsaved result counts as abandoned by the client that should have saved it."""
PROGRESS_EVENT_SECONDS = 0.2
"""Seconds between two progress events of one file."""
SETTLE_CHECK_SECONDS = 1.0
"""Seconds between two checks of `settle`."""


@define(eq=False)
class _SharedSave:
    """One save under way, whether it overwrites, and how many callers wait for it."""

    task: asyncio.Task[tuple[SavedFile, bool]]
    overwrites: bool
    waiters: int = 0
    is_announced: bool = False


class Saver:
    """Saves the results of one client.

    Args:
        directory: where each result is saved automatically when its task has succeeded; None saves on request only.
        adopts: whether results that other clients have left unsaved are saved there, too.
    """

    def __init__(
        self,
        account: Account,
        background: Background,
        submissions: Submissions,
        fetcher: Fetcher,
        terms: Downloads,
        directory: Path | None,
        *,
        adopts: bool,
    ) -> None:
        self._account = account
        self._ledger = account.ledger
        self._background = background
        self._submissions = submissions
        self._fetcher = fetcher
        self._downloader = Downloader(fetcher, terms)
        self._directory = directory
        self._saves: dict[_Name, _SharedSave] = {}
        self._saved: OrderedDict[_Name, SavedFile] = OrderedDict()  # recently: the ledger may keep no record
        self._automatic: dict[str, asyncio.Task[None]] = {}  # by ticket
        self._failing: set[str] = set()  # those of them that have failed and are tried again
        self._unsavable: set[str] = set()  # tickets that no try can save
        self._warned: set[str] = set()
        self._is_stopped = False
        self._adopts = adopts

    def start(self) -> None:
        """Start to adopt unsaved results of other clients, and to watch for results that expire unsaved."""
        if self._ledger.durable:
            self._background.spawn(self._watch_for_expiry())

    def stop(self) -> None:
        """Start no more automatic saves: results that end from now on are left to the next client."""
        self._is_stopped = True

    async def aclose(self) -> None:
        """Close connections and threads. No save may be under way."""
        await self._downloader.aclose()
        await self._fetcher.aclose()

    # On request --------------------------------------------------------------------------------------------

    async def save(
        self, task: Task, directory: str | os.PathLike[str], *, output: int | None, overwrite: bool
    ) -> list[SavedFile]:
        """See `Client.save`."""
        folder, wanted = folder_of(directory), _wanted(task, output)
        try:
            absolute(folder)
        except OSError as error:
            raise DownloadError(f"the directory {str(folder)!r} cannot be resolved: {error}") from None
        began = self._background.clock()
        refresher = _Refresher(self._account, self._background, task)
        waits = [
            asyncio.ensure_future(self._save_shared(task, place, folder, refresher, overwrite=overwrite))
            for place in wanted
        ]
        if not waits:
            return []
        try:
            await asyncio.wait(waits)
        except asyncio.CancelledError:
            for wait in waits:
                wait.cancel()
            await wait_done(asyncio.gather(*waits, return_exceptions=True))
            raise
        files = [wait.result()[0] for wait in waits if wait.exception() is None]
        if any(wait.result()[1] for wait in waits if wait.exception() is None):
            took = self._background.clock() - began
            self._submissions.announce_files(EventName.SAVED, task, seconds=took, files=tuple(files))
        faults = [fault for wait in waits if (fault := wait.exception()) is not None]
        if faults:
            raise _joined_fault(faults, files, task)
        return files

    async def _save_shared(
        self, task: Task, place: int, folder: Path, refresher: _Refresher, *, overwrite: bool
    ) -> tuple[SavedFile, bool]:
        """Save one output, or share a save of it that is under way. It is cancelled when the last waiter leaves."""
        name = (absolute(folder), f"{task.ticket}-{place}", task.task_id)
        while (shared := self._saves.get(name)) is not None and (
            shared.task.cancelling() or (overwrite and not shared.overwrites)
        ):
            await asyncio.wait([shared.task])
            self._background.check()
        if shared is None:
            saving = self._background.spawn(self._save(task, place, name, refresher, overwrite=overwrite))
            shared = self._saves[name] = _SharedSave(saving, overwrite)
            saving.add_done_callback(lambda _: self._saves.pop(name, None))
        shared.waiters += 1
        try:
            file, is_new = await wait_unless_closed(shared.task)
        finally:
            shared.waiters -= 1
            if not shared.waiters and not shared.task.done():
                shared.task.cancel()
                await wait_done(shared.task)
        is_mine = is_new and not shared.is_announced
        shared.is_announced = shared.is_announced or is_new
        return evolve(file, path=str(folder / Path(file.path).name)), is_mine

    async def _save(
        self, task: Task, place: int, name: _Name, refresher: _Refresher, *, overwrite: bool
    ) -> tuple[SavedFile, bool]:
        """Save one output and record its file."""
        find_saved = partial(self._find_saved, task.ticket, name)
        found = None if overwrite else await find_saved()
        if found is not None:
            return found, False
        job = DownloadJob(
            output=task.outputs[place],
            folder=Path(name[0]),
            stem=name[1],
            identity=f"{self._account.origin} {task.task_id or redact_url(task.outputs[place].url or '')} {place}",
            overwrite=overwrite,
            refresh=partial(refresher.output, place),
            on_progress=self._progress_reporter(task, place),
            find_saved=find_saved,
        )
        file, is_new = await self._downloader.save(job)
        self._saved[name] = file
        while len(self._saved) > MAX_REMEMBERED_FILES:
            self._saved.popitem(last=False)
        try:
            await self._ledger.record_files(task.ticket, [file])
        except Exception as fault:  # noqa: BLE001 - a ledger may be a user's own; the file is there
            log_line(
                logging.WARNING,
                f"{task.ticket}: the saved file could not be recorded: {excerpt(str(fault), 1000)}",
            )
        return file, is_new

    async def _find_saved(self, ticket: str, name: _Name) -> SavedFile | None:
        """The file of an output that was saved in that folder earlier, if it is still there.

        Raises:
            DownloadError: the file has another size by now.
        """
        record = None
        with suppress(LedgerError):  # then only the files that this client has saved are known
            record = await self._ledger.get(ticket)
        known = [*(record.files if record is not None else ()), *filter(None, [self._saved.get(name)])]
        for file in known:
            path = Path(file.path)
            if path.name.startswith(f"{name[1]}.") and str(path.parent) == name[0]:
                size = await in_thread(None, partial(size_of, path))
                if size is not None and size != file.size:
                    raise DownloadError(
                        f"{path} has changed since it was saved ({file.size} bytes then, {size} now): save to another "
                        f"directory, or set overwrite to replace it"
                    )
                return None if size is None else file
        return None

    def _progress_reporter(self, task: Task, place: int) -> Callable[[int, int | None], None]:
        """A function that announces the progress of one file, at most once in `PROGRESS_EVENT_SECONDS`."""
        last, announced = -PROGRESS_EVENT_SECONDS, -1

        def report(size: int, total: int | None) -> None:
            nonlocal last, announced
            now = self._background.clock()
            if size != announced and (now - last >= PROGRESS_EVENT_SECONDS or size == total):
                last, announced = now, size
                self._submissions.announce_files(
                    EventName.SAVING, task, output=place, bytes=size, total=total
                )

        return report

    # Automatically -------------------------------------------------------------------------------------------

    def save_automatically(self, record: Record) -> None:
        """Start to save the result of a submission that has ended, if the client has a directory for that."""
        if self._directory is not None and record.task.status is TaskStatus.SUCCEEDED and record.unsaved:
            self._start_automatic(record.task)

    def _start_automatic(self, task: Task) -> None:
        if (
            self._is_stopped
            or self._directory is None
            or task.ticket in self._automatic
            or task.ticket in self._unsavable
        ):
            return
        saving = self._background.spawn(self._keep_saving(task, self._directory))
        self._automatic[task.ticket] = saving
        saving.add_done_callback(partial(self._forget_automatic, task.ticket))

    def _forget_automatic(self, ticket: str, saving: asyncio.Task[None]) -> None:
        self._automatic.pop(ticket, None)
        self._failing.discard(ticket)
        if not saving.cancelled() and (fault := saving.exception()) is not None:
            log_line(logging.ERROR, f"{ticket}: the automatic save has ended: {type(fault).__name__}", fault)

    async def _keep_saving(self, task: Task, directory: Path) -> None:
        """Try until the result is saved, or no longer can be."""
        pause, until, announced = FIRST_PAUSE_SECONDS, self._background.clock() + GIVE_UP_SECONDS, ""
        while True:
            error = await self._save_once(task, directory)
            if error is None:
                return
            self._failing.add(task.ticket)
            if str(error) != announced:  # the same fault for hours is announced once
                announced = str(error)
                self._submissions.announce_files(EventName.UNSAVED, task, error=error)
            if not error.retryable or self._background.clock() > until:
                if self._ledger.durable:  # no check of a ledger that is not durable finds it again
                    self._unsavable.add(task.ticket)
                return
            # Even if a server asks for a long wait: try again before the result expires.
            requested = min(error.retry_after or 0.0, _time_left(task) / 2)
            await asyncio.sleep(max(pause, requested))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _save_once(self, task: Task, directory: Path) -> DownloadError | None:
        """Try once to save the result. Returns the error, or None."""
        try:
            await self.save(task, directory, output=None, overwrite=False)
        except DownloadError as error:
            return error
        except Exception as fault:  # noqa: BLE001 - the result is paid for: any fault is followed by another try
            text = f"it could not be saved: {type(fault).__name__}: {excerpt(str(fault), 1000)}"
            return DownloadError(text, retryable=True, ticket=task.ticket, task_id=task.task_id)
        return None

    async def settle(self) -> None:
        """Wait until each automatic save that is under way now has ended or has failed once."""
        self._adopts, is_logged = False, False  # results of other clients could come without end
        waits = {ticket: task for ticket, task in self._automatic.items() if ticket not in self._failing}
        while waits:
            await asyncio.wait(waits.values(), timeout=SETTLE_CHECK_SECONDS)
            waits = {
                ticket: task for ticket, task in waits.items() if not (task.done() or ticket in self._failing)
            }
            if waits and not is_logged:
                is_logged = True
                some = next(lines_of_ids(list(waits)))
                log_line(logging.INFO, f"waiting for {len(waits)} results to be saved, by ticket: {some}")

    async def settle_within(self, seconds: float) -> None:
        """Do the same for at most *seconds*. Then stop, and log the tickets of the results that are not saved."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.settle()
        self.stop()
        left = [ticket for ticket in list(self._automatic) if not await self._is_saved(ticket)]
        for some in lines_of_ids(left):
            log_line(
                logging.WARNING,
                f"closed with {len(left)} results not saved yet, by ticket: {some}; their bytes so far stay in part "
                f"files, and a client that saves them before they expire continues there",
            )

    async def _is_saved(self, ticket: str) -> bool:
        """Whether the result was saved meanwhile, on request or by another client."""
        with suppress(LedgerError):
            record = await self._ledger.get(ticket)
            return record is not None and not record.unsaved
        return False

    # Expiry --------------------------------------------------------------------------------------------------

    async def _watch_for_expiry(self) -> None:
        """Adopt the unsaved results of other clients, if this client adopts, and warn of results that expire soon."""
        is_first = True
        while True:
            try:
                unsaved = await self._ledger.unsaved_records(self._account.origin, self._account.keys)
            except Exception as fault:  # noqa: BLE001 - a ledger may be a user's own; it is read again
                log_line(logging.WARNING, f"the unsaved results cannot be read: {excerpt(str(fault), 1000)}")
                await asyncio.sleep(EXPIRY_CHECK_SECONDS)
                continue
            self._unsavable &= {record.ticket for record in unsaved}
            for record in unsaved if self._adopts else ():
                if is_first or _is_orphaned(record.task):
                    self._start_automatic(record.task)
            self._warn_of(unsaved)
            is_first = False
            await asyncio.sleep(EXPIRY_CHECK_SECONDS)

    def _warn_of(self, unsaved: Sequence[Record]) -> None:
        soon = [(left, record) for record in unsaved if (left := _seconds_left_if_soon(record)) is not None]
        self._warned &= {record.ticket for _, record in soon}
        for left, record in soon:
            if record.ticket not in self._warned | self._automatic.keys():
                self._warned.add(record.ticket)
                self._submissions.announce_files(
                    EventName.UNSAVED,
                    record.task,
                    seconds=left,
                    error=DownloadError(
                        f"this result is not saved, and its address stops working in {left / 60:.0f} min: "
                        f"client.attach(ticket={record.ticket!r}) and save it, or bide resume --save DIR",
                        retryable=True,
                        ticket=record.ticket,
                        task_id=record.task.task_id,
                    ),
                )


class _Refresher:
    """Queries the outputs of a task again, since their addresses may have changed."""

    def __init__(self, account: Account, background: Background, task: Task) -> None:
        self._account = account
        self._background = background
        self._task = task
        self._query: asyncio.Task[tuple[Output, ...]] | None = None
        self._queried_at = -math.inf

    async def output(self, place: int, since: float) -> Output | None:
        """The output at *place* by a query made after *since*, or None if the service gives none any more.

        Callers with the same *since* share one query.

        Raises:
            DownloadError: the service could not be queried.
        """
        if self._query is None or self._queried_at < since:
            self._query, self._queried_at = (
                self._background.spawn(self._query_outputs()),
                self._background.clock(),
            )
        outputs = await wait_unless_closed(self._query)
        found = outputs[place] if place < len(outputs) else None
        return None if found is None or (found.url is None and found.data is None) else found

    async def _query_outputs(self) -> tuple[Output, ...]:
        task_id = self._task.task_id
        if task_id is None:
            return ()
        key = await self._key(task_id)
        for attempt in range(MAX_QUERIES):
            async with self._account.place():
                outcome = await self._account.query(key, task_id)
            match outcome:
                case TryAgain(error) | Denied(error):
                    fault: BideError = error
                case Gone(error):
                    log_line(logging.DEBUG, f"no fresh address for {task_id}: {excerpt(str(error), 1000)}")
                    return ()
                case Task():
                    return outcome.outputs
            if attempt < MAX_QUERIES - 1:
                await asyncio.sleep(2.0**attempt)
        raise DownloadError(
            f"the address of the result no longer works, and the service could not be queried for a fresh one: "
            f"{fault}",
            retryable=True,
        )

    async def _key(self, task_id: str) -> str:
        """The key with which the task was created."""
        with suppress(LedgerError):
            record = await self._account.ledger.get(self._task.ticket)
            if record is not None and record.key in self._account.keys:
                return record.key
        return await self._account.key_of(task_id)


def _wanted(task: Task, output: int | None) -> list[int]:
    """The numbers of the outputs to save.

    Raises:
        ValueError: there is nothing to save, or the ticket cannot name a file.
    """
    name = task.task_id or task.ticket
    if task.status is not TaskStatus.SUCCEEDED:
        raise ValueError(f"nothing to save: {name} is {task.status}, not succeeded: await handle.result()")
    if not is_ticket(task.ticket):
        raise ValueError(f"the ticket {excerpt(repr(task.ticket), 80)} cannot name a file")
    if output is None:
        return [place for place, each in enumerate(task.outputs) if each.error is None]
    check_output(output)
    if output >= len(task.outputs):
        raise ValueError(f"output must be from 0 to {len(task.outputs) - 1} for {name}, not {output!r}")
    error = task.outputs[output].error
    if error is not None:
        raise ValueError(f"output {output} of {name} has no file: {error.code or ''} {error.message or ''}")
    return [output]


def _joined_fault(faults: Sequence[BaseException], files: Sequence[SavedFile], task: Task) -> BaseException:
    """The first of *faults*; its notes name the other faults and the saved files."""
    first = faults[0]
    if isinstance(first, BideError):
        first = first.about(ticket=task.ticket, task_id=task.task_id, bought=True)
    if isinstance(first, DownloadError):
        first.retryable = any(getattr(fault, "retryable", True) for fault in faults)
    for fault in faults[1:]:
        first.add_note(f"and: {fault}")
    if files:
        first.add_note(f"these files were saved: {', '.join(file.path for file in files)}")
    return first


def _is_orphaned(task: Task) -> bool:
    return task.finished_at is None or _outside.wall_time() - task.finished_at.timestamp() > ORPHAN_SECONDS


def _time_left(task: Task) -> float:
    """Seconds until the first result of *task* expires; one hour if that is not known."""
    ends = [each.expires_at.timestamp() for each in task.outputs if each.expires_at is not None]
    return max(0.0, min(ends) - _outside.wall_time()) if ends else 3600.0


def _seconds_left_if_soon(record: Record) -> float | None:
    """Seconds for which the first unsaved result can still be fetched; None if no warning is due."""
    ends = min(record.losses, default=math.inf)
    left, before = ends - _outside.wall_time(), WARNING_SECONDS
    if record.task.finished_at is not None:
        before = min(before, (ends - record.task.finished_at.timestamp()) / 2)
    return left if 0 < left <= before else None
