"""`bide image`, `video`, `watch`, `cancel` and `resume`: what their words mean for the library."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from bide import BideError, Client, LedgerError, TaskStatus
from bide.cli._exits import FAILED, OK, status_of, worst
from bide.cli._ledger import Found, Place, find, prompt_of
from bide.cli._out import Stream
from bide.cli._prompts import prompts_from
from bide.cli._run import LAST_WORDS, Item, Manner, keep_the_log_quiet, run
from bide.cli._text import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from bide import Provider, Request, TaskHandle
    from bide.cli._run import Wishes
    from bide.ledgers import Record


MOST_TIMES = 100
"""Tasks of one prompt."""
CANCEL_PATIENCE = 15.0
"""Seconds that a cancel may wait for the answer of a create under way."""
REMEMBERED = 24 * 3600.0
"""Seconds after its end for which a service may still know a task: DashScope's documents name them for its ids."""


# Making ------------------------------------------------------------------------------------------------------


def generate(
    provider: Provider,
    request: Callable[[str], Request],
    words: Sequence[str],
    file: Path | None,
    wishes: Wishes,
    place: Place,
    *,
    times: int = 1,
) -> int:
    """Submit a request for each prompt, so many *times*, and follow it; returns the exit status.

    Raises:
        ValueError, TypeError: there are no prompts, or the options make no request. Nothing was sent.
        OSError: *file* cannot be read.
        LedgerError: the ledger cannot be opened. Nothing was sent.
    """
    if not 1 <= times <= MOST_TIMES:
        raise ValueError(f"-n is from 1 to {MOST_TIMES}, not {times}")
    prompts, total = prompts_from(words, file)
    for word in words or ["any"]:  # options that make no request are told before anything is sent
        provider.create_call(request(word), "check")

    async def items(_client: Client) -> AsyncIterator[Item]:
        async for prompt in prompts:
            for _ in range(times):
                yield Item(prompt, partial(_submit, request, prompt))

    try:
        manner = Manner("resume", place, place.ledger(), makes=True)
    except ImportError as error:  # Windows, or a Python that was built without SQLite
        if wishes.detach:
            raise ValueError(f"--detach needs a ledger: {error}") from None
        print(f"bide: {error}; going on without a ledger: a crash loses what runs", file=sys.stderr)
        manner = Manner("watch", makes=True)
    return run(provider, wishes, items, None if total is None else total * times, manner)


async def _submit(request: Callable[[str], Request], prompt: str, client: Client) -> TaskHandle:
    return await client.submit(request(prompt))


# Watching ----------------------------------------------------------------------------------------------------


def watch(provider: Provider, words: Sequence[str], wishes: Wishes, place: Place) -> int:
    """Follow tasks that exist already, by id or ticket; returns the exit status.

    What is on record is followed there. Other ids need no ledger: they are not put on record.

    Raises:
        ValueError: no ids were given.
    """
    _check(words)
    # Files are named, and found again, by what is on record.
    found = _found(place, words, ended=wishes.save is not None)

    async def items(_: Client) -> AsyncIterator[Item]:
        for word in dict.fromkeys(words):
            record = found.tickets.get(word)
            if record is None:
                yield Item(word, partial(_attach, word), word)
            else:
                yield Item(_label(record), partial(_attach_record, record, word), word)

    manner = Manner("watch")
    if found.tickets:
        # What waits with nobody to send it would be waited for in vain.
        waits = any(record.task.status is TaskStatus.WAITING for record in found.tickets.values())
        manner = Manner("watch", place, place.ledger(), adopts=waits)
    return run(provider, wishes, items, len(set(words)), manner)


def resume(provider: Provider, wishes: Wishes, place: Place) -> int:
    """Follow all that is open on the ledger; returns the exit status.

    With `save` what was never saved is fetched before that, the most urgent first.

    Raises:
        LedgerError: the ledger cannot be opened.
    """
    if not place.exists:
        print(f"bide: nothing to resume: there is no ledger at {place.path} yet", file=sys.stderr)
        return OK
    ledger = place.ledger()
    count = 0
    lost: list[str] = []

    async def items(client: Client) -> AsyncIterator[Item]:
        nonlocal count
        is_open = {handle.ticket: handle for handle in await client.resume()}
        records = await ledger.records(all=True) if wishes.save is not None else ()
        unsaved = [record for record in records if record.unsaved and record.ticket not in is_open]
        now = time.time()
        for record in sorted(unsaved, key=lambda each: _expires(each, now)):
            handle = None if _is_lost(record, now) else await _on_record(client, record)
            if handle is not None:
                count += 1
                yield Item(_label(record), partial(_given, handle), record.task.task_id or record.ticket)
        for handle in is_open.values():
            count += 1
            label = getattr(handle.request, "prompt", None) or handle.task_id or handle.ticket
            yield Item(label, partial(_given, handle), handle.task_id or handle.ticket)
        lost.extend(
            [
                record.task.task_id or record.ticket
                for record in unsaved
                if _is_lost(record, now) and await _on_record(client, record) is not None
            ]
        )

    status = run(provider, wishes, items, None, Manner("resume", place, ledger, adopts=True))
    if status == OK and not count:
        print(f"bide: nothing is open for this key in {place.path}", file=sys.stderr)
    if lost:
        ids = plain(", ".join(lost), 2000)
        print(f"bide: {len(lost)} expired unsaved: {ids}", file=sys.stderr)
    return status


