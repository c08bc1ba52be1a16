"""What the memory ledger does besides: it forgets."""

from __future__ import annotations

import gc

import pytest
from attrs import evolve

from bide.ledgers import MemoryLedger, Record
from bide.ledgers import memory as memory_module
from bide.models import ImageRequest, Output, SavedFile, Task, TaskStatus
from support.toy import ToyService


def final(ticket: str, task_id: str) -> Record:
    task = Task(ticket=ticket, task_id=task_id, status=TaskStatus.SUCCEEDED)
    return Record(
        ticket=ticket,
        origin="o",
        kind="image",
        request=None,
        keys=frozenset({"k"}),
        owner="me",
        key="k",
        task=task,
    )


@pytest.fixture
def keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ended record stays without a handle."""
    monkeypatch.setattr(memory_module, "MOST_ENDED_RECORDS", 0)


@pytest.mark.usefixtures("keeps_none")
async def test_a_finished_record_leaves_with_the_last_that_holds_it() -> None:
    ledger = MemoryLedger()
    running = final("t1", "x1")
    await ledger.add(evolve(running, task=evolve(running.task, status=TaskStatus.RUNNING)))

    kept = await ledger.finish("t1", running.task, owner="me")
    assert await ledger.get("t1") is kept
    del kept
    gc.collect()

    assert await ledger.get("t1") is None


async def test_the_last_records_that_ended_stay_for_callers_that_come_back() -> None:
    ledger = MemoryLedger()
    for number in range(memory_module.MOST_ENDED_RECORDS + 2):
        running = final(f"t{number}", f"x{number}")
        await ledger.add(evolve(running, task=evolve(running.task, status=TaskStatus.RUNNING)))
        await ledger.finish(f"t{number}", running.task, owner="me")

    gc.collect()
    kept = [
        await ledger.get(f"t{number}") is not None
        for number in (0, 1, 2, memory_module.MOST_ENDED_RECORDS + 1)
    ]

    assert kept == [False, False, True, True]


async def test_large_results_that_came_inline_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "MOST_INLINE_CHARACTERS", 10)
    ledger = MemoryLedger()
    for number in range(3):
        running = final(f"t{number}", f"x{number}")
        await ledger.add(evolve(running, task=evolve(running.task, status=TaskStatus.RUNNING)))
        task = evolve(running.task, outputs=(Output(data="aaaa", kind="image"),))
        await ledger.finish(f"t{number}", task, owner="me")

    gc.collect()

    assert [await ledger.get(f"t{number}") is not None for number in range(3)] == [False, True, True]


@pytest.mark.usefixtures("keeps_none")
async def test_an_ended_record_that_changes_stays_with_who_holds_it_as_it_was() -> None:
    """A ticket whose files were saved must not be bought again while its handle lives."""
    ledger = MemoryLedger()
    running = final("t1", "x1")
    await ledger.add(evolve(running, task=evolve(running.task, status=TaskStatus.RUNNING)))
    kept = await ledger.finish("t1", running.task, owner="me")

    await ledger.record_files("t1", [SavedFile(path="t1.png", size=1)])
    await ledger.follow("t1", client="me")
    gc.collect()

    found = await ledger.get("t1")
    assert found is not None
    assert found.followed
    assert [each.path for each in found.files] == ["t1.png"]
    del kept, found
    gc.collect()
    assert await ledger.get("t1") is None


async def test_a_ticket_whose_files_were_saved_is_not_bought_again_by_another_client() -> None:
    service, ledger = ToyService(queries=[{"status": "succeeded"}]), MemoryLedger()
    cat = ImageRequest("a cat", model="m")
    async with service.client(ledger=ledger) as one, service.client(ledger=ledger) as other:
        handle = await one.submit(cat, ticket="t1")
        await handle.result()
        await ledger.record_files("t1", [SavedFile(path="t1.png", size=1)])
        gc.collect()

        again = await other.submit(cat, ticket="t1")

        assert (await again.result()).task_id == handle.task_id
        assert service.count("POST") == 1


async def test_only_the_newest_ids_of_ended_tasks_are_remembered(monkeypatch: object) -> None:
    ledger = MemoryLedger()
    many = memory_module.MOST_RECENT_IDS + 5
    for number in range(many):
        record = final(f"t{number}", f"x{number}")
        await ledger.add(evolve(record, task=evolve(record.task, status=TaskStatus.RUNNING)))
        await ledger.finish(record.ticket, record.task, owner="me")

    assert await ledger.known_task_ids("o", ["x0", "x4", "x5", f"x{many - 1}"]) == {"x5", f"x{many - 1}"}


async def test_the_clients_of_a_loop_share_one_ledger() -> None:
    assert MemoryLedger.of_loop() is MemoryLedger.of_loop()
    assert MemoryLedger() is not MemoryLedger.of_loop()
