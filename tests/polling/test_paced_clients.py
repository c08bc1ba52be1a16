"""The learned pace in a client: what teaches it, what it spends its looks on, and what it tells of the time left."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import attrs
import httpx
import pytest
from attrs import evolve

from bide import (
    Client,
    Limits,
    MemoryLedger,
    Pace,
    SQLiteLedger,
    Task,
    TaskCancelledError,
    TaskExpiredError,
    TaskFailedError,
    TaskStatus,
)
from bide._polling.durations import Durations, Sample, durations_from, plain_of
from support.emulated import image, now, video
from support.ledger_worlds import record
from support.toy import TimedService, Toy, ToyService
from support.virtual_time import wait_for_ledgers

DONE, RUNNING = {"status": "succeeded"}, {"status": "running"}
HERE = "toy@https://toy.example"


async def learned_in(ledger: MemoryLedger) -> dict[str, Durations]:
    return {
        name.removeprefix(f"{HERE}  "): durations_from(text)
        for name, text in (await ledger.read_learned()).items()
    }


async def seeded(ledger: MemoryLedger, model: str, runs: list[float], queue: float = 0.5) -> None:
    """Let tasks of *model* have taken so long."""
    learned = Durations.from_documents(10, 30)
    for run in runs:
        learned.learn(Sample(queue, run, 0.5, 0.5))
    await ledger.learn({f"{HERE}  {model}": lambda before: plain_of(learned)})


def around(middle: float, part: float = 0.02) -> list[float]:
    return [middle * (1 + part * (number % 21 - 10) / 10) for number in range(128)]


# What teaches ----------------------------------------------------------------------------------------------------


async def test_each_end_teaches_how_long_it_took() -> None:
    ledger, service = MemoryLedger(), TimedService()
    async with service.client(ledger=ledger, pace=Pace(cap=3.0)) as client:
        await client.gather(image("5 20"), image("10 30"), video("40"))

    learned = await learned_in(ledger)
    assert {name: each.seen for name, each in learned.items()} == {
        "image  wan2.5-t2i-preview": 2,
        "video  wan2.6-t2v": 1,
    }
    images = sorted(learned["image  wan2.5-t2i-preview"].ends)
    assert images == [
        (pytest.approx(5, abs=2), pytest.approx(20, abs=4)),
        (pytest.approx(10, abs=2), pytest.approx(30, abs=4)),
    ]
    [(queue, run)] = learned["video  wan2.6-t2v"].ends
    assert queue + run == pytest.approx(40, abs=2)
    assert 0 < learned["video  wan2.6-t2v"].lag < 2


async def test_a_failure_teaches_like_an_end() -> None:
    ledger, service = MemoryLedger(), TimedService()
    async with service.client(ledger=ledger) as client:
        with pytest.raises(TaskFailedError):
            await client.run(image("20 failed"))

    [learned] = (await learned_in(ledger)).values()
    assert learned.seen == 1
    assert sum(learned.ends[0]) == pytest.approx(20, abs=3)


async def test_what_was_cancelled_or_has_expired_teaches_nothing() -> None:
    ledger, service = MemoryLedger(), TimedService()
    async with service.client(ledger=ledger) as client:
        handle = await client.submit(image("50"))
        await asyncio.sleep(20)
        await handle.cancel()
        with pytest.raises(TaskCancelledError):
            await handle.result()
        with pytest.raises(TaskExpiredError):
            await client.run(image("20 expired"))
        await asyncio.sleep(3)

    assert await ledger.read_learned() == {}


async def test_a_task_that_is_attached_long_after_its_end_teaches_nothing() -> None:
    ledger, service = MemoryLedger(), ToyService(queries=[DONE])
    async with service.client(ledger=ledger) as client:
        await (await client.attach("toy-1")).result()

    assert await ledger.read_learned() == {}


class DatedToy(Toy):
    """A toy whose service tells when a task was made and has ended."""

    def _task(self, reply: Any) -> Task:
        made = datetime(2030, 1, 1, tzinfo=UTC)
        task = super()._task(reply)
        return attrs.evolve(task, created_at=made, finished_at=made + timedelta(seconds=20))


@pytest.mark.parametrize("toy", [Toy(), DatedToy()], ids=["untold", "told"])
async def test_an_end_that_nobody_could_look_at_in_time_teaches_no_lateness(toy: Toy) -> None:
    """Looks failed for a long time, or the client was away: the pace is not to lateness."""
    ledger = MemoryLedger()
    service = ToyService(queries=[RUNNING, httpx.Response(503, headers={"Retry-After": "900"}), DONE])
    async with service.client(toy, ledger=ledger) as client:
        await client.run(image())

    learned = await learned_in(ledger)
    if isinstance(toy, DatedToy):
        [known] = learned.values()
        assert sum(known.ends[0]) == pytest.approx(20, abs=0.1), "the service told how long it took"
        assert known.late == 0
    else:
        assert learned == {}


async def test_a_look_that_waited_for_the_budget_blames_nobody() -> None:
    ledger, service = MemoryLedger(), TimedService()
    async with service.client(ledger=ledger, limits=Limits(), queries_per_second=1) as client:
        await client.gather(*(image("60") for _ in range(16)))

    [learned] = (await learned_in(ledger)).values()
    assert learned.seen >= 10
    assert learned.lag > 4, "that is what the ends were seen late by"
    assert learned.late < 3


# What the looks are spent on -------------------------------------------------------------------------------------


async def test_fewer_looks_see_the_ends_sooner_once_it_is_learned() -> None:
    ledger, service = MemoryLedger(), TimedService()
    async with service.client(ledger=ledger, limits=Limits(5)) as client:
        for _ in range(8):
            await client.gather(*(image(str(100 + number)) for number in range(5)))
        looks = [len(each) for each in service.looks.values()]

    assert mean(looks[-10:]) < 0.75 * mean(looks[:5])
    lags = [service.looks[each][-1] - service.end(each) for each in service.tasks]
    assert mean(lags[-10:]) < 2


async def first_look(*, waiting: int) -> float:
    """The age at the first look at a task while so many requests come to wait for its slot, a second later."""
    service = ToyService(queries=[RUNNING])
    async with service.client(
        ledger=MemoryLedger(), limits=Limits(1), pace=Pace(price=5.0, cap=1000)
    ) as client:
        await client.submit(image("a"))
        await asyncio.sleep(1)
        for number in range(waiting):
            await client.submit(image(str(number)))
        await asyncio.sleep(60)
    return service.times("GET")[0] - service.times("POST")[0]


async def test_requests_that_come_to_wait_bring_the_looks_at_running_tasks_forward() -> None:
    alone, one, many = [
        mean([await first_look(waiting=waiting) for _ in range(20)])  # each has jitter
        for waiting in (0, 1, 20)
    ]

    assert max(one, many) < 0.8 * alone
    assert many >= 3.0, "the floor holds"


async def test_requests_that_wait_never_win_over_retry_after_and_the_floor() -> None:
    service = ToyService(queries=[RUNNING, httpx.Response(503, headers={"Retry-After": "33"}), RUNNING])
    async with service.client(limits=Limits(1), pace=Pace(price=0.001)) as client:
        await client.submit(image("a"))
        await asyncio.sleep(8)
        for number in range(20):
            await client.submit(image(str(number)))
        await asyncio.sleep(80)

    times = service.times("GET")
    assert times[2] - times[1] >= 33
    assert min(later - sooner for sooner, later in itertools.pairwise(times)) >= 3.0 - 1e-6


@pytest.mark.parametrize(("number", "most"), [(30, 2.9), (60, 15.0)])
async def test_over_budget_the_likeliest_end_is_looked_at_first_and_no_task_starves(
    number: int, most: float
) -> None:
    """A round through all takes so many seconds, and the first in the queue would be half of that late."""
    ledger, service = MemoryLedger(), TimedService()
    await seeded(ledger, "image  quick", around(100))
    await seeded(ledger, "image  slow", around(3000))
    async with service.client(ledger=ledger, limits=Limits(1000), queries_per_second=1) as client:
        for each in range(number):
            model, seconds = ("quick", "100") if each % 6 == 0 else ("slow", "3000")
            await client.submit(image(seconds, model=model))
        await asyncio.sleep(400)

    quick = [each for each, (_, _, run, _) in service.tasks.items() if run == 100]
    assert len(quick) == number / 6
    assert mean(service.looks[each][-1] - service.end(each) for each in quick) < most
    started = min(created for created, *_ in service.tasks.values())
    for each in service.tasks.keys() - set(quick):
        moments = [service.tasks[each][0], *service.looks[each], started + 400]
        for sooner, later in itertools.pairwise(moments):
            assert later - sooner < max(5, (sooner - started) / 2) + number + 5, "its cap, and a round"


@pytest.mark.parametrize("rate", [2, 7])
async def test_a_budget_is_never_exceeded(rate: int) -> None:
    service = TimedService()
    async with service.client(limits=Limits(), queries_per_second=rate) as client:
        await client.gather(*(image(str(10 + number % 20)) for number in range(40)))

    times = service.times("GET")
    assert all(later - sooner > 0.98 for sooner, later in zip(times, times[rate:], strict=False))


async def test_the_pace_of_a_client_is_checked() -> None:
    with pytest.raises(TypeError, match="pace"):
        Client(Toy(), api_key="sk-toy", pace=3.0)  # type: ignore[arg-type]


# What is told of the time that is left ---------------------------------------------------------------------------


async def test_the_time_left_appears_after_the_first_look_falls_and_is_gone_at_the_end() -> None:
    ledger, service = MemoryLedger(), TimedService()
    await seeded(ledger, "image  wan2.5-t2i-preview", around(60))
    async with service.client(ledger=ledger) as client:
        handle = await client.submit(image("60"))
        await handle.accepted()
        assert handle.task.eta is None
        told: list[tuple[float, float | None]] = []
        [created, *_] = service.tasks["toy-1"]
        while not handle.task.status.is_final:
            await asyncio.sleep(0.5)
            told.append((now() - created, handle.task.eta))

    etas = [eta for _, eta in told if eta is not None]
    assert etas[0] == pytest.approx(55, abs=4), "at the first look, within five seconds"
    assert etas == sorted(etas, reverse=True)
    assert etas[-1] < 15
    assert told[-1][1] is None
    assert handle.task.eta is None


async def test_the_time_left_makes_no_event_of_its_own() -> None:
    service = ToyService(queries=[*[RUNNING] * 8, DONE])
    async with service.client() as client:
        handle = await client.submit(image())
        seen = [task.status async for task in handle.events()]

    assert len(seen) == len(set(seen)), "nothing but the states"


@pytest.mark.parametrize("durable", [False, True])
async def test_the_events_of_a_task_have_the_time_left(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_ledgers(monkeypatch)
    ledger = SQLiteLedger(tmp_path / "ledger.db") if durable else MemoryLedger()
    service = ToyService(queries=[RUNNING, {"status": "running", "progress": 50}, DONE])
    async with service.client(ledger=ledger) as client, service.client(ledger=ledger) as other:
        handle = await client.submit(image())
        follower = await other.attach(ticket=handle.ticket)
        following = asyncio.create_task(anext_running(follower.events()))
        etas = {(task.status, task.progress): task.eta async for task in handle.events()}

        assert etas.pop((TaskStatus.SUCCEEDED, 50)) is None
        running = {at: eta for at, eta in etas.items() if at[0] is TaskStatus.RUNNING}
        assert len(running) == 2
        assert None not in running.values()
        assert (await following).eta is not None


async def test_the_time_left_of_a_record_is_not_stored(tmp_path: Path) -> None:
    async with SQLiteLedger(tmp_path / "ledger.db") as ledger, SQLiteLedger(ledger.path) as other:
        task = Task(ticket="t1", task_id="x1", status=TaskStatus.RUNNING, eta=12.0)
        await ledger.add(record("t1", task=task))

        kept = await other.get("t1")
        assert kept is not None
        assert kept.task == evolve(task, eta=None)


async def anext_running(events: AsyncIterator[Task]) -> Task:
    return await anext(task async for task in events if task.status is TaskStatus.RUNNING)


async def test_the_time_left_survives_the_plain_form() -> None:
    service = ToyService(queries=[RUNNING])
    async with service.client() as client:
        handle = await client.submit(image())
        await asyncio.sleep(20)
        task = handle.task

    assert task.eta is not None
    back = Task.from_dict(task.to_dict())
    assert back.eta == task.eta
    assert task.to_dict()["eta"] == task.eta
