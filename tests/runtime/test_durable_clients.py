"""Several clients on one ledger file: who drives what, what the others see of it, and how it is handed on.

Each client here has a `SQLiteLedger` of its own, as each process has.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from bide import (
    Client,
    ClientClosedError,
    Dieyuyun,
    Limits,
    Pace,
    SubmissionUnknownError,
    TaskCancelledError,
    TaskHandle,
    TaskStatus,
)
from bide._runtime import lost_creates
from bide._service import query_rate
from bide.emulator import Emulator
from bide.ledgers import SQLiteLedger
from bide.ledgers.sqlite import session as _session
from support.emulated import calls, emulator_with, provider_at, video
from support.sites import QuickToy, Site
from support.toy import ToyService
from support.virtual_time import wait_for_ledgers
from support.waits import A_MINUTE, until

DONE, RUNNING = {"status": "succeeded"}, {"status": "running"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wait_for_ledgers(monkeypatch)
    return tmp_path / "tasks.db"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever joins need not wait long for others to hear of it."""
    monkeypatch.setattr(query_rate, "RAISE_AFTER_SECONDS", 0.1)


def at(emulator: Emulator, path: Path, service: str = "dashscope", **options: Any) -> Client:
    provider = provider_at(emulator, service, video_floor=0.05, image_floor=0.05)
    return Client(provider, api_key="sk-durable", ledger=SQLiteLedger(path), **options)


async def queries(client: Client) -> int:
    return (await client.statistics()).queries


# Following ------------------------------------------------------------------------------------------------


async def test_a_follower_sees_the_states_and_the_end_without_a_query_of_its_own(path: Path) -> None:
    async with (
        emulator_with() as emulator,
        at(emulator, path, pace=Pace.fixed(0.05)) as driver,
        at(emulator, path) as follower,
    ):
        driven = await driver.submit(video("a [queue 0.2] [seconds 0.5]"), ticket="t")
        handle = await follower.attach(ticket="t")
        seen = [task.status async for task in handle.events()]

        assert seen[-2:] == [TaskStatus.RUNNING, TaskStatus.SUCCEEDED]
        mine, theirs = await handle.result(), await driven.result()
        assert (mine.task_id, mine.outputs) == (theirs.task_id, theirs.outputs)
        assert await queries(follower) == 0
        assert len(calls(emulator, "query")) == await queries(driver)
        assert handle.request == driven.request


async def test_a_follower_hears_of_a_failure_as_the_driver_does(path: Path) -> None:
    site = Site(path, ToyService(creates=[400]))
    async with site.client() as driver, site.client() as follower:
        await driver.submit(video(), ticket="t")
        handle = await follower.attach(ticket="t")

        with pytest.raises(Exception, match="no") as caught:
            await handle.result(timeout=A_MINUTE)
        assert type(caught.value).__name__ == "InvalidRequestError"


async def test_the_refresh_of_a_follower_reads_the_ledger_and_asks_nobody(path: Path) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    async with site.client() as driver, site.client() as follower:
        driven = await driver.submit(video(), ticket="t")
        await driven.accepted()
        handle = await follower.attach(ticket="t")
        task = await handle.refresh()

        assert task.task_id == driven.task_id
        assert task.status.is_accepted
        assert await queries(follower) == 0


async def test_a_ticket_that_has_ended_is_attached_with_its_result_and_no_query(path: Path) -> None:
    site = Site(path, ToyService(queries=[DONE]))
    async with site.client() as first:
        await (await first.submit(video(), ticket="t")).result()
    asked = site.service.count("GET")
    async with site.client() as second:
        task = await (await second.attach(ticket="t")).result(timeout=A_MINUTE)

        assert (task.status, task.task_id) == (TaskStatus.SUCCEEDED, "toy-1")
        assert site.service.count("GET") == asked


async def test_a_ticket_that_is_on_no_record_is_a_lookup_error(path: Path) -> None:
    async with Site(path, ToyService()).client() as client:
        with pytest.raises(LookupError, match="no record of ticket 'nobody'"):
            await client.attach(ticket="nobody")


