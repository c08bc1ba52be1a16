"""Saving results: what is asked for, what is saved by itself, what is on record of it, and what expires unsaved."""

from __future__ import annotations

import asyncio
import logging
import math
import stat
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, evolve

from bide._concurrency import in_thread, wait_done, wait_unless_closed
from bide._downloads.download import Job
from bide._downloads.downloader import Downloader
from bide._downloads.paths import check_output, folder_of
from bide._events import EventName, log_line
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
"""Of one file: its folder, its name without the extension, and the task that it is a result of."""

REMEMBERED = 1000
"""Files that a client remembers to have saved."""
LOOKS = 3
"""Times that a service is asked for a fresh address before its fault is told."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds until a result that is saved by itself is tried again."""
GIVE_UP_AFTER = 24 * 3600.0
"""Seconds for which that goes on, where nothing tells before that the result is gone."""
CHECK_EVERY = 60.0
"""Seconds between two checks for results that expire unsaved."""
WARN_BEFORE = 3600.0
"""Seconds before its expiry that an unsaved result is warned of; of a short life, the half."""
LEFT_AFTER = 300.0
"""Seconds after its end at which a result that is still unsaved counts as left by whoever was to save it."""
TELL_EVERY = 0.2
"""Seconds between two events of the progress of one file."""
SETTLE_POLL = 1.0
IDS_A_LINE = 50


@define(eq=False)
class _Running:
    """One file on its way, whether it replaces what is there, and how many wait for it."""

    task: asyncio.Task[tuple[SavedFile, bool]]
    overwrites: bool
    waiters: int = 0
    is_told: bool = False


