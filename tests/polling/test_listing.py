"""One list in the place of many looks: when it is made, what it may miss, and what becomes of the tasks then."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import mean
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from bide import Client, Limits, Pace, TaskHandle, TaskStatus
from bide._polling import lister
from bide.emulator import Emulator
from support.emulated import (
    KEY,
    UNLIMITED,
    Wire,
    calls,
    client_at,
    emulator_with,
    image,
    now,
    provider_at,
    truth,
    video,
)


class Veil(Wire):
    """The way to the emulator; the answers of lists go through *change*, which gets their rows."""

    def __init__(self, emulator: Emulator, change: Callable[[list[Any]], list[Any]] = list) -> None:
        super().__init__(emulator)
        self.change = change
        self.lists: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if "start_time" not in request.url.params:
            return response
        self.lists.append(request)
        answer = response.json()
        answer["data"] = self.change(answer["data"])
        return httpx.Response(response.status_code, headers={"Date": response.headers["Date"]}, json=answer)


@asynccontextmanager
async def service_with(**options: Any) -> AsyncIterator[Emulator]:
    """An emulator that listens at no socket: virtual time need not wait for any."""
    async with emulator_with(**options) as emulator:
        await emulator.aclose()
        yield emulator


def listing(emulator: Emulator, **options: Any) -> Client:
    """A client of DashScope without sockets, and without limits."""
    provider = {name: options.pop(name) for name in ("lists", "page_size") if name in options}
    options = {"api_key": KEY, "limits": UNLIMITED, "transport": Wire(emulator), **options}
    return Client(provider_at(emulator, "dashscope", **provider), **options)


async def begun(client: Client, number: int, make: Any = video) -> list[TaskHandle]:
    """So many tasks that the service has accepted."""
    handles = [await client.submit(make(str(each))) for each in range(number)]
    await asyncio.gather(*(handle.accepted() for handle in handles))
    return handles


async def ended(handles: Sequence[TaskHandle]) -> list[Any]:
    return await asyncio.gather(*(handle.result() for handle in handles))


def queried(emulator: Emulator) -> Counter[str]:
    """How often each task was looked at singly."""
    return Counter(each.path.rpartition("/")[2] for each in calls(emulator, "query"))


async def cost_of(number: int, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    async with service_with(video_seconds=(60, 120)) as emulator:
        async with listing(emulator, **options) as client:
            tasks = await ended(await begun(client, number))
        return emulator.stats(), tasks


async def test_ten_live_tasks_are_watched_by_lists_and_their_ends_are_fetched_singly() -> None:
    listed, tasks = await cost_of(10)
    single, _ = await cost_of(10, lists=False)

    assert all(task.status is TaskStatus.SUCCEEDED and task.outputs for task in tasks)
    assert listed["lists"] > 5
    assert listed["queries"] >= 10, "a row has no result"
    assert listed["queries"] + listed["lists"] < 0.8 * single["queries"]
    assert single["lists"] == 0


async def test_one_or_two_tasks_are_never_listed() -> None:
    assert (await cost_of(2))[0]["lists"] == 0


async def test_a_service_without_lists_is_never_asked_for_one() -> None:
    async with service_with(video_seconds=(60, 120)) as emulator:
        async with client_at(emulator, "dieyuyun", limits=UNLIMITED, transport=Wire(emulator)) as client:
            await ended(await begun(client, 10))

        assert emulator.stats()["lists"] == 0
        assert all(call.status == 200 for call in calls(emulator, "query"))


@pytest.mark.parametrize("page_size", [2, 5, 10])
async def test_all_pages_of_a_list_are_read(page_size: int) -> None:
    async with service_with(queries=20, video_seconds=(60, 90)) as emulator:
        async with listing(emulator, page_size=page_size) as client:
            tasks = await ended(await begun(client, 30))
        pages = Counter(parse_qs(urlsplit(each.path).query)["page_no"][0] for each in calls(emulator, "list"))

    assert {task.status for task in tasks} == {TaskStatus.SUCCEEDED}
    assert len(pages) >= 30 / page_size
    assert pages["1"] == pages[str(30 // page_size)], "no list stops before its last page"


async def test_a_task_that_two_lists_lack_is_looked_at_singly_and_the_others_are_not() -> None:
    hidden: set[str | None] = set()
    async with service_with(video_seconds="uniform:100:110") as emulator:
        veil = Veil(emulator, lambda rows: [row for row in rows if row["task_id"] not in hidden])
        async with listing(emulator, transport=veil) as client:
            handles = await begun(client, 10)
            hidden.add(handles[0].task_id)
            await ended(handles)
            lag = now() - max(task.ended for task in emulator.tasks())
        looks = queried(emulator)

    others = [looks[str(handle.task_id)] for handle in handles[1:]]
    assert looks[str(handles[0].task_id)] > 3 + mean(others)
    assert lag < 5


async def test_a_task_that_appears_in_the_list_later_is_watched_by_it_again() -> None:
    hidden: set[str | None] = set()
    async with service_with(video_seconds=400) as emulator:
        veil = Veil(emulator, lambda rows: [row for row in rows if row["task_id"] not in hidden])
        async with listing(emulator, transport=veil, pace=Pace(cap=5.0)) as client:
            handles = await begun(client, 10)
            first = str(handles[0].task_id)
            hidden.add(first)
            await asyncio.sleep(100)
            while_hidden = queried(emulator)
            hidden.clear()
            await asyncio.sleep(100)
            after = queried(emulator)
            await ended(handles)

    assert while_hidden[first] > 10
    others = [after[each] - while_hidden[each] for each in after if each != first] or [0]
    assert after[first] - while_hidden[first] <= max(others) + 3


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 429}, {"status": 401}, {"status": 403}, {"body": "<html>"}, {"body": {"data": 5}},
     {"truncate": 20}, {"drop": "before"}, {"body": {"data": [None, 5, {"task_id": 7}], "total_page": "x"}}],
    ids=str,
)  # fmt: skip
async def test_a_list_that_fails_loses_nothing_and_single_looks_do_its_work(fault: dict[str, Any]) -> None:
    async with service_with(video_seconds="uniform:150:170") as emulator:
        emulator.fault(on="list", times=10_000, **fault)
        async with listing(emulator) as client:
            handles = await begun(client, 10)
            tasks = await ended(handles)
            lag = now() - max(task.ended for task in emulator.tasks())
        lists = [each.time for each in calls(emulator, "list")]

    assert {task.status for task in tasks} == {TaskStatus.SUCCEEDED}
    assert lag < 10
    assert 1 <= len(lists) <= 12
    if "data" not in str(fault):
        gaps = [later - sooner for sooner, later in itertools.pairwise(lists)]
        assert all(gap >= 59 or gap < 15 for gap in gaps), "apart from repeats of one list"
        assert len(lists) <= 8


async def test_a_list_that_failed_is_tried_again_after_a_minute() -> None:
    async with service_with(video_seconds=200) as emulator:
        emulator.fault(on="list", times=1, status=403)
        async with listing(emulator) as client:
            await ended(await begun(client, 10))
        first, second, *rest = [each.time for each in calls(emulator, "list")]

    assert 60 <= second - first < 80
    assert rest


async def test_who_waits_hears_nothing_of_a_failing_list() -> None:
    async with service_with(video_seconds=60) as emulator:
        emulator.fault(on="list", times=10_000, status=401)
        async with listing(emulator) as client:
            events = []
            handles = await begun(client, 5)
            async for task in handles[0].events():
                events.append(task.error)
            await ended(handles)

    assert set(events) == {None}


def all_are(status: str) -> Callable[[list[Any]], list[Any]]:
    return lambda rows: [{**row, "status": status} for row in rows]


async def test_a_list_that_shows_ended_tasks_as_running_is_not_believed_for_long() -> None:
    async with service_with(video_seconds=(100, 200)) as emulator:
        veil = Veil(emulator, all_are("RUNNING"))
        async with listing(emulator, transport=veil) as client:
            known = await lags_of(emulator, await begun(client, 10))

        seen = sorted(task.ended + late for task, late in zip(emulator.tasks(), known, strict=True))
        lists = [each.time for each in calls(emulator, "list")]

    assert max(known) < 135, "for a minute, or for the age at the last look"
    assert not [moment for moment in lists if seen[1] + 1 < moment < seen[1] + 59], "two such rows are enough"


async def test_a_list_that_shows_running_tasks_as_ended_ends_none_and_is_left_alone() -> None:
    async with service_with(video_seconds=(100, 200)) as emulator:
        veil = Veil(emulator, all_are("SUCCEEDED"))
        async with listing(emulator, transport=veil) as client:
            handles = await begun(client, 10)
            await asyncio.sleep(90)
            assert not any(handle.task.status.is_final for handle in handles)
            assert len(veil.lists) <= 4
            known = await lags_of(emulator, handles)
        looks = queried(emulator)

    assert max(known) < 10
    assert max(looks.values()) < 90, "as many as without lists"


async def test_a_list_that_takes_long_delays_no_look_for_long() -> None:
    async with service_with(video_seconds=(60, 120)) as emulator:
        emulator.fault(on="list", times=10_000, delay=25)
        async with listing(emulator) as client:
            known = await lags_of(emulator, await begun(client, 10))

    assert max(known) < 10
    assert len(calls(emulator, "list")) <= 5


async def test_a_list_that_is_slow_but_answers_is_left_alone_too() -> None:
    async with service_with(video_seconds=(60, 120)) as emulator:
        emulator.fault(on="list", times=10_000, delay=4)
        async with listing(emulator) as client:
            known = await lags_of(emulator, await begun(client, 10))

    assert max(known) < 10
    assert len(calls(emulator, "list")) <= 3


async def test_a_list_that_asks_for_a_pause_gets_it() -> None:
    async with service_with(video_seconds="uniform:300:320") as emulator:
        emulator.fault(on="list", status=503, headers={"Retry-After": "200"})
        async with listing(emulator) as client:
            await ended(await begun(client, 6))
        refused, *later = [each.time for each in calls(emulator, "list")]

    assert min(later) - refused >= 200


async def lags_of(emulator: Emulator, handles: Sequence[TaskHandle]) -> list[float]:
    """How late each end has been seen."""

    async def late(handle: TaskHandle) -> float:
        task = await handle.result()
        return now() - truth(emulator, task.task_id).ended

    return await asyncio.gather(*map(late, handles))


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_the_clock_of_the_service_may_be_minutes_off(minutes: int) -> None:
    async with service_with(video_seconds=(60, 120)) as emulator:
        emulator._clock._offset += 60 * minutes  # the emulator has no other way to tell a wrong time
        async with listing(emulator) as client:
            tasks = await ended(await begun(client, 10))
        stats = emulator.stats()

    assert all(task.outputs for task in tasks)
    assert stats["lists"] > 5
    assert stats["queries"] <= 10 * 9, "the lists show them"


async def test_a_task_older_than_a_list_reaches_back_is_looked_at_singly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Instead of 23 h, which no task of the emulator lives.
    monkeypatch.setattr(lister, "LONGEST_WINDOW_SECONDS", 600.0)
    async with service_with(video_seconds=900) as emulator:
        async with listing(emulator) as client:
            handles = await begun(client, 4)
            created = now()
            await ended(handles)
            lag = now() - max(task.ended for task in emulator.tasks())
        lists = [each.time - created for each in calls(emulator, "list")]
        looks = [each.time - created for each in calls(emulator, "query")]

    assert 500 < lists[-1] <= 600
    assert sum(600 < look < 900 for look in looks) >= 12, "each of the four a few times"
    assert lag < 30


async def test_each_key_lists_its_own_tasks() -> None:
    keys = ["sk-one-0123456789", "sk-two-0123456789"]
    async with service_with(video_seconds=(60, 120)) as emulator:
        veil = Veil(emulator)
        async with listing(emulator, api_key=keys, transport=veil, limits=Limits(8)) as client:
            tasks = await ended(await begun(client, 16))
        looks = queried(emulator)

    assert all(task.outputs for task in tasks)
    asked = Counter(request.headers["Authorization"].removeprefix("Bearer ") for request in veil.lists)
    assert set(asked) == set(keys)
    assert min(asked.values()) > 3
    assert sum(looks.values()) <= 16 * 8


async def test_a_row_never_takes_a_result_away_and_an_end_is_told_once() -> None:
    async with service_with(video_seconds="uniform:40:60") as emulator:
        async with listing(emulator) as client:
            handles = await begun(client, 6)
            seen = [[task async for task in handle.events()] for handle in handles]
            for handle in handles:
                assert truth(emulator, handle.task_id).ended <= now()

    for snapshots in seen:
        words = [task.status for task in snapshots]
        assert [word for word in words if word.is_final] == [TaskStatus.SUCCEEDED]
        assert snapshots[-1].outputs
        assert all(task.model == "wan2.6-t2v" for task in snapshots if task.model)


async def test_a_fixed_pace_takes_a_list_where_more_is_due_than_a_second_lets_through() -> None:
    async with service_with(queries=5, image_seconds=(30, 60)) as emulator:
        async with listing(emulator, pace=Pace.fixed(3.0), queries_per_second=5) as client:
            tasks = await ended(await begun(client, 100, image))
            lag = now() - max(truth(emulator, task.task_id).ended for task in tasks)
        stats = emulator.stats()

    assert all(task.outputs for task in tasks)
    assert stats["lists"] > 3
    assert stats["queries_429"] == 0
    assert lag < 20


async def test_a_fixed_pace_takes_no_list_where_the_looks_are_let_through() -> None:
    async with service_with(video_seconds=60) as emulator:
        async with listing(emulator, pace=Pace.fixed(3.0), queries_per_second=20) as client:
            await ended(await begun(client, 10))

        assert emulator.stats()["lists"] == 0


async def test_a_list_is_never_the_reason_for_more_queries_than_allowed() -> None:
    async with service_with(queries=5, image_seconds=(20, 40)) as emulator:
        async with listing(emulator, queries_per_second=5) as client:
            await ended(await begun(client, 60, image))
        times = sorted(each.time for on in ("query", "list") for each in calls(emulator, on))
        stats = emulator.stats()

    assert stats["lists"] > 3
    assert stats["queries_429"] == 0
    assert all(later - sooner > 0.99 for sooner, later in zip(times, times[5:], strict=False))


@pytest.mark.no_cover  # tracing doubles its time
async def test_five_hundred_tasks_at_once_are_seen_in_time_with_twenty_queries_a_second() -> None:
    """Single looks alone cannot: each task would be looked at every 25 s."""
    async with service_with(queries=20, image_seconds=(30, 60)) as emulator:
        async with listing(emulator, queries_per_second=20) as client:
            handles = await begun(client, 500, image)
            lags = await lags_of(emulator, handles)
        stats = emulator.stats()

    assert len(lags) == 500
    assert mean(lags) <= 5
    assert stats["queries_429"] == 0
    assert stats["lists"] > 10