@pytest.mark.parametrize(
    "other",
    [
        {"api_key": "sk-another"},
        {"provider": Dieyuyun()},
    ],
    ids=["key", "service"],
)
async def test_a_ticket_of_another_service_or_key_is_refused(path: Path, other: dict[str, Any]) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    provider = other.pop("provider", QuickToy())
    async with site.client() as first:
        await (await first.submit(video(), ticket="t")).accepted()
        site.service.script["GET"] = [404]  # the account of the other key has no such task
        async with site.client(provider, **other) as second:
            with pytest.raises(ValueError, match=r"another (service|key)"):
                await second.attach(ticket="t")
            with pytest.raises(ValueError, match=r"another (service|key)"):
                await second.submit(video(), ticket="t")
            with pytest.raises(ValueError, match=r"another (service|key)"):
                await second.attach("toy-1", ticket="t")
            assert await second.resume() == []


# Cancelling what another one drives -----------------------------------------------------------------------


async def cancelled_meanwhile(handle: TaskHandle, service: ToyService) -> bool:
    """Cancel while the create is not answered yet."""
    cancel = asyncio.create_task(handle.cancel())
    await asyncio.sleep(0.1)
    service.let_go("POST")
    return await cancel


async def test_a_follower_withdraws_what_waits_at_another_client(path: Path) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    async with site.client(limits=Limits(1)) as driver, site.client(limits=Limits(1)) as follower:
        first = await driver.submit(video("first"))
        await first.accepted()
        waits = await driver.submit(video("waits"), ticket="t")
        handle = await follower.attach(ticket="t")

        assert await handle.cancel()
        with pytest.raises(TaskCancelledError):
            await waits.result(timeout=A_MINUTE)
        assert site.service.count("POST") == 1


async def test_a_follower_cancels_what_is_being_submitted_by_another_client(path: Path) -> None:
    service = ToyService(queries=[RUNNING])
    site = Site(path, service)
    async with site.client() as driver, site.client() as follower, service.holding("POST"):
        driven = await driver.submit(video(), ticket="t")
        await until(lambda: service.count("POST") == 1)
        handle = await follower.attach(ticket="t")
        assert handle.task.status is TaskStatus.SUBMITTING
        service.script["GET"] = [{"status": "cancelled"}]

        assert await cancelled_meanwhile(handle, service)
        for each in (driven, handle):
            with pytest.raises(TaskCancelledError):
                await each.result(timeout=A_MINUTE)
        assert service.count("POST") == 1


async def test_a_cancel_of_what_another_client_submits_is_asked_for_once_and_is_true(path: Path) -> None:
    """Both hear of the id at once; the second cancel of a task would be too late."""
    service = ToyService(queries=[RUNNING], cancels=[{}, 409])
    site = Site(path, service)
    async with site.client() as driver, site.client() as follower, service.holding("POST"):
        await driver.submit(video(), ticket="t")
        await until(lambda: service.count("POST") == 1)
        handle = await follower.attach(ticket="t")

        assert await cancelled_meanwhile(handle, service)
        await asyncio.sleep(0.2)
        assert service.count("DELETE") == 1


async def test_a_cancel_asked_for_while_submitting_is_not_repeated_at_each_change(path: Path) -> None:
    service = ToyService(queries=[{"status": "queued"}, RUNNING, {"status": "queued"}, RUNNING, DONE])
    client = Site(path, service).client(pace=Pace.fixed(0.05))
    async with client, service.holding("POST"):
        handle = await client.submit(video(), ticket="t")
        await until(lambda: service.count("POST") == 1)

        assert await cancelled_meanwhile(handle, service)
        await handle.result(timeout=A_MINUTE)
        assert service.count("DELETE") == 1


async def test_a_follower_cancels_what_is_being_submitted_and_then_refused_for_now(path: Path) -> None:
    service = ToyService(creates=[429])
    site = Site(path, service)
    async with site.client() as driver, site.client() as follower, service.holding("POST"):
        driven = await driver.submit(video(), ticket="t")
        await until(lambda: service.count("POST") == 1)
        handle = await follower.attach(ticket="t")

        assert await cancelled_meanwhile(handle, service)
        with pytest.raises(TaskCancelledError):
            await driven.result(timeout=A_MINUTE)
        assert service.count("POST") == 1
        assert service.count("DELETE") == 0