async def _on_record(client: Client, record: Record) -> TaskHandle | None:
    """The handle of *record*; None if it is of another service or key, or was just removed, since it is old."""
    try:
        return await client.attach(ticket=record.ticket)
    except (ValueError, LookupError):
        return None


def _expires(record: Record, now: float) -> float:
    """When the first of its unsaved results is lost that can be fetched yet."""
    return min((moment for moment in record.losses if moment > now), default=math.inf)


def _is_lost(record: Record, now: float) -> bool:
    """Whether its addresses have expired, and its service has forgotten the task, so that it gives no fresh ones."""
    ended = record.task.finished_at or record.added_at
    is_forgotten = ended is not None and now - ended.timestamp() > REMEMBERED
    return is_forgotten and all(moment <= now for moment in record.losses)


def _label(record: Record) -> str:
    return prompt_of(record) or record.task.task_id or record.ticket


async def _attach(task_id: str, client: Client) -> TaskHandle:
    return await client.attach(task_id)


async def _attach_record(record: Record, word: str, client: Client) -> TaskHandle:
    try:
        return await client.attach(ticket=record.ticket)
    except ValueError:  # it was made with another key, of the same account perhaps
        if word == record.ticket or not record.task.status.is_final:
            raise
        return await client.attach(word)


async def _given(handle: TaskHandle, _: Client) -> TaskHandle:
    return handle


# Cancelling --------------------------------------------------------------------------------------------------


def cancel(provider: Provider, words: Sequence[str], place: Place) -> int:
    """Cancel tasks, by id or ticket; returns the exit status.

    Raises:
        ValueError: no ids were given.
    """
    _check(words)
    keep_the_log_quiet()
    return asyncio.run(_cancel_all(provider, words, _found(place, words), place))


async def _cancel_all(provider: Provider, words: Sequence[str], found: Found, place: Place) -> int:
    stdout, stderr = Stream(sys.stdout, "standard output"), Stream(sys.stderr, "standard error")
    statuses = set()
    for word in dict.fromkeys(words):
        record = found.tickets.get(word)
        # What the service has is cancelled there, whoever drives it; what it has not, on the ledger.
        on_ledger = record is not None and not record.task.status.is_accepted
        ledger = place.ledger() if on_ledger else None
        try:
            async with Client(provider, ledger=ledger, adopt=False) as client:
                if record is not None and on_ledger:
                    handle = await client.attach(ticket=record.ticket)
                else:
                    handle = await client.attach(word if record is None else record.task.task_id)
                async with asyncio.timeout(CANCEL_PATIENCE if ledger is not None else None):
                    is_cancelled = await handle.cancel()
                if is_cancelled:
                    stdout.put(word)
                    continue
                await handle.refresh()
                stderr.put(f"bide: {word} is {handle.task.status}: too late to cancel it")
                statuses.add(FAILED)
        except TimeoutError:
            stderr.put(
                f"bide: {word} is being submitted: it is cancelled once its create is answered, by whoever drives it "
                f"({place.command('resume')} if nobody does)"
            )
            statuses.add(FAILED)
        except (BideError, ValueError, LookupError) as error:
            stderr.put(f"bide: {plain(str(error), 2000)}")
            statuses.add(status_of(error))
    for stream in (stdout, stderr):
        stream.flush(LAST_WORDS)
    return worst(statuses)


def _check(words: Sequence[str]) -> None:
    if not words:
        raise ValueError("give at least one task id, as the service gave it, or ticket")


def _found(place: Place, words: Sequence[str], *, ended: bool = False) -> Found:
    """What is on record of *words*. A ledger that cannot be read is told: ids do not need it."""
    if not place.exists:
        return Found({})
    keep_the_log_quiet()
    try:
        return asyncio.run(find(place.ledger(), words, ended=ended))
    except (LedgerError, ImportError) as error:
        print(f"bide: {plain(str(error), 2000)}; going on without it", file=sys.stderr)
        return Found({})
