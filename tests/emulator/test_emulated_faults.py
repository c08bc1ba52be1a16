"""Misbehaviour on order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from bide.emulator import Emulator
from support.emulator_callers import Caller, DashScopeCaller, DieyuyunCaller


async def test_a_create_cut_before_it_takes_effect_makes_no_task() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", drop="before")
        with pytest.raises(httpx.TransportError):
            await caller.create()
        after = await caller.create()

    assert after.status_code == 200
    assert (emulator.stats()["creates"], emulator.stats()["tasks"]) == (2, 1)
    assert [record.status for record in emulator.requests()] == [None, 200]


async def test_a_create_cut_after_it_took_effect_has_made_a_task() -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        emulator.fault(on="create", drop="after")
        with pytest.raises(httpx.ReadError):
            await caller.create("a paid cat")
        listed = (await caller.get("/tasks")).json()["data"]

    assert emulator.stats()["tasks"] == 1
    assert listed[0]["task_id"] == emulator.tasks()[0].id
    assert emulator.tasks()[0].prompt == "a paid cat"


async def test_an_ordered_status_has_no_effect_and_the_services_own_error_body() -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        emulator.fault(on="create", times=2, status=503, headers={"Retry-After": 7})  # type: ignore[dict-item]
        answers = [await caller.create() for _ in range(3)]

    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert set(answers[0].json()) == {"code", "message", "request_id"}
    assert emulator.stats()["tasks"] == 1


async def test_an_ordered_body_is_sent_as_it_is() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="query", body=b"\xff\xfe", headers={"Content-Type": "text/plain"})
        emulator.fault(on="query", status=500, body="<html>")
        emulator.fault(on="query", body={"odd": ["ö"]})
        answers = [await caller.get("/v1/tasks/x") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert [answer.content for answer in answers[:2]] == [b"\xff\xfe", b"<html>"]
    assert answers[0].headers["content-type"] == "text/plain"
    assert answers[2].json() == {"odd": ["ö"]}


async def test_a_call_may_take_effect_and_answer_nonsense() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", body={"ok": True}, effect=True)
        answer = await caller.create()

    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert emulator.stats()["tasks"] == 1


async def test_headers_alone_leave_the_answer_as_it_is() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", headers={"Retry-After": "3"})
        answer = await caller.create()

    assert (answer.status_code, answer.headers["retry-after"]) == (200, "3")
    assert answer.json()["status"] == "queued"


async def test_an_ordered_429_counts_as_one() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", status=429)
        emulator.fault(on="cancel", status=429)
        await caller.create()
        await caller.cancel("x")

    assert (emulator.stats()["creates_429"], emulator.stats()["queries_429"]) == (1, 1)


async def test_a_delayed_call_takes_effect_on_arrival_and_answers_later() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        start = asyncio.get_running_loop().time()
        emulator.fault(on="create", delay=30)
        answer = await caller.create()
        took = asyncio.get_running_loop().time() - start

    assert answer.status_code == 200
    assert took == pytest.approx(30, abs=0.01)
    assert emulator.tasks()[0].created - start < 0.01


async def test_a_delayed_drop_hangs_first() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        start = asyncio.get_running_loop().time()
        emulator.fault(on="query", delay=30, drop="before")
        with pytest.raises(httpx.ReadError):
            await caller.get("/v1/tasks/x")

        assert asyncio.get_running_loop().time() - start == pytest.approx(30, abs=0.01)


async def test_who_hangs_up_during_a_delay_has_still_made_the_task() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", delay=3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await caller.create()
        await asyncio.sleep(1)

    assert emulator.stats()["tasks"] == 1


async def test_a_truncated_answer_breaks_off_before_its_promised_length() -> None:
    body = {"model": "m", "prompt": "p", "async": True}
    arrived = bytearray()

    async def read(answer: httpx.Response) -> None:
        async for chunk in answer.aiter_raw():
            arrived.extend(chunk)

    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", truncate=10)
        async with caller.stream("POST", "/v1/images/generations", json=body) as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                await read(answer)

    assert len(arrived) == 10
    assert int(answer.headers["content-length"]) > 10
    assert emulator.stats()["tasks"] == 1


@pytest.mark.parametrize("status", [200, 204, 304, 308, 402, 425, 599])
async def test_any_final_status_can_be_ordered(status: int) -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="query", status=status)
        answers = [await caller.get("/v1/tasks/x") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [status, 404]


async def test_a_truncation_longer_than_the_answer_changes_nothing() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        emulator.fault(on="create", truncate=100_000)
        answer = await caller.create()

    assert answer.json()["status"] == "queued"


async def test_faults_wait_for_the_service_and_the_text_they_are_meant_for() -> None:
    async with (
        Emulator() as emulator,
        DieyuyunCaller(emulator) as dieyuyun,
        DashScopeCaller(emulator) as dashscope,
    ):
        emulator.fault(on="create", status=500, service="dashscope")
        emulator.fault(on="create", status=501, match="dog")
        answers = [
            await dieyuyun.create("a cat"),
            await dieyuyun.create("a dog"),
            await dieyuyun.create("a dog"),
            await dashscope.create("a cat"),
        ]

    assert [answer.status_code for answer in answers] == [200, 501, 200, 500]


async def test_faults_are_ordered_read_and_forgotten_over_http() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        orders = [{"on": "create", "times": 2, "status": 503}, {"on": "query", "drop": "after"}]
        ordered = await caller.post("/_emulator/faults", json=orders)
        single = await caller.post("/_emulator/faults", json={"on": "list", "delay": 1})
        refused = await caller.create()
        stats = (await caller.get("/_emulator/stats")).json()
        reset = await caller.post("/_emulator/reset")
        accepted = await caller.create()

    assert (ordered.json()["faults"], single.json()["faults"], reset.status_code) == (2, 1, 200)
    assert (refused.status_code, accepted.status_code) == (503, 200)
    assert (stats["creates"], stats["tasks"]) == (1, 0)
    assert (emulator.stats()["creates"], emulator.stats()["tasks"]) == (1, 1)


@pytest.mark.parametrize(
    "order",
    [
        "{",
        [],
        {},
        {"on": "upload"},
        {"on": "create", "times": 0},
        {"on": "create", "times": True},
        {"on": "create", "status": "503"},
        {"on": "create", "status": 100},
        {"on": "create", "headers": []},
        {"on": "create", "drop": "during"},
        {"on": "create", "delay": -1},
        {"on": "create", "truncate": -1},
        {"on": "create", "effect": "yes"},
        {"on": "create", "service": "other"},
        {"on": "create", "match": 1},
        {"on": "create", "colour": "red"},
        [{"on": "create", "status": 500}, {"on": "nothing"}],
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_as_a_whole(order: Any) -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        text = order if isinstance(order, str) else json.dumps(order or [order])
        answer = await caller.post("/_emulator/faults", content=text)
        created = await caller.create()

    assert answer.status_code == 400
    assert answer.json()["error"]
    assert created.status_code == 200


async def test_unknown_paths_answer_404_in_json() -> None:
    async with Emulator() as emulator, Caller(emulator.dieyuyun_url) as caller:
        paths = ["/", "/v1/models", "/api/v1/services/aigc/none", "/_emulator/none", "/v1/images/generations"]
        answers = [await caller.get(path) for path in paths]
        answers.append(await caller.delete("/api/v1/tasks/x"))

    assert [answer.status_code for answer in answers] == [404] * 6
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