async def test_a_follower_cancels_what_another_client_has_running(path: Path) -> None:
    service = ToyService(queries=[RUNNING])
    site = Site(path, service)
    async with site.client() as driver, site.client() as follower:
        driven = await driver.submit(video(), ticket="t")
        await driven.accepted()
        handle = await follower.attach(ticket="t")
        service.script["GET"] = [{"status": "cancelled"}]

        assert await handle.cancel()
        for each in (driven, handle):
            with pytest.raises(TaskCancelledError):
                await each.result(timeout=A_MINUTE)
        assert service.count("DELETE") == 1


async def test_a_cancel_asked_for_while_submitting_outlives_its_owner(path: Path) -> None:
    service = ToyService(queries=[RUNNING])
    service.delay["POST"] = 0.3
    site = Site(path, service)
    first = site.client()
    handle = await first.submit(video(), ticket="t")
    await until(lambda: service.count("POST") == 1)
    cancel = asyncio.create_task(handle.cancel())
    await asyncio.sleep(0.1)
    service.delay["DELETE"] = 60
    closing = asyncio.create_task(first.aclose(grace=0.4))
    await asyncio.wait([closing, cancel])
    service.delay["DELETE"] = 0
    asked = service.count("DELETE")
    service.script["GET"] = [{"status": "cancelled"}]

    async with site.client() as second:
        with pytest.raises(TaskCancelledError):
            await (await second.attach(ticket="t")).result(timeout=A_MINUTE)
        assert service.count("DELETE") == asked + 1


# Resuming and closing -------------------------------------------------------------------------------------


async def test_resume_gives_the_handles_of_all_that_is_open_adopted_or_followed(path: Path) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    async with site.client(limits=Limits(2), adopt=False) as alive:
        await (await alive.submit(video("driven"), ticket="driven")).accepted()
        gone = site.client(limits=Limits(2), adopt=False)
        left = [await gone.submit(video(name), ticket=name) for name in ("left", "waiting")]
        await left[0].accepted()
        await gone.aclose()
        async with site.client(limits=Limits(2)) as second:
            handles = await second.resume()

            assert [handle.ticket for handle in handles] == ["driven", "left", "waiting"]
            owners = {each.ticket: each.owner for each in await second._ledger.records()}  # type: ignore[union-attr]
            assert owners["left"] == owners["waiting"] != owners["driven"]
            site.service.script["GET"] = [DONE]
            for handle in handles:
                assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED
    assert site.service.count("POST") == 3


async def test_a_clean_close_hands_all_over_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _session, "TICK_SECONDS", 3600.0
    )  # the others are notified: they need not look around
    service = ToyService(queries=[RUNNING])
    site = Site(path, service)
    first = site.client(limits=Limits(2))
    async with site.client(limits=Limits(2), pace=Pace.fixed(0.05)) as second:
        accepted = await first.submit(video("accepted"), ticket="accepted")
        await accepted.accepted()
        service.delay["POST"] = 0.2
        await first.submit(video("submitting"), ticket="submitting")
        await first.submit(video("waiting"), ticket="waiting")
        await until(lambda: service.count("POST") == 2)
        await first.aclose()
        service.script["GET"] = [DONE]
        handles = [await second.attach(ticket=each) for each in ("accepted", "submitting", "waiting")]
        await handles[0].result(timeout=A_MINUTE)

        for handle in handles:
            assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED
    assert service.count("POST") == 3
    assert sorted(service.tickets) == ["accepted", "submitting", "waiting"]


async def test_a_create_cut_off_by_the_grace_is_looked_up_by_the_next_client(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_creates, "LOOKUP_SECONDS", (0.05, 0.2, 0.4))
    async with emulator_with() as emulator:
        emulator.fault(on="create", delay=60)
        first = at(emulator, path)
        handle = await first.submit(video("a [seconds 0.1]"), ticket="t")
        await until(lambda: len(emulator.tasks()) == 1)
        await first.aclose(grace=0)
        assert handle.task.status is TaskStatus.SUBMITTING
        with pytest.raises(ClientClosedError):
            await handle.result()

        async with at(emulator, path) as second:
            task = await (await second.attach(ticket="t")).result(timeout=A_MINUTE)
            assert [task.task_id] == [each.id for each in emulator.tasks()]


