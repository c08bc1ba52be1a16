"""How long a SQLite ledger keeps what, and how its file comes from one version to the next."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bide.errors import LedgerError
from bide.ledgers import SQLiteLedger
from bide.ledgers.sqlite import database
from bide.ledgers.sqlite import rows as sqlite_rows
from bide.ledgers.sqlite import store as sqlite_store
from bide.models import ImageRequest, Output, SavedFile, Task, TaskStatus
from support.ledger_worlds import ORIGIN, admitted, in_thread, record, running, state

pytestmark = pytest.mark.real_time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def raw_rows(path: Path, query: str, *values: object) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


# How long it is kept ---------------------------------------------------------------------------------------


async def finished(ledger: SQLiteLedger, ticket: str, expires: timedelta) -> None:
    url = f"https://files.example/{ticket}.png?sign=secret-{ticket}"
    got = await running(ledger, ticket, f"x-{ticket}")
    output = Output(url=url, kind="image", expires_at=datetime.now(UTC) + expires)
    raw = {"output": {"results": [{"url": url}]}}
    task = evolve(got.task, status=TaskStatus.SUCCEEDED, outputs=(output,), raw=raw)
    await ledger.finish(ticket, task, owner="me")


def set_wall_clock_forward(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Expiry goes by the wall clock, since the service's dates do."""
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() + seconds)


async def clean(ledger: SQLiteLedger) -> bool:
    return bool(await in_thread(ledger, lambda backend: backend.retention.clean(), writes=True))


async def test_addresses_are_blanked_when_they_expire_and_records_removed_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteLedger(path, keep=100.0) as ledger:
        await finished(ledger, "old", timedelta(seconds=-0.5))
        await finished(ledger, "new", timedelta(hours=1))

        await clean(ledger)

        ((text,),) = raw_rows(path, "SELECT task FROM records WHERE ticket = 'old'")
        assert "secret-old" not in text
        old, new = await ledger.get("old"), await ledger.get("new")
        assert old is not None
        assert old.task.status is TaskStatus.SUCCEEDED
        assert [each.url for each in old.task.outputs] == [None]
        assert new is not None
        assert "secret-new" in (new.task.outputs[0].url or "")
        assert await ledger.known_task_ids(ORIGIN, ["x-old"]) == {"x-old"}

        set_wall_clock_forward(monkeypatch, 100.0)
        await clean(ledger)

        assert [each.ticket for each in await ledger.records(all=True)] == ["new"]


async def test_saved_files_are_noted_on_a_record_that_was_blanked_and_it_stays_blank(path: Path) -> None:
    async with SQLiteLedger(path, keep=100.0) as ledger:
        await finished(ledger, "old", timedelta(seconds=-0.5))
        await clean(ledger)

        noted = await ledger.record_files("old", [SavedFile(path="old.png", size=1)])

        assert noted is not None
        assert [each.url for each in noted.task.outputs] == [None]
        ((text,),) = raw_rows(path, "SELECT task FROM records WHERE ticket = 'old'")
        assert "secret-old" not in text


@pytest.mark.usefixtures("no_ticks")  # its own cleaning would take some of the steps
async def test_old_records_are_removed_in_small_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_rows, "DAY_SECONDS", 0.0)  # so long an answer without results is kept whole
    async with SQLiteLedger(path, keep=0.0) as ledger:
        await asyncio.gather(*(ledger.add(record(f"t{number}")) for number in range(450)))
        gone = [Task(ticket=f"t{number}", status=TaskStatus.CANCELLED) for number in range(450)]
        await asyncio.gather(*(ledger.withdraw(each.ticket, each) for each in gone))

        steps = []
        for _ in range(6):
            await clean(ledger)
            steps.append(len(await ledger.records(all=True)))

        assert steps[0] == 450, "blanked first"
        assert all(before - after <= 200 for before, after in pairwise(steps))
        assert steps[-1] == 0


async def test_what_is_open_or_unknown_and_held_is_never_removed(path: Path) -> None:
    """Even where nothing is kept: it uses a slot, and is what tells a lost create from others."""
    async with SQLiteLedger(path, keep=0.0) as ledger:
        await running(ledger, "open", "x1")
        for ticket in ("held", "submitting", "waiting"):
            await ledger.add(record(ticket))
        first, _ = await admitted(ledger), await admitted(ledger)
        await ledger.finish("held", state(first, TaskStatus.UNKNOWN), hold=600, owner="me")

        for _ in range(3):
            await clean(ledger)

        left = [each.ticket for each in await ledger.records(all=True)]
        assert left == ["open", "held", "submitting", "waiting"]
        assert {each.ticket for each in await ledger.unsettled_records(ORIGIN, "k1")} == {
            "held",
            "submitting",
        }