class Saver:
    """How the results of one client are saved.

    Args:
        directory: where each result is saved as soon as it is there; None saves what is asked for alone.
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
        self._running: dict[_Name, _Running] = {}
        self._saved: OrderedDict[_Name, SavedFile] = OrderedDict()  # of late: a ledger may keep no record
        self._by_itself: dict[str, asyncio.Task[None]] = {}  # by ticket
        self._failing: set[str] = set()  # those of them that have failed so far
        self._hopeless: set[str] = set()  # tickets that cannot be saved by any try
        self._warned: set[str] = set()
        self._is_over = False
        self._takes_over = adopts

    def start(self) -> None:
        """Begin with what others have left unsaved, and to watch for what expires so."""
        if self._ledger.durable:
            self._background.spawn(self._watch_for_expiry())

    def stop(self) -> None:
        """Begin with nothing more: what ends from now on is left to whoever comes next."""
        self._is_over = True

    async def aclose(self) -> None:
        """Let go of connections and threads. Nothing is on its way any more."""
        await self._downloader.aclose()
        await self._fetcher.aclose()

    # What is asked for -------------------------------------------------------------------------------------

    async def save(
        self, task: Task, directory: str | os.PathLike[str], *, output: int | None, overwrite: bool
    ) -> list[SavedFile]:
        """See `Client.save`."""
        folder, wanted = folder_of(directory), _wanted(task, output)
        try:
            _absolute(folder)
        except OSError as error:
            raise DownloadError(f"the directory {str(folder)!r} is nowhere: {error}") from None
        began = self._background.clock()
        fresh = _Fresh(self._account, self._background, task)
        waits = [
            asyncio.ensure_future(self._shared(task, place, folder, fresh, overwrite=overwrite))
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
            raise _told(faults, files, task)
        return files

    async def _shared(
        self, task: Task, place: int, folder: Path, fresh: _Fresh, *, overwrite: bool
    ) -> tuple[SavedFile, bool]:
        """Save one output, or wait with others for whom it is being saved. The last one to leave cancels it."""
        name = (_absolute(folder), f"{task.ticket}-{place}", task.task_id)
        while (running := self._running.get(name)) is not None and (
            running.task.cancelling() or (overwrite and not running.overwrites)
        ):
            await asyncio.wait([running.task])
            self._background.check()
        if running is None:
            saving = self._background.spawn(self._save(task, place, name, fresh, overwrite=overwrite))
            running = self._running[name] = _Running(saving, overwrite)
            saving.add_done_callback(lambda _: self._running.pop(name, None))
        running.waiters += 1
        try:
            file, is_new = await wait_unless_closed(running.task)
        finally:
            running.waiters -= 1
            if not running.waiters and not running.task.done():
                running.task.cancel()
                await wait_done(running.task)
        is_mine = is_new and not running.is_told
        running.is_told = running.is_told or is_new
        return evolve(file, path=str(folder / Path(file.path).name)), is_mine

    async def _save(
        self, task: Task, place: int, name: _Name, fresh: _Fresh, *, overwrite: bool
    ) -> tuple[SavedFile, bool]:
        """Save one output, and put it on record."""
        there = partial(self._there, task.ticket, name)
        found = None if overwrite else await there()
        if found is not None:
            return found, False
        job = Job(
            output=task.outputs[place],
            folder=Path(name[0]),
            stem=name[1],
            identity=f"{self._account.origin} {task.task_id or redact_url(task.outputs[place].url or '')} {place}",
            overwrite=overwrite,
            fresh=partial(fresh.output, place),
            heard=self._teller(task, place),
            there=there,
        )
        file, is_new = await self._downloader.save(job)
        self._saved[name] = file
        while len(self._saved) > REMEMBERED:
            self._saved.popitem(last=False)
        try:
            await self._ledger.record_files(task.ticket, [file])
        except Exception as fault:  # noqa: BLE001 - a ledger may be anybody's; the file is there
            log_line(
                logging.WARNING,
                f"{task.ticket}: what was saved could not be recorded: {excerpt(str(fault), 1000)}",
            )
        return file, is_new

    async def _there(self, ticket: str, name: _Name) -> SavedFile | None:
        """The file of an output that is known to be saved in that folder, if it is still there.

        Raises:
            DownloadError: it is, and is another one by now.
        """
        record = None
        with suppress(LedgerError):  # then only what this client has saved is known
            record = await self._ledger.get(ticket)
        known = [*(record.files if record is not None else ()), *filter(None, [self._saved.get(name)])]
        for file in known:
            path = Path(file.path)
            if path.name.startswith(f"{name[1]}.") and str(path.parent) == name[0]:
                size = await in_thread(None, partial(_size_of, path))
                if size is not None and size != file.size:
                    raise DownloadError(
                        f"{path} has changed since it was saved ({file.size} bytes then, {size} now): save to another "
                        f"directory, or with overwrite=True to replace it"
                    )
                return None if size is None else file
        return None

    def _teller(self, task: Task, place: int) -> Callable[[int, int | None], None]:
        """Tells how far a file is, now and then."""
        last, told = -TELL_EVERY, -1

        def heard(size: int, total: int | None) -> None:
            nonlocal last, told
            now = self._background.clock()
            if size != told and (now - last >= TELL_EVERY or size == total):
                last, told = now, size
                self._submissions.announce_files(
                    EventName.SAVING, task, output=place, bytes=size, total=total
                )

        return heard

    # What is saved by itself ---------------------------------------------------------------------------------

    def save_automatically(self, record: Record) -> None:
        """A submission of the client's has ended: its result is saved, if that was asked for."""
        if self._directory is not None and record.task.status is TaskStatus.SUCCEEDED and record.unsaved:
            self._save_by_itself(record.task)

    def _save_by_itself(self, task: Task) -> None:
        if (
            self._is_over
            or self._directory is None
            or task.ticket in self._by_itself
            or task.ticket in self._hopeless
        ):
            return
        saving = self._background.spawn(self._keep_saving(task, self._directory))
        self._by_itself[task.ticket] = saving
        saving.add_done_callback(partial(self._no_more, task.ticket))

    def _no_more(self, ticket: str, saving: asyncio.Task[None]) -> None:
        self._by_itself.pop(ticket, None)
        self._failing.discard(ticket)
        if not saving.cancelled() and (fault := saving.exception()) is not None:
            log_line(
                logging.ERROR, f"{ticket} is not saved by itself any more: {type(fault).__name__}", fault
            )

    async def _keep_saving(self, task: Task, directory: Path) -> None:
        """Save until it is saved, or cannot be any more."""
        pause, until, told = FIRST_PAUSE, self._background.clock() + GIVE_UP_AFTER, ""
        while True:
            error = await self._save_once(task, directory)
            if error is None:
                return
            self._failing.add(task.ticket)
            if str(error) != told:  # the same fault for hours is told once
                told = str(error)
                self._submissions.announce_files(EventName.UNSAVED, task, error=error)
            if not error.retryable or self._background.clock() > until:
                if self._ledger.durable:  # else nobody comes by it again
                    self._hopeless.add(task.ticket)
                return
            # What a server asks for is no reason to come when the result has expired.
            asked = min(error.retry_after or 0.0, _time_left(task) / 2)
            await asyncio.sleep(max(pause, asked))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _save_once(self, task: Task, directory: Path) -> DownloadError | None:
        """Save it; what was in the way."""
        try:
            await self.save(task, directory, output=None, overwrite=False)
        except DownloadError as error:
            return error
        except Exception as fault:  # noqa: BLE001 - whatever it is, the result is paid for, and tried again
            words = f"it could not be saved: {type(fault).__name__}: {excerpt(str(fault), 1000)}"
            return DownloadError(words, retryable=True, ticket=task.ticket, task_id=task.task_id)
        return None

    async def settle(self) -> None:
        """Wait until all that is saved by itself now is saved, or has failed once."""
        self._takes_over, is_told = False, False  # what others have left would have no end
        waits = {ticket: task for ticket, task in self._by_itself.items() if ticket not in self._failing}
        while waits:
            await asyncio.wait(waits.values(), timeout=SETTLE_POLL)
            waits = {
                ticket: task for ticket, task in waits.items() if not (task.done() or ticket in self._failing)
            }
            if waits and not is_told:
                is_told = True
                some = ", ".join(list(waits)[:IDS_A_LINE])
                log_line(logging.INFO, f"waiting for {len(waits)} results to be saved, by ticket: {some}")

    async def settle_within(self, seconds: float) -> None:
        """The same for at most so many *seconds*; what is left then is told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.settle()
        self.stop()
        left = [ticket for ticket in list(self._by_itself) if not await self._is_saved(ticket)]
        for start in range(0, len(left), IDS_A_LINE):
            some = ", ".join(left[start : start + IDS_A_LINE])
            log_line(
                logging.WARNING,
                f"closed with {len(left)} results not saved yet, by ticket: {some}; what has come of them stays in "
                f"part files, and a client that saves them while the service keeps them goes on",
            )

    async def _is_saved(self, ticket: str) -> bool:
        """Whether it was saved after all, by whoever asked for it."""
        with suppress(LedgerError):
            record = await self._ledger.get(ticket)
            return record is not None and not record.unsaved
        return False

    # What expires --------------------------------------------------------------------------------------------

    async def _watch_for_expiry(self) -> None:
        """Save what others have left unsaved, if results are saved by themselves, and warn of what expires soon."""
        is_first = True
        while True:
            try:
                unsaved = await self._ledger.unsaved_records(self._account.origin, self._account.keys)
            except Exception as fault:  # noqa: BLE001 - a ledger may be anybody's; it is asked again
                log_line(logging.WARNING, f"what is unsaved cannot be read: {excerpt(str(fault), 1000)}")
                await asyncio.sleep(CHECK_EVERY)
                continue
            self._hopeless &= {record.ticket for record in unsaved}
            for record in unsaved if self._takes_over else ():
                if is_first or _is_left(record.task):
                    self._save_by_itself(record.task)
            self._warn_of(unsaved)
            is_first = False
            await asyncio.sleep(CHECK_EVERY)

    def _warn_of(self, unsaved: Sequence[Record]) -> None:
        soon = [(left, record) for record in unsaved if (left := _left(record)) is not None]
        self._warned &= {record.ticket for _, record in soon}
        for left, record in soon:
            if record.ticket not in self._warned | self._by_itself.keys():
                self._warned.add(record.ticket)
                self._submissions.announce_files(
                    EventName.UNSAVED,
                    record.task,
                    seconds=left,
                    error=DownloadError(
                        f"nobody has saved this result, and its address stops working in {left / 60:.0f} min: "
                        f"client.attach(ticket={record.ticket!r}) and save it, or bide resume --save DIR",
                        retryable=True,
                        ticket=record.ticket,
                        task_id=record.task.task_id,
                    ),
                )


class _Fresh:
    """The outputs of a task, asked for once more: its addresses may be other ones by now."""

    def __init__(self, account: Account, background: Background, task: Task) -> None:
        self._account = account
        self._background = background
        self._task = task
        self._asking: asyncio.Task[tuple[Output, ...]] | None = None
        self._asked_at = -math.inf

    async def output(self, place: int, since: float) -> Output | None:
        """The output at *place* as the service tells it after the moment *since*, or None if it gives none any more.

        However many ask for what is told after one moment, it is asked once.

        Raises:
            DownloadError: the service could not be asked.
        """
        if self._asking is None or self._asked_at < since:
            self._asking, self._asked_at = self._background.spawn(self._asked()), self._background.clock()
        outputs = await wait_unless_closed(self._asking)
        found = outputs[place] if place < len(outputs) else None
        return None if found is None or (found.url is None and found.data is None) else found

    async def _asked(self) -> tuple[Output, ...]:
        task_id = self._task.task_id
        if task_id is None:
            return ()
        key = await self._key(task_id)
        for attempt in range(LOOKS):
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
            if attempt < LOOKS - 1:
                await asyncio.sleep(2.0**attempt)
        raise DownloadError(
            f"the address of the result does not work any more, and the service could not be asked for another one: "
            f"{fault}",
            retryable=True,
        )

    async def _key(self, task_id: str) -> str:
        """The key that the task was made with."""
        with suppress(LedgerError):
            record = await self._account.ledger.get(self._task.ticket)
            if record is not None and record.key in self._account.keys:
                return record.key
        return await self._account.key_of(task_id)


def _wanted(task: Task, output: int | None) -> list[int]:
    """The places of the outputs to save.

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


