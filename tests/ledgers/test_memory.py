"""What the memory ledger does besides: it forgets."""

from __future__ import annotations

import gc

from attrs import evolve

from bide.ledgers import MemoryLedger, Record
from bide.ledgers import memory as memory_module
from bide.models import Task, TaskStatus


def final(ticket: str, task_id: str) -> Record:
    task = Task(ticket=ticket, task_id=task_id, status=TaskStatus.SUCCEEDED)
    return Record(
        ticket=ticket,
        origin="o",
        kind="image",
        request=None,
        keys=frozenset({"k"}),
        owner="me",
        lane="k",
        task=task,
    )


async def test_a_finished_record_leaves_with_the_last_that_holds_it() -> None:
    ledger = MemoryLedger()
    running = final("t1", "x1")
    await ledger.add(evolve(running, task=evolve(running.task, status=TaskStatus.RUNNING)))

    kept = await ledger.finish("t1", running.task, owner="me")
    assert await ledger.get("t1") is kept
    del kept
    gc.collect()

    assert await ledger.get("t1") is None


async def test_only_the_newest_ids_of_ended_tasks_are_remembered(monkeypatch: object) -> None:
    ledger = MemoryLedger()
    many = memory_module.RECENT_IDS + 5
    for number in range(many):
        record = final(f"t{number}", f"x{number}")
        await ledger.add(evolve(record, task=evolve(record.task, status=TaskStatus.RUNNING)))
        await ledger.finish(record.ticket, record.task, owner="me")

    assert await ledger.known("o", ["x0", "x4", "x5", f"x{many - 1}"]) == {"x5", f"x{many - 1}"}


async def test_the_clients_of_a_loop_share_one_ledger() -> None:
    assert MemoryLedger.of_loop() is MemoryLedger.of_loop()
    assert MemoryLedger() is not MemoryLedger.of_loop()