async def test_a_settled_record_is_not_removed_for_its_earlier_end(path: Path) -> None:
    async with SQLiteLedger(path, keep=0.0) as ledger:
        await ledger.add(record("t1"))
        first = await admitted(ledger)
        await ledger.finish("t1", state(first, TaskStatus.UNKNOWN), hold=0.0, owner="me")
        await ledger.settle("t1", "x1")

        for _ in range(3):
            await clean(ledger)

        assert [each.task.status for each in await ledger.records()] == [TaskStatus.QUEUED]


# What was not saved ------------------------------------------------------------------------------------------


async def ended_with(ledger: SQLiteLedger, ticket: str, *outputs: Output) -> None:
    got = await running(ledger, ticket, f"x-{ticket}")
    await ledger.finish(ticket, state(got, TaskStatus.SUCCEEDED, outputs=outputs), owner="me")


async def unsaved(ledger: SQLiteLedger) -> list[str]:
    return [each.ticket for each in await ledger.unsaved_records(ORIGIN, {"k1"})]


async def test_what_was_blanked_cannot_be_saved_but_what_came_inline_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of as long as its record is kept, and no record is kept for that alone."""
    ends = datetime.now(UTC) + timedelta(hours=1)
    url, data = Output(url="https://h/a?sig=1", expires_at=ends), Output(data="aGk=", expires_at=ends)
    async with SQLiteLedger(path, keep=100.0) as ledger:
        await ended_with(ledger, "url", url)
        await ended_with(ledger, "inline", data)
        await ended_with(ledger, "both", url, data)
        await ended_with(ledger, "saved", url, data)
        await ledger.record_files("saved", [SavedFile("saved-1.png", 2)])
        assert await unsaved(ledger) == ["url", "both", "saved", "inline"]

        set_wall_clock_forward(monkeypatch, 3600.0)
        assert await unsaved(ledger) == ["inline", "both"]
        await clean(ledger)
        assert await unsaved(ledger) == ["inline", "both"]

        await ledger.record_files("both", [SavedFile("both-1.png", 2)])
        assert await unsaved(ledger) == ["inline"]
    rows = raw_rows(path, "SELECT ticket, clean_at FROM records WHERE blanked = 1")
    assert dict(rows) == dict.fromkeys(["url", "inline", "both", "saved"], ends.timestamp() + 100.0)
    assert raw_rows(path, "SELECT ticket FROM records WHERE first_loss IS NOT NULL") == [("inline",)]


async def test_an_address_without_an_end_is_kept_for_a_day_beside_one_that_expires(path: Path) -> None:
    gone = Output(url="https://h/a?sig=1", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    async with SQLiteLedger(path, keep=0.0) as ledger:
        await ended_with(ledger, "t1", gone, Output(url="https://h/b"))

        await clean(ledger)

        (found,) = await ledger.unsaved_records(ORIGIN, {"k1"})
        assert [each.url for each in found.task.outputs] == ["https://h/a?sig=1", "https://h/b"]


async def test_results_that_are_long_are_not_all_read_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "LONGEST_READ_CHARACTERS", 100_000)
    async with SQLiteLedger(path) as ledger:
        for number in range(3):
            await ended_with(ledger, f"long{number}", Output(data="a" * 60_000))
        await ended_with(
            ledger, "short", Output(url="https://h/a", expires_at=datetime(2100, 1, 1, tzinfo=UTC))
        )

        assert await unsaved(ledger) == ["short", "long0", "long1"]


async def test_a_saved_file_is_read_from_older_and_from_later_rows(path: Path) -> None:
    old, later = (
        {"path": "a", "size": 1, "media_type": None},
        {"path": "b", "size": 2, "sha256": "5", "x": [1]},
    )
    async with SQLiteLedger(path) as ledger:
        await ended_with(ledger, "t1")
        text = json.dumps([old, later])
        await in_thread(
            ledger,
            lambda backend: backend.database.connection.execute("UPDATE records SET files = ?", (text,)),
            writes=True,
        )

        got = await ledger.record_files("t1", [SavedFile("c", 3, "6")])

        assert got is not None
        assert got.files == (SavedFile("a", 1), SavedFile("b", 2, "5"), SavedFile("c", 3, "6"))
        assert await ledger.get("t1") == got


# The schema ------------------------------------------------------------------------------------------------


async def test_an_older_file_is_brought_up_to_date_and_keeps_its_records(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
    step = "ALTER TABLE records ADD COLUMN colour TEXT; CREATE TABLE colours (name TEXT);"
    monkeypatch.setattr(database, "SCHEMA", (*database.SCHEMA, step))

    for _ in range(2):
        async with SQLiteLedger(path) as ledger:
            assert [each.ticket for each in await ledger.records()] == ["t1"]

    assert raw_rows(path, "PRAGMA user_version") == [(len(database.SCHEMA),)]
    assert raw_rows(path, "SELECT colour FROM records") == [(None,)]


async def test_a_file_of_the_first_version_goes_on_with_its_records_and_learns(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("version_1.sql").read_text())
    connection.close()

    for texts in ({}, {"wan": "1"}):
        async with SQLiteLedger(path) as ledger:
            assert [each.ticket for each in await ledger.records()] == ["running", "submitting", "waiting"]
            assert await ledger.read_learned() == texts
            await ledger.learn({"wan": lambda before: f"{before or ''}1"})

    async with SQLiteLedger(path) as ledger:
        await ledger.adopt(ORIGIN, {"k1"}, "me")
        found = await ledger.find(ORIGIN, "task-1")
        assert found is not None
        ended = await ledger.finish("running", state(found, TaskStatus.SUCCEEDED), owner="me")
        assert ended.task.status is TaskStatus.SUCCEEDED
        waiting = await admitted(ledger)
        assert (waiting.ticket, waiting.request) == ("waiting", ImageRequest("a dog", model="m"))
    assert raw_rows(path, "PRAGMA user_version") == [(len(database.SCHEMA),)]


async def test_a_file_of_the_fourth_version_has_no_guesses(path: Path) -> None:
    connection = sqlite3.connect(path)
    for step in database.SCHEMA[:4]:
        connection.executescript(step)
    connection.executescript(f"PRAGMA application_id = {database.APPLICATION_ID}; PRAGMA user_version = 4;")
    connection.execute(
        "INSERT INTO records (ticket, origin, kind, keys, digest, owner, status, lane, task_id, slot_for, slot_until, "
        "version, task, is_open, held) VALUES ('t1', ?, 'image', 'k1', 'd', 'gone.1', 'running', 'k1', 'x1', 1.0, 9e9, "
        '3, \'{"task_id": "x1"}\', 1, 1)',
        (ORIGIN,),
    )
    connection.commit()
    connection.close()

    async with SQLiteLedger(path) as ledger:
        (kept,) = await ledger.records()
        assert (kept.ticket, kept.guessed, kept.task.task_id) == ("t1", False, "x1")
        (adopted,) = await ledger.adopt(ORIGIN, {"k1"}, "me")
        assert await ledger.undo_match("t1", kept.task, owner="me", hold=1) == adopted
    assert raw_rows(path, "PRAGMA user_version") == [(len(database.SCHEMA),)]


async def test_a_file_of_the_first_version_tells_what_was_not_saved(path: Path) -> None:
    def task(**output: Any) -> str:
        return json.dumps({"task_id": "x", "outputs": [{"kind": "image", **output}], "raw": {"a": 1}})

    now = datetime.now(UTC)
    hour, gone = now + timedelta(hours=1), now - timedelta(hours=1)
    url = {"url": "https://h/a?sig=1"}
    rows = [  # ticket, status, files, task, clean_at, blanked
        ("no end", "succeeded", None, task(**url), hour.timestamp() + 1, None),
        ("hour", "succeeded", None, task(**url, expires_at=hour.isoformat()), hour.timestamp(), None),
        ("gone", "succeeded", None, task(**url, expires_at=gone.isoformat()), gone.timestamp(), None),
        ("inline", "succeeded", None, task(data="aGk="), hour.timestamp(), None),
        ("old inline", "succeeded", None, task(data="aGk="), hour.timestamp(), 1),
        ("blank", "succeeded", None, task(url=None), hour.timestamp(), 1),
        ("saved", "succeeded", '[{"path": "saved-0.png", "size": 1}]', task(**url), hour.timestamp(), None),
        ("failed", "failed", None, task(**url), hour.timestamp(), None),
    ]
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("version_1.sql").read_text())
    connection.executemany(
        "INSERT INTO records (ticket, status, files, task, clean_at, blanked, origin, kind, keys, digest, lane, "
        f"slot_for, slot_until, version) VALUES (?, ?, ?, ?, ?, ?, '{ORIGIN}', 'image', 'k1', '', 'k1', 1.0, 1.0, 3)",
        rows,
    )
    connection.commit()
    connection.close()

    async with SQLiteLedger(path) as ledger:
        assert await unsaved(ledger) == ["hour", "no end", "inline", "old inline"]

        await ledger.record_files("hour", [SavedFile("hour-0.png", 1)])
        assert await unsaved(ledger) == ["no end", "inline", "old inline"]


async def test_a_step_of_the_schema_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
    with monkeypatch.context() as patch:
        steps = (*database.SCHEMA, "CREATE TABLE half (x); CREATE TABLE records (y);")
        patch.setattr(database, "SCHEMA", steps)
        with pytest.raises(LedgerError, match="cannot be used"):
            await SQLiteLedger(path).records()

    async with SQLiteLedger(path) as ledger:
        assert [each.ticket for each in await ledger.records()] == ["t1"]
    assert raw_rows(path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []


async def test_a_newer_file_is_refused_and_untouched(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
    raw_rows(path, "PRAGMA user_version = 99")
    before = path.read_bytes()

    with pytest.raises(LedgerError, match=r"newer bide \(its schema is 99.*upgrade bide"):
        await SQLiteLedger(path).get("t1")

    assert path.read_bytes() == before
