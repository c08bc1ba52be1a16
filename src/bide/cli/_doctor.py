"""`bide doctor`: the state of the ledger, its users, what it learned, and what the user has to decide."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import asdict

from bide import ModelStatistics
from bide.cli._messages import FAILED, OK, settle_advice
from bide.cli._output import one_line, print_lines, silence_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bide import SQLiteLedger
    from bide.cli._place import Place
    from bide.ledgers import LaneView, LedgerReport, OwnerView, Record

OTHER_USERS_MODE = 0o077
"""The permission bits of other users."""


def doctor(place: Place, *, as_json: bool) -> int:
    """Print the state of the ledger; returns the exit status: 1 if the file is damaged.

    Raises:
        LedgerError: the ledger cannot be used.
    """
    if not place.exists:
        print(f"bide: nothing yet: there is no ledger at {place.path}", file=sys.stderr)
        return OK
    silence_log()
    report, models, unsaved = asyncio.run(_read(place))
    if as_json:
        print_lines([json.dumps(_json_data(report, models, unsaved))])
    else:
        print_lines(_text_lines(report, models, unsaved, place))
    return FAILED if report.problems else OK


async def _read(place: Place) -> tuple[LedgerReport, list[ModelStatistics], list[float]]:
    """The state of the ledger, what it learned, and the times at which unsaved results expire."""
    async with place.ledger() as ledger:
        report = await ledger.report()
        if report.problems:  # further reads of a damaged file would fail, too
            return report, [], []
        return report, await ModelStatistics.of(ledger), await _unsaved_expiries(ledger, report.lanes)


async def _unsaved_expiries(ledger: SQLiteLedger, lanes: Sequence[LaneView]) -> list[float]:
    """The times at which unsaved results expire, soonest first; those that have already expired are left out."""
    keys: dict[str, set[str]] = {}
    for lane in lanes:
        keys.setdefault(lane.origin, set()).add(lane.key)
    records = [record for origin in keys for record in await ledger.unsaved_records(origin, keys[origin])]
    now = time.time()
    return sorted(moment for record in records for moment in record.losses if moment > now)


def _text_lines(
    report: LedgerReport, models: Sequence[ModelStatistics], unsaved: Sequence[float], place: Place
) -> Iterator[str]:
    yield _line("file", f"{report.path}, {report.size / 1024:.0f} KiB, mode {report.mode:o}")
    if report.mode & OTHER_USERS_MODE:
        yield _line("", f"other users may read it, and the prompts in it: chmod 600 {report.path}")
    yield _line("sqlite", f"{report.sqlite_version}, journal mode {report.journal_mode}")
    if report.journal_mode != "wal":
        yield _line(
            "",
            "its file system has no write-ahead log: every step waits for the disk; move it to a local disk",
        )
    for number, problem in enumerate(report.problems or ("no damage found",)):
        yield _line("" if number else "check", one_line(problem))
    if report.problems:
        yield _line(
            "", "the file is damaged: end the processes that use it, keep a copy, and recover the data with"
        )
        yield _line("", f"sqlite3 {report.path} .recover")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items()))
    yield _line("records", counts or "none")
    if report.unowned:
        yield _line("", f"{report.unowned} open that no process drives: {place.command('resume')}")
    if unsaved:
        yield _line("unsaved", f"{_results(unsaved)}: {place.command('resume', '--save', 'DIR')}")
    others = _other_owners(report)
    for number, owner in enumerate(others):
        yield _line("" if number else "used by", _owner(owner))
    if not others:
        yield _line("used by", "no other process")
    for number, lane in enumerate(report.lanes):
        yield _line("" if number else "lanes", _lane(lane, report.now))
    for number, model in enumerate(models):
        yield _line("" if number else "learned", _model(model))
    for number, record in enumerate(report.unknown):
        yield _line("" if number else "unknown", _unknown(record))
        yield _line("", f"check the service's console: {settle_advice(record.ticket, place)}")


def _line(title: str, text: str) -> str:
    return f"{title:<9}{text}"


def _results(unsaved: Sequence[float]) -> str:
    count = "1 result" if len(unsaved) == 1 else f"{len(unsaved)} results"
    first = _expiry(unsaved[0])
    return count if first is None else f"{count}, the first expires {first:%Y-%m-%d %H:%M:%S} UTC"


def _expiry(seconds: float) -> datetime | None:
    return None if seconds == math.inf else datetime.fromtimestamp(seconds, UTC)


def _other_owners(report: LedgerReport) -> list[OwnerView]:
    """The processes that use the ledger besides this command."""
    return [owner for owner in report.owners if owner.pid != os.getpid()]


def _owner(owner: OwnerView) -> str:
    state = "alive" if owner.is_alive else "dead: the next client of the key takes over its records"
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
    name = one_line(" ".join(model.name.split()))
    if model.problem is not None:
        return f"{name}: cannot be read, and is learned again: {one_line(model.problem)}"
    parts = [f"{name}: {model.tasks} {'task' if model.tasks == 1 else 'tasks'}"]
    if model.median is not None and model.p90 is not None:
        parts.append(f"half within {model.median:.1f} s, 90 % within {model.p90:.1f} s")
    if model.lag is not None:
        parts.append(f"detection delay {model.lag:.1f} s on average")
    return ", ".join(parts)


def _unknown(record: Record) -> str:
    sent = "" if record.sent_at is None else f", sent {record.sent_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{record.ticket}: {one_line(record.task.model or record.kind, 60)}{sent}"


def _json_data(
    report: LedgerReport, models: Sequence[ModelStatistics], unsaved: Sequence[float]
) -> dict[str, Any]:
    first = _expiry(unsaved[0]) if unsaved else None
    return {
        **_fields(report, "path", "size"),
        "mode": f"{report.mode:o}",
        **_fields(report, "sqlite_version", "journal_mode", "problems"),
        "records": report.counts,
        "unowned": report.unowned,
        "unsaved": {"results": len(unsaved), "first_expires_at": first and first.isoformat()},
        "owners": [
            {
                **_fields(owner, "pid", "host"),
                "started": owner.started.isoformat(),
                "alive": owner.is_alive,
                **_fields(owner, "clients", "open"),
            }
            for owner in _other_owners(report)
        ],
        "lanes": [
            {
                **_fields(lane, "origin", "kind", "key", "slots"),
                "paused_for": max(0.0, lane.state.paused_until - report.now),
                "learned": lane.state.learned,
            }
            for lane in report.lanes
        ],
        "models": [asdict(model) for model in models],
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


def _fields(value: object, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