async def test_a_client_that_adopts_nothing_does_so_when_it_resumes(path: Path) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    first = site.client()
    for ticket in ("t", "u"):
        await (await first.submit(video(ticket), ticket=ticket)).accepted()
    await first.aclose()
    asked = site.service.count("GET")
    async with site.client(adopt=False) as second:
        await asyncio.sleep(0.8)  # longer than one look round
        assert site.service.count("GET") == asked

        handles = await second.resume()
        assert [handle.ticket for handle in handles] == ["t", "u"]
        site.service.script["GET"] = [DONE]
        for handle in handles:
            assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED


async def test_a_client_that_adopts_nothing_watches_the_ticket_it_asks_for(path: Path) -> None:
    site = Site(path, ToyService(queries=[DONE]))
    first = site.client(limits=Limits(1))
    await (await first.submit(video(), ticket="t")).accepted()
    await first.submit(video("waits"), ticket="w")
    await first.aclose()
    async with site.client(limits=Limits(1), adopt=False) as second:
        waits = await second.attach(ticket="w")
        handle = await second.attach(ticket="t")

        assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED
        await asyncio.sleep(0.8)
        assert waits.task.status is TaskStatus.WAITING, "asking for it does not send it"
        assert await waits.cancel()
    assert site.service.count("POST") == 1


