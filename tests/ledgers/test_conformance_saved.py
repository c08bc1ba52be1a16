"""What every ledger knows of results: which were saved, and which are to be saved before they expire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bide.ledgers import Ledger, Record, _state_machine
from bide.models import ErrorDetail, Limits, Output, SavedFile, Task, TaskStatus
from support.ledger_worlds import ORIGIN, SQLitePairWorld, admitted, record, running, state, terms

MANY = Limits(100)


def url(seconds: float | None = 3600.0) -> Output:
    """A file that is lost in so many seconds; with None nobody knows when."""
    ends = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    return Output(url="https://h/a.png?sig=1", kind="image", expires_at=ends)


def inline() -> Output:
    return Output(data="aGk=", kind="image")


def file(path: str, **changes: Any) -> SavedFile:
    return evolve(SavedFile(path, 3, "5" * 64, "image/png"), **changes)


async def succeeded(ledger: Ledger, ticket: str, *outputs: Output, **changes: Any) -> Record:
    """The record of a task that has ended with these outputs. It is on record in memory while somebody holds it."""
    await ledger.add(record(ticket, **changes))
    got = await admitted(ledger, terms(*record(ticket, **changes).keys, limits=MANY))
    ended = state(got, TaskStatus.SUCCEEDED, task_id=f"x-{ticket}", outputs=outputs)
    return await ledger.finish(ticket, ended, owner="me")


async def unsaved(ledger: Ledger, *keys: str) -> list[str]:
    return [each.ticket for each in await ledger.unsaved_records(ORIGIN, keys or ("k1",))]


# What was saved ------------------------------------------------------------------------------------------------


async def test_two_saves_do_not_lose_each_others_files(ledger: Ledger) -> None:
    held = await succeeded(ledger, "t1", url(), url())

    await ledger.record_files("t1", [file("out/t1-1.png")])
    await ledger.record_files("t1", [file("out/t1-0.png"), file("copy/t1-1.png")])

    noted = await ledger.get("t1")
    assert noted is not None
    assert noted.files == (file("out/t1-1.png"), file("out/t1-0.png"), file("copy/t1-1.png"))
    assert noted.version == held.version + 2


async def test_a_file_that_is_saved_anew_takes_the_place_of_the_one_before(ledger: Ledger) -> None:
    held = await succeeded(ledger, "t1", url(), url())
    await ledger.record_files("t1", [file("t1-0.png"), file("t1-1.png")])

    noted = await ledger.record_files("t1", [file("t1-0.png", size=4, sha256=None)])

    assert noted is not None
    assert noted.files == (file("t1-0.png", size=4, sha256=None), file("t1-1.png"))
    assert held.files == ()


async def test_saving_again_or_nothing_is_no_change(ledger: Ledger) -> None:
    held = await succeeded(ledger, "t1", url(), url())
    first = await ledger.record_files("t1", [file("t1-0.png"), file("t1-1.png")])
    heard: list[Any] = []
    end = ledger.subscribe(heard.append)

    again = [
        await ledger.record_files("t1", [file("t1-0.png"), file("t1-1.png")]),
        await ledger.record_files("t1", [file("t1-1.png"), file("t1-0.png")]),
        await ledger.record_files("t1", [file("t1-1.png"), file("t1-1.png")]),
        await ledger.record_files("t1", []),
    ]

    end()
    assert first is not None
    assert again == [first] * 4
    assert first.version == held.version + 1
    assert heard == []


# Which results are unsaved --------------------------------------------------------------------------------------


FAILED = Output(error=ErrorDetail(message="refused"))


@pytest.mark.parametrize(
    ("paths", "unsaved"),
    [
        ([], (0, 2, 3)),
        (["out/t1-0.png"], (2, 3)),
        (["t1-0.png", "/a/b/t1-2.tar.gz", "t1-3.bin"], ()),
        (["t1-3."], (0, 2)),
        (["t1-0/a.png", "t1-0", "t1-0png", "xt1-0.png", "t1-00.png", "t1-01.png", "t1--0.png"], (0, 2, 3)),
        (["t10-0.png", "T1-0.png", ".t1-0.png.part"], (0, 2, 3)),
        (["t1-1.png"], (0, 2, 3)),
    ],
)
def test_an_output_is_saved_when_a_file_bears_its_name(paths: list[str], unsaved: tuple[int, ...]) -> None:
    task = Task(ticket="t1", status=TaskStatus.SUCCEEDED, outputs=(url(), FAILED, inline(), Output()))

    got = record("t1", task=task, files=tuple(map(file, paths)))

    assert got.unsaved == unsaved


@pytest.mark.parametrize("status", sorted(set(TaskStatus) - {TaskStatus.SUCCEEDED}))
def test_what_has_not_succeeded_has_nothing_unsaved(status: TaskStatus) -> None:
    got = record("t1", task=Task(ticket="t1", status=status, outputs=(url(),)))

    assert got.unsaved == got.losses == ()


# What is to be saved --------------------------------------------------------------------------------------------


async def test_the_most_urgent_results_come_first(ledger: Ledger) -> None:
    held = [
        await succeeded(ledger, "no end", url(None)),
        await succeeded(ledger, "a day", url(24 * 3600.0)),
        await succeeded(ledger, "soon and later", url(7200.0), url(60.0), inline()),
        await succeeded(ledger, "inline", inline()),
        await succeeded(ledger, "an hour", url()),
    ]

    found = await ledger.unsaved_records(ORIGIN, {"k1"})

    assert [each.ticket for each in found] == ["soon and later", "an hour", "a day", "no end", "inline"]
    assert {each.ticket: each for each in found} == {each.ticket: each for each in held}


async def test_what_was_saved_is_not_to_be_saved(ledger: Ledger) -> None:
    held = [await succeeded(ledger, "t1", url(), url()), await succeeded(ledger, "t2", url(60.0), url())]

    await ledger.record_files("t1", [file("a/t1-0.png")])
    assert await unsaved(ledger) == ["t2", "t1"]

    await ledger.record_files("t2", [file("a/t2-0.png")])  # the one that is lost first
    await ledger.record_files("t1", [file("b/t1-0.png"), file("b/other.png")])
    assert await unsaved(ledger) == ["t1", "t2"]

    await ledger.record_files("t1", [file("a/t1-1.png")])
    assert await unsaved(ledger) == ["t2"]

    await ledger.record_files("t2", [file("a/t2-1.png")])
    assert await unsaved(ledger) == []
    assert len(held) == 2


async def test_what_has_expired_or_failed_or_never_was_is_not_to_be_saved(ledger: Ledger) -> None:
    held = [
        await succeeded(ledger, "expired", url(-1.0), url(-0.01)),
        await succeeded(ledger, "failed", FAILED),
        await succeeded(ledger, "nothing"),
        await succeeded(ledger, "nowhere", Output()),
        await succeeded(ledger, "late", evolve(url(-5.0), url=None, data="aGk=")),
        await succeeded(ledger, "half", url(-1.0), FAILED, url(60.0)),
        await running(ledger, "running", "x1"),
    ]

    assert await unsaved(ledger) == ["half", "late"]
    assert len(held) == 7


async def test_what_remains_of_a_result_decides_how_urgent_it_is(ledger: Ledger) -> None:
    held = [
        await succeeded(ledger, "t1", url(-1.0), url(600.0)),
        await succeeded(ledger, "t2", url(60.0), url(1200.0)),
    ]

    assert await unsaved(ledger) == ["t2", "t1"]

    await ledger.record_files("t2", [file("t2-0.png")])
    assert await unsaved(ledger) == ["t1", "t2"]
    assert len(held) == 2


async def test_each_key_and_service_has_its_own(ledger: Ledger) -> None:
    """A task that was made elsewhere has no lane: any of its keys will do."""
    held = [
        await succeeded(ledger, "mine", url(50.0)),
        await succeeded(ledger, "other key", url(60.0), keys=frozenset({"k2"})),
    ]
    for ticket, keys in (("attached", {"k1", "k3"}), ("not mine", {"k11", "ak1"})):
        task = Task(ticket=ticket, task_id=f"x-{ticket}", status=TaskStatus.RUNNING)
        await ledger.add(record(ticket, task=task, request=None, digest="", keys=frozenset(keys)))
        ended = evolve(task, status=TaskStatus.SUCCEEDED, outputs=(url(70.0),))
        held.append(await ledger.finish(ticket, ended, owner="me"))

    assert await unsaved(ledger) == ["mine", "attached"]
    assert await unsaved(ledger, "k1", "k2") == ["mine", "other key", "attached"]
    assert await unsaved(ledger, "k3") == ["attached"]
    assert await unsaved(ledger, "k4") == []
    assert await ledger.unsaved_records(ORIGIN, ()) == []
    assert await ledger.unsaved_records("https://elsewhere", {"k1"}) == []
    assert len(held) == 4


async def test_a_result_that_was_put_on_record_when_it_had_ended_is_to_be_saved_too(ledger: Ledger) -> None:
    task = Task(ticket="t1", task_id="x1", status=TaskStatus.SUCCEEDED, outputs=(url(),))
    held = await ledger.add(record("t1", task=task, key="k1"))

    assert await ledger.unsaved_records(ORIGIN, {"k1"}) == [held]


async def test_of_many_the_most_urgent_are_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state_machine, "MOST_UNSAVED_RECORDS", 3)
    held = [
        await succeeded(ledger, f"t{seconds}", url(seconds))
        for seconds in (500.0, 100.0, 400.0, 300.0, 200.0)
    ]

    assert await unsaved(ledger) == ["t100.0", "t200.0", "t300.0"]

    for ticket in ("t100.0", "t200.0"):
        await ledger.record_files(ticket, [file(f"{ticket}-0.png")])
    assert await unsaved(ledger) == ["t300.0", "t400.0", "t500.0"]
    assert len(held) == 5


@pytest.mark.real_time
async def test_what_one_process_saves_another_one_need_not(tmp_path: Path) -> None:
    world = SQLitePairWorld(tmp_path)
    await world.open()
    try:
        first, second = world.ledgers
        await succeeded(first, "t1", url(), url())
        assert await unsaved(second) == ["t1"]

        await first.record_files("t1", [file("a/t1-0.png")])
        await second.record_files("t1", [file("b/t1-1.png")])

        assert await unsaved(first) == await unsaved(second) == []
        noted = await first.get("t1")
        assert noted is not None
        assert [each.path for each in noted.files] == ["a/t1-0.png", "b/t1-1.png"]
    finally:
        await world.aclose()
