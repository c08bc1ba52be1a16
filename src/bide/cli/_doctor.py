"""`bide doctor`: how the ledger is, who uses it, what it has learned, and what the user has to decide."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bide import ModelStatistics
from bide.cli._exits import FAILED, OK
from bide.cli._out import show
from bide.cli._run import keep_the_log_quiet
from bide.cli._text import plain
from bide.cli._words import what_to_do

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bide import SQLiteLedger
    from bide.cli._ledger import Place
    from bide.ledgers import LaneView, LedgerReport, OwnerView, Record

FOR_OTHERS = 0o077
"""The bits of a mode that let others in."""


def doctor(place: Place, *, as_json: bool) -> int:
    """Tell how the ledger is; returns the exit status: 1 if the file is damaged.

    Raises:
        LedgerError: it cannot be used.
    """
    if not place.exists:
        print(f"bide: nothing yet: there is no ledger at {place.path}", file=sys.stderr)
        return OK
    keep_the_log_quiet()
    report, models, unsaved = asyncio.run(_report(place))
    show([json.dumps(_plain(report, models, unsaved))] if as_json else _told(report, models, unsaved, place))
    return FAILED if report.problems else OK


async def _report(place: Place) -> tuple[LedgerReport, list[ModelStatistics], list[float]]:
    """How the ledger is, what it has learned, and when what was not saved expires."""
    async with place.ledger() as ledger:
        report = await ledger.report()
        if report.problems:  # in a damaged file nothing else is worth an error of its own
            return report, [], []
        return report, await ModelStatistics.of(ledger), await _unsaved(ledger, report.lanes)


async def _unsaved(ledger: SQLiteLedger, lanes: Sequence[LaneView]) -> list[float]:
    """When each result expires that was not saved and can be fetched yet, the first one first."""
    keys: dict[str, set[str]] = {}
    for lane in lanes:
        keys.setdefault(lane.origin, set()).add(lane.key)
    records = [record for origin in keys for record in await ledger.unsaved_records(origin, keys[origin])]
    now = time.time()
    return sorted(moment for record in records for moment in record.losses if moment > now)


def _told(
    report: LedgerReport, models: Sequence[ModelStatistics], unsaved: Sequence[float], place: Place
) -> Iterator[str]:
    yield _line("file", f"{report.path}, {report.size / 1024:.0f} KiB, mode {report.mode:o}")
    if report.mode & FOR_OTHERS:
        yield _line("", f"others may read it, and the prompts in it: chmod 600 {report.path}")
    yield _line("sqlite", f"{report.sqlite_version}, journal mode {report.journal_mode}")
    if report.journal_mode != "wal":
        yield _line(
            "",
            "its file system has no write-ahead log: every step waits for the disk; move it to a local one",
        )
    for number, problem in enumerate(report.problems or ("sound",)):
        yield _line("" if number else "check", plain(problem))
    if report.problems:
        yield _line("", "the file is damaged: end what uses it, keep a copy, and save what can be saved with")
        yield _line("", f"sqlite3 {report.path} .recover")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items()))
    yield _line("records", counts or "none")
    if report.unowned:
        yield _line("", f"{report.unowned} open that nobody drives: {place.command('resume')}")
    if unsaved:
        yield _line("unsaved", f"{_results(unsaved)}: {place.command('resume', '--save', 'DIR')}")
    others = _others(report)
    for number, owner in enumerate(others):
        yield _line("" if number else "used by", _owner(owner))
    if not others:
        yield _line("used by", "nobody else")
    for number, lane in enumerate(report.lanes):
        yield _line("" if number else "lanes", _lane(lane, report.now))
    for number, model in enumerate(models):
        yield _line("" if number else "learned", _model(model))
    for number, record in enumerate(report.unknown):
        yield _line("" if number else "unknown", _unknown(record))
        yield _line("", f"look in the service's console: {what_to_do(record.ticket, place)}")


def _line(title: str, text: str) -> str:
    return f"{title:<9}{text}"


def _results(unsaved: Sequence[float]) -> str:
    count = "1 result" if len(unsaved) == 1 else f"{len(unsaved)} results"
    first = _moment(unsaved[0])
    return count if first is None else f"{count}, the first expires {first:%Y-%m-%d %H:%M:%S} UTC"


def _moment(seconds: float) -> datetime | None:
    return None if seconds == math.inf else datetime.fromtimestamp(seconds, UTC)


def _others(report: LedgerReport) -> list[OwnerView]:
    """Who uses it besides this command."""
    return [owner for owner in report.owners if owner.pid != os.getpid()]


def _owner(owner: OwnerView) -> str:
    state = "alive" if owner.is_alive else "dead: the next client of the key takes over"
    return (
        f"pid {owner.pid} on {owner.host} since {owner.started:%Y-%m-%d %H:%M:%S} UTC, {state}, "
        f"{owner.clients} clients, {owner.open} open"
    )


def _lane(lane: LaneView, now: float) -> str:
    parts = [f"{lane.origin} {lane.kind or 'made elsewhere'}, key {lane.key}: {lane.slots} slots in use"]
    if lane.state.paused_until > now:
        parts.append(f"paused for {lane.state.paused_until - now:.0f} s more")
    if lane.state.learned is not None:
        parts.append(f"a 429 has shown that {lane.state.learned} at a time are allowed")
    return ", ".join(parts)


def _model(model: ModelStatistics) -> str:
    name = plain(" ".join(model.name.split()))
    if model.problem is not None:
        return f"{name}: cannot be read, and is learned anew: {plain(model.problem)}"
    parts = [f"{name}: {model.tasks} {'task' if model.tasks == 1 else 'tasks'} seen"]
    if model.median is not None and model.p90 is not None:
        parts.append(f"half within {model.median:.1f} s, 90 % within {model.p90:.1f} s")
    if model.lag is not None:
        parts.append(f"seen {model.lag:.1f} s after their end on average")
    return ", ".join(parts)


def _unknown(record: Record) -> str:
    sent = "" if record.sent_at is None else f", sent {record.sent_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{record.ticket}: {plain(record.task.model or record.kind, 60)}{sent}"


def _plain(
    report: LedgerReport, models: Sequence[ModelStatistics], unsaved: Sequence[float]
) -> dict[str, Any]:
    """All of it as JSON data."""
    first = _moment(unsaved[0]) if unsaved else None
    return {
        "path": report.path,
        "size": report.size,
        "mode": f"{report.mode:o}",
        "sqlite_version": report.sqlite_version,
        "journal_mode": report.journal_mode,
        "problems": list(report.problems),
        "records": report.counts,
        "unowned": report.unowned,
        "unsaved": {"results": len(unsaved), "first_expires_at": first and first.isoformat()},
        "owners": [
            {
                "pid": owner.pid,
                "host": owner.host,
                "started": owner.started.isoformat(),
                "alive": owner.is_alive,
                "clients": owner.clients,
                "open": owner.open,
            }
            for owner in _others(report)
        ],
        "lanes": [
            {
                "origin": lane.origin,
                "kind": lane.kind,
                "key": lane.key,
                "slots": lane.slots,
                "paused_for": max(0.0, lane.state.paused_until - report.now),
                "learned": lane.state.learned,
            }
            for lane in report.lanes
        ],
        "models": [
            {
                "name": model.name,
                "tasks": model.tasks,
                "median": model.median,
                "p90": model.p90,
                "lag": model.lag,
                "problem": model.problem,
            }
            for model in models
        ],
        "unknown": [
            {
                "ticket": record.ticket,
                "model": record.task.model,
                "kind": record.kind,
                "sent_at": None if record.sent_at is None else record.sent_at.isoformat(),
            }
            for record in report.unknown
        ],
    }
