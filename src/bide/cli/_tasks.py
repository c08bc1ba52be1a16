"""`bide image`, `video`, `watch`, `resume` and `cancel`: how each uses the library."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from bide import BideError, Client, LedgerError, TaskStatus
from bide.cli._follow import Item, Mode, follow
from bide.cli._messages import FAILED, OK, exit_status, worst_status
from bide.cli._output import Stream, one_line, silence_log
from bide.cli._place import Place, find_records, prompt_of
from bide.cli._prompts import read_prompts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from bide import Provider, Request, TaskHandle
    from bide.cli._follow import Goal
    from bide.ledgers import Record


MAX_TASKS_PER_PROMPT = 100
CANCEL_SECONDS = 15.0
"""How long a cancel waits for the answer to a create under way."""
TASK_KEPT_SECONDS = 24 * 3600.0
"""Seconds after its end for which a service may still know a task: DashScope's documents say this of its task ids."""


# Creating ----------------------------------------------------------------------------------------------------


def generate(
    provider: Provider,
    request: Callable[[str], Request],
    words: Sequence[str],
    file: Path | None,
    goal: Goal,
    place: Place,
    *,
    times: int = 1,
) -> int:
    """Submit *times* requests for each prompt, and follow them; returns the exit status.

    Raises:
        ValueError, TypeError: there are no prompts, or the options do not fit the request. Nothing was sent.
        OSError: *file* cannot be read.
        LedgerError: the ledger cannot be opened. Nothing was sent.
    """
    if not 1 <= times <= MAX_TASKS_PER_PROMPT:
        raise ValueError(f"-n must be from 1 to {MAX_TASKS_PER_PROMPT}, not {times}")
    prompts, total = read_prompts(words, file)
    for word in words or ["any"]:  # so wrong options are reported before anything is sent
        provider.create_call(request(word), "check")

    async def items(_client: Client) -> AsyncIterator[Item]:
        async for prompt in prompts:
            for _ in range(times):
                yield Item(prompt, partial(_submit, request, prompt))

    try:
        mode = Mode("resume", place, place.ledger(), creates=True)
    except ImportError as error:  # Windows, or a Python that was built without SQLite
        if goal.detach:
            raise ValueError(f"--detach needs a ledger: {error}") from None
        print(f"bide: {error}; continuing without a ledger: a crash loses the running tasks", file=sys.stderr)
        mode = Mode("watch", creates=True)
    return follow(provider, goal, items, None if total is None else total * times, mode)


async def _submit(request: Callable[[str], Request], prompt: str, client: Client) -> TaskHandle:
    return await client.submit(request(prompt))


# Watching ----------------------------------------------------------------------------------------------------


def watch(provider: Provider, words: Sequence[str], goal: Goal, place: Place) -> int:
    """Follow existing tasks, by id or ticket; returns the exit status.

    A task on record is followed through the ledger. Other ids need no ledger, and are not put on record.

    Raises:
        ValueError: no ids were given.
    """
    _check(words)
    # With --save, ended tasks are looked up too: the record gives the files their names.
    records = _records_named(place, words, ended=goal.save is not None)

    async def items(_: Client) -> AsyncIterator[Item]:
        for word in dict.fromkeys(words):
            record = records.get(word)
            if record is None:
                yield Item(word, partial(_attach, word), word)
            else:
                yield Item(_label(record), partial(_attach_record, record), word)

    mode = Mode("watch")
    if records:
        # A waiting record that no process drives would never be sent: adopt it.
        waits = any(record.task.status is TaskStatus.WAITING for record in records.values())
        mode = Mode("watch", place, place.ledger(), adopts=waits)
    return follow(provider, goal, items, len(set(words)), mode)


