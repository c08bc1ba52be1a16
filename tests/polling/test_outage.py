"""The wait after faults belongs to the service: few calls while it does not answer, all tasks soon after it does."""

from __future__ import annotations

import asyncio
import itertools
import math

import httpx
import pytest

from bide import Pace, TaskStatus
from bide._service.outage import FAULTS_BEFORE_OUTAGE, Outage, wait_after_fault
from support.emulated import calls, client_at, emulator_with, image, now
from support.toy import Toy, ToyService


def test_single_faults_between_answers_hold_no_poll_back() -> None:
    outage = Outage()
    for moment in range(100):
        outage.note_try(moment)
        outage.note_fault(moment)
        outage.note_answer()

    assert outage.next_try == -math.inf


def test_a_service_that_does_not_answer_is_tried_every_two_seconds_and_after_a_minute_every_ten() -> None:
    outage, moment, tries = Outage(), 0.0, []
    while moment < 120:
        outage.note_try(moment)
        outage.note_fault(moment)
        tries.append(moment)
        moment = max(moment, outage.next_try)

    later = tries[FAULTS_BEFORE_OUTAGE:]
    gaps = [after - before for before, after in itertools.pairwise(later)]
    assert set(gaps) == {2.0, 10.0}
    assert gaps.index(10.0) == pytest.approx(30, abs=2)
    ended: list[bool] = []
    outage.on_end.append(lambda: ended.append(True))
    outage.note_answer()
    assert outage.next_try == -math.inf
    outage.note_answer()
    assert ended == [True]


def test_the_next_try_obeys_the_retry_after_of_a_service_that_is_down() -> None:
    outage = Outage()
    for _ in range(FAULTS_BEFORE_OUTAGE):
        outage.note_fault(0.0, retry_after=30.0)

    assert outage.next_try == 30.0
    assert wait_after_fault(59.0) == 2.0
    assert wait_after_fault(60.0) == 10.0


def test_after_a_single_fault_the_next_poll_waits_only_while_another_one_is_under_way() -> None:
    outage = Outage()
    outage.note_try(10.0)
    outage.note_fault(10.1)

    assert outage.next_poll(is_under_way=False) == -math.inf
    assert outage.next_poll(is_under_way=True) == 12.0
    outage.note_answer()
    assert outage.next_poll(is_under_way=True) == -math.inf


async def test_many_polls_that_are_due_do_not_start_at_once_after_a_poll_has_failed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        polls.append(now())
        if is_down:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"id": request.url.path.rpartition("/")[2], "status": "running"})

    polls: list[float] = []
    is_down = False
    service = ToyService()
    async with service.client(Toy(), pace=Pace.fixed(3.0)) as client:
        client._transport._api._handler = client._transport._api.handler = answer  # type: ignore[union-attr]
        await client.attach("first")
        await asyncio.sleep(0.5)
        for number in range(20):
            await client.attach(f"later{number}")
        await asyncio.sleep(0.5)
        is_down = True
        began, before = now(), len(polls)

        await asyncio.sleep(3.5)

    assert polls[before] - began < 2.5
    assert len(polls) - before <= FAULTS_BEFORE_OUTAGE + 1


@pytest.mark.parametrize("seconds", [20.0, 150.0])
async def test_the_ends_of_an_outage_are_known_soon_after_it(seconds: float) -> None:
    async with (
        emulator_with(image_seconds=(5, 5 + seconds)) as emulator,
        client_at(emulator, pace=Pace.fixed(3.0)) as client,
    ):
        handles = [await client.submit(image(f"{number} [seconds {4 + number}]")) for number in range(15)]
        await asyncio.gather(*(handle.accepted() for handle in handles))
        await asyncio.sleep(4)
        began, before = now(), len(calls(emulator, "query"))
        emulator.fault(on="query", times=100_000, status=502)
        emulator.fault(on="list", times=100_000, status=502)
        await asyncio.sleep(seconds)
        sent = len(calls(emulator, "query")) - before
        emulator._faults.clear()
        assert now() - began == pytest.approx(seconds, abs=1)

        await asyncio.gather(*(handle.result(timeout=15) for handle in handles))

        assert sent <= 2 * seconds
        assert all(handle.task.status is TaskStatus.SUCCEEDED for handle in handles)


async def test_one_task_whose_answers_are_broken_is_polled_on_and_holds_no_other_back() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and request.url.path.endswith("bad"):
            polls.append(now())
            return httpx.Response(502 if len(polls) < 10 else 200, json={"status": "succeeded"})
        return httpx.Response(200, json={"id": request.url.path.rpartition("/")[2], "status": "running"})

    polls: list[float] = []
    service = ToyService()
    async with service.client(Toy(), pace=Pace.fixed(3.0)) as client:
        client._transport._api._handler = client._transport._api.handler = answer  # type: ignore[union-attr]
        bad = await client.attach("bad")
        others = [await client.attach(f"good{number}") for number in range(5)]
        began = now()

        await bad.result()

        assert now() - began < 60
        assert all(other.task.status is TaskStatus.RUNNING for other in others)