def _told(faults: Sequence[BaseException], files: Sequence[SavedFile], task: Task) -> BaseException:
    """The first of *faults*, with what else came of the task."""
    first = faults[0]
    if isinstance(first, BideError):
        first = first.about(ticket=task.ticket, task_id=task.task_id)
    if isinstance(first, DownloadError):
        first.retryable = any(getattr(fault, "retryable", True) for fault in faults)
    for fault in faults[1:]:
        first.add_note(f"and: {fault}")
    if files:
        first.add_note(f"saved all the same: {', '.join(file.path for file in files)}")
    return first


def _absolute(path: str | Path) -> str:
    # Links stay links: what they name may change. But "a/.." may be anywhere then.
    path = Path(path).absolute()
    return str(path.resolve() if ".." in path.parts else path)


def _size_of(path: Path) -> int | None:
    """The size of a file; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _is_left(task: Task) -> bool:
    return task.finished_at is None or time.time() - task.finished_at.timestamp() > LEFT_AFTER


def _time_left(task: Task) -> float:
    """Seconds until the first result of *task* expires, as far as anybody knows: an hour where nobody does."""
    ends = [each.expires_at.timestamp() for each in task.outputs if each.expires_at is not None]
    return max(0.0, min(ends) - time.time()) if ends else 3600.0


def _left(record: Record) -> float | None:
    """Seconds that the first unsaved result can still be fetched; None if that is long."""
    ends = min(record.losses, default=math.inf)
    left, before = ends - time.time(), WARN_BEFORE
    if record.task.finished_at is not None:
        before = min(before, (ends - record.task.finished_at.timestamp()) / 2)
    return left if 0 < left <= before else None