async def test_a_client_that_adopts_nothing_watches_what_is_in_the_way_of_its_own_requests(
    path: Path,
) -> None:
    site = Site(path, ToyService(queries=[DONE]))
    first = site.client(limits=Limits(1))
    await (await first.submit(video(), ticket="t")).accepted()
    await first.submit(video("waits"), ticket="w")
    await first.aclose()
    async with site.client(limits=Limits(1), adopt=False) as second:
        mine = await second.submit(video("mine"))

        assert (await mine.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED
        assert (await second.attach(ticket="w")).task.status is TaskStatus.WAITING
    assert site.service.count("POST") == 2


async def test_closing_with_withdraw_ends_what_was_never_sent(path: Path) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    first = site.client(limits=Limits(1))
    running = await first.submit(video("running"), ticket="running")
    await running.accepted()
    await first.submit(video("waiting"), ticket="waiting")
    await first.aclose(withdraw=True)

    async with site.client(limits=Limits(1)) as second:
        assert [handle.ticket for handle in await second.resume()] == ["running"]
        with pytest.raises(ClientClosedError, match="nothing was made"):
            await (await second.attach(ticket="waiting")).result(timeout=A_MINUTE)


async def test_closing_with_withdraw_leaves_what_others_have_waiting(path: Path) -> None:
    site = Site(path, ToyService(queries=[RUNNING]))
    async with site.client(limits=Limits(1)) as other:
        await (await other.submit(video("running"))).accepted()
        waits = await other.submit(video("waiting"), ticket="waiting")
        first = site.client(limits=Limits(1))
        await first.attach(ticket="waiting")
        await first.aclose(withdraw=True)

        assert waits.task.status is TaskStatus.WAITING


# One ticket, one create -----------------------------------------------------------------------------------


async def test_one_ticket_in_two_clients_is_one_create(path: Path) -> None:
    service = ToyService(queries=[DONE])
    service.delay["POST"] = 0.1
    site = Site(path, service)
    async with site.client() as first, site.client() as second:
        handles = await asyncio.gather(
            *(client.submit(video(), ticket="t") for client in (first, second, first, second))
        )
        tasks = [await handle.result(timeout=A_MINUTE) for handle in handles]

    assert {task.task_id for task in tasks} == {"toy-1"}
    assert service.tickets == ["t"]


async def test_a_client_has_one_handle_of_a_ticket_however_often_it_asks(path: Path) -> None:
    site = Site(path, ToyService(queries=[DONE]))
    async with site.client() as first, site.client() as second:
        mine = await first.submit(video(), ticket="t")

        theirs = await asyncio.gather(*(second.attach(ticket="t") for _ in range(3)))

        assert theirs[0] is theirs[1] is theirs[2]
        assert await first.attach(ticket="t") is mine


async def test_a_ticket_names_one_request_for_all_clients(path: Path) -> None:
    site = Site(path, ToyService(queries=[DONE]))
    async with site.client() as first, site.client() as second:
        await first.submit(video("a cat"), ticket="t")

        with pytest.raises(ValueError, match="already names another request"):
            await second.submit(video("a dog"), ticket="t")


async def test_a_ticket_that_has_ended_is_not_created_again(path: Path) -> None:
    site = Site(path, ToyService(queries=[DONE]))
    async with site.client() as first:
        await (await first.submit(video(), ticket="t")).result()
    async with site.client() as second:
        assert (await (await second.submit(video(), ticket="t")).result(timeout=A_MINUTE)).task_id == "toy-1"
    assert site.service.count("POST") == 1


# What nobody knows ----------------------------------------------------------------------------------------


async def test_an_unknown_submission_is_settled_with_the_id_that_was_found(path: Path) -> None:
    async with emulator_with() as emulator:
        async with at(emulator, path, "dieyuyun") as first:
            emulator.fault(on="create", drop="after")
            handle = await first.submit(video("a [seconds 0]"), ticket="t")
            with pytest.raises(SubmissionUnknownError):
                await handle.result(timeout=A_MINUTE)
        (made,) = emulator.tasks()
        async with at(emulator, path, "dieyuyun") as second, at(emulator, path, "dieyuyun") as third:
            followed = await third.attach(ticket="t")
            settled = await second.attach(made.id, ticket="t")

            assert (await settled.result(timeout=A_MINUTE)).task_id == made.id
            with pytest.raises(SubmissionUnknownError):
                await followed.result(timeout=A_MINUTE)
            assert (await (await third.attach(ticket="t")).result(timeout=A_MINUTE)).task_id == made.id
            with pytest.raises(ValueError, match="only one whose create is unknown"):
                await third.attach("another-id", ticket="t")
        assert len(calls(emulator, "create")) == 1


async def test_an_unknown_record_holds_its_slot_for_all_clients(path: Path) -> None:
    site = Site(path, ToyService(creates=[500, {"status": "queued"}], queries=[DONE]))
    toy = QuickToy(unknown_hold=0.8)
    async with site.client(toy, limits=Limits(1)) as first:
        with pytest.raises(SubmissionUnknownError):
            await (await first.submit(video("lost"))).result()
        lost = site.service.times("POST")[0]
    async with site.client(toy, limits=Limits(1)) as second:
        await (await second.submit(video("next"))).result(timeout=A_MINUTE)

    assert 0.799 <= site.service.times("POST")[1] - lost < 1.6


# What a lane has learned ----------------------------------------------------------------------------------


async def test_a_pause_outlives_the_client_that_was_told_it(path: Path) -> None:
    refusal = httpx.Response(429, headers={"Retry-After": "1"}, json={})
    site = Site(path, ToyService(creates=[refusal, {"status": "queued"}], queries=[DONE]))
    first = site.client(limits=Limits(3))
    handle = await first.submit(video("told"), ticket="told")
    await until(lambda: site.service.count("POST") == 1 and handle.task.status is TaskStatus.WAITING)
    await first.aclose()
    async with site.client(limits=Limits(3)) as second:
        handles = [await second.submit(video("other")), await second.attach(ticket="told")]
        for each in handles:
            await each.result(timeout=A_MINUTE)

    refused, *later = site.service.times("POST")
    assert 0.999 <= min(later) - refused < 1.8
    assert site.service.tickets[1] == "told", "it goes first: it was at the head"


async def test_a_learned_cap_outlives_the_client_that_learned_it(path: Path) -> None:
    refusal = httpx.Response(429, headers={"Retry-After": "0.1"}, json={})
    site = Site(
        path, ToyService(creates=[{"status": "queued"}, refusal, {"status": "queued"}], queries=[RUNNING])
    )
    first = site.client(limits=Limits(3))
    await (await first.submit(video("running"))).accepted()
    refused = await first.submit(video("refused"))
    await until(lambda: site.service.count("POST") == 2 and refused.task.status is TaskStatus.WAITING)
    await first.aclose()
    async with site.client(limits=Limits(3)) as second:
        await second.submit(video("another"))
        await asyncio.sleep(1.0)  # the pause has long been over

        (lane,) = (await second.statistics()).lanes
        assert lane.learned == 1
        assert site.service.count("POST") == 2