def resume(provider: Provider, goal: Goal, place: Place, *, other_keys: bool = False) -> int:
    """Follow all open records of the ledger; returns the exit status.

    With `goal.save`, results that were never saved are fetched first, in the order in which they expire.

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
        open_handles = {handle.ticket: handle for handle in await client.resume(other_keys=other_keys)}
        records = await ledger.records(all=True) if goal.save is not None else ()
        unsaved = [record for record in records if record.unsaved and record.ticket not in open_handles]
        now = time.time()
        for record in sorted(unsaved, key=lambda each: _first_expiry(each, now)):
            handle = None if _is_lost(record, now) else await _handle_of(client, record)
            if handle is not None:
                count += 1
                yield Item(_label(record), partial(_return, handle), record.task.task_id or record.ticket)
        for handle in open_handles.values():
            count += 1
            label = getattr(handle.request, "prompt", None) or handle.task_id or handle.ticket
            yield Item(label, partial(_return, handle), handle.task_id or handle.ticket)
        lost.extend(
            [
                record.task.task_id or record.ticket
                for record in unsaved
                if _is_lost(record, now) and await _handle_of(client, record) is not None
            ]
        )

    status = follow(provider, goal, items, None, Mode("resume", place, ledger, adopts=True))
    if status == OK and not count:
        print(f"bide: nothing is open for this key in {place.path}", file=sys.stderr)
    if lost:
        ids = one_line(", ".join(lost), 2000)
        print(f"bide: {len(lost)} expired unsaved: {ids}", file=sys.stderr)
    return status


async def _handle_of(client: Client, record: Record) -> TaskHandle | None:
    """The handle of *record*; None if it belongs to another service or key, or was just removed as too old."""
    try:
        return await client.attach(ticket=record.ticket)
    except (ValueError, LookupError):
        return None


def _first_expiry(record: Record, now: float) -> float:
    """When the next of its unsaved results expires; those that have already expired do not count."""
    return min((moment for moment in record.losses if moment > now), default=math.inf)


def _is_lost(record: Record, now: float) -> bool:
    """Whether its addresses have expired, and the service no longer knows the task and so gives no new ones."""
    ended = record.task.finished_at or record.added_at
    is_forgotten = ended is not None and now - ended.timestamp() > TASK_KEPT_SECONDS
    return is_forgotten and all(moment <= now for moment in record.losses)


def _label(record: Record) -> str:
    return prompt_of(record) or record.task.task_id or record.ticket


async def _attach(task_id: str, client: Client) -> TaskHandle:
    return await client.attach(task_id)


async def _attach_record(record: Record, client: Client) -> TaskHandle:
    return await client.attach(ticket=record.ticket)


async def _return(handle: TaskHandle, _: Client) -> TaskHandle:
    return handle


# Cancelling --------------------------------------------------------------------------------------------------


def cancel(provider: Provider, words: Sequence[str], place: Place) -> int:
    """Cancel tasks, by id or ticket; returns the exit status.

    Raises:
        ValueError: no ids were given.
    """
    _check(words)
    silence_log()
    return asyncio.run(_cancel_all(provider, words, _records_named(place, words), place))


async def _cancel_all(
    provider: Provider, words: Sequence[str], records: Mapping[str, Record], place: Place
) -> int:
    stdout, stderr = Stream(sys.stdout, "standard output"), Stream(sys.stderr, "standard error")
    statuses = set()
    for word in dict.fromkeys(words):
        record = records.get(word)
        # An accepted task is cancelled at the service, whichever process drives it; any other in the ledger.
        on_ledger = record is not None and not record.task.status.is_accepted
        ledger = place.ledger() if on_ledger else None
        try:
            async with Client(provider, ledger=ledger, adopt=False) as client:
                if record is not None and on_ledger:
                    handle = await client.attach(ticket=record.ticket)
                else:
                    handle = await client.attach(word if record is None else record.task.task_id)
                async with asyncio.timeout(CANCEL_SECONDS if ledger is not None else None):
                    is_cancelled = await handle.cancel()
                if is_cancelled:
                    stdout.put(word)
                    continue
                await handle.refresh()
                stderr.put(f"bide: {word} is {handle.task.status}: too late to cancel it")
                statuses.add(FAILED)
        except TimeoutError:
            stderr.put(
                f"bide: {word} is being submitted: the process that drives it cancels it once its create is answered "
                f"(if no process drives it, use {place.command('resume')})"
            )
            statuses.add(FAILED)
        except (BideError, ValueError, LookupError) as error:
            stderr.put(f"bide: {one_line(str(error), 2000)}")
            statuses.add(exit_status(error))
    for stream in (stdout, stderr):
        stream.flush()
    return worst_status(statuses)


def _check(words: Sequence[str]) -> None:
    if not words:
        raise ValueError("give at least one task id from the service, or ticket from the ledger")


def _records_named(place: Place, words: Sequence[str], *, ended: bool = False) -> dict[str, Record]:
    """The records of *words*. Reports a ledger that cannot be read, and continues: task ids do not need it."""
    if not place.exists:
        return {}
    silence_log()
    try:
        return asyncio.run(find_records(place.ledger(), words, ended=ended))
    except (LedgerError, ImportError) as error:
        print(f"bide: {one_line(str(error), 2000)}; continuing without it", file=sys.stderr)
        return {}
