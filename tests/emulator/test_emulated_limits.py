"""What the emulator allows a key, and what it counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bide.emulator import Emulator, ServiceLimits, fingerprint
from support.emulator_callers import VIDEOS, Caller, DashScopeCaller, DieyuyunCaller, until


async def test_a_fourth_video_is_refused_until_one_of_three_has_ended() -> None:
    async with Emulator(video_seconds=60) as emulator, DashScopeCaller(emulator) as caller:
        answers = [await caller.create(path=VIDEOS) for _ in range(4)]
        await asyncio.sleep(60)
        answers.append(await caller.create(path=VIDEOS))

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 200]
    assert answers[3].json()["code"] == "Throttling.Concurrency"
    assert answers[3].headers["retry-after"] == "5"
    assert emulator.stats()["max_in_flight"] == {fingerprint("sk-one"): {"video": 3}}


async def test_a_cancelled_task_gives_its_slot_back() -> None:
    limits = ServiceLimits(concurrency=1)
    async with (
        Emulator(image_seconds=60, queue_seconds=60, dashscope_limits=limits) as emulator,
        DashScopeCaller(emulator) as caller,
    ):
        await caller.cancel(await caller.created())
        answer = await caller.create()

    assert answer.status_code == 200
    assert emulator.stats()["max_in_flight"] == {fingerprint("sk-one"): {"image": 1}}


async def test_every_key_has_slots_of_its_own() -> None:
    async with (
        Emulator(dieyuyun_limits=ServiceLimits(concurrency=1)) as emulator,
        DieyuyunCaller(emulator) as one,
        DieyuyunCaller(emulator, "sk-two") as two,
    ):
        answers = [
            await one.create(),
            await one.create(),
            await two.create(),
            await one.create(kind="videos"),
        ]

    assert [answer.status_code for answer in answers] == [200, 429, 200, 200]


async def test_thirty_images_are_created_in_any_minute() -> None:
    async with Emulator(image_seconds=1) as emulator, DashScopeCaller(emulator) as caller:
        start = asyncio.get_running_loop().time()
        first = [await caller.create() for _ in range(31)]
        await until(start + 59)
        second = await caller.create()
        await until(start + 60.1)
        third = [await caller.create() for _ in range(31)]

    assert [answer.status_code for answer in first] == [200] * 30 + [429]
    assert first[-1].json()["code"] == "Throttling.RateQuota"
    assert second.status_code == 429
    assert [answer.status_code for answer in third] == [200] * 30 + [429]
    assert emulator.stats()["creates"] == 63
    assert emulator.stats()["creates_429"] == 3


async def test_queries_lists_and_cancels_share_twenty_a_second() -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        calls = [caller.get("/tasks/x") for _ in range(18)] + [caller.get("/tasks"), caller.cancel("x")]
        allowed = [(await call).status_code for call in calls]
        refused = await caller.get("/tasks/x")
        await asyncio.sleep(1)
        later = await caller.get("/tasks/x")

    assert allowed == [200] * 19 + [400]
    assert (refused.status_code, refused.json()["code"]) == (429, "Throttling.RateQuota")
    assert later.status_code == 200
    assert (emulator.stats()["queries"], emulator.stats()["queries_429"]) == (20, 1)


async def test_limits_can_be_switched_off() -> None:
    async with (
        Emulator(dashscope_limits=ServiceLimits()) as emulator,
        DashScopeCaller(emulator) as caller,
    ):
        creates = [(await caller.create(path=VIDEOS)).status_code for _ in range(40)]
        queries = [(await caller.get("/tasks")).status_code for _ in range(40)]

    assert creates + queries == [200] * 80


@pytest.mark.parametrize(("seconds", "header"), [(30, "30"), (0.5, "0.5"), (None, None)])
async def test_retry_after_is_as_ordered(seconds: float | None, header: str | None) -> None:
    limits = ServiceLimits(creates_per_minute=1)
    async with (
        Emulator(retry_after=seconds, dieyuyun_limits=limits) as emulator,
        DieyuyunCaller(emulator) as caller,
    ):
        await caller.create()
        answer = await caller.create()

    assert (answer.status_code, answer.headers.get("retry-after")) == (429, header)
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_the_counters_tell_both_services_apart_and_together() -> None:
    async with (
        Emulator(image_seconds=10) as emulator,
        DieyuyunCaller(emulator) as dieyuyun,
        DashScopeCaller(emulator, "sk-two") as dashscope,
        Caller("", None) as anyone,
    ):
        task_id = await dieyuyun.created()
        await dashscope.created("a cat [fail]")
        await asyncio.sleep(10)
        task = await dieyuyun.task(task_id)
        await anyone.get(task["result"]["data"][0]["url"])
        await dashscope.get("/tasks")
        await dashscope.cancel("x")
        stats = emulator.stats()

    services = stats.pop("services")
    assert stats == {
        "creates": 2,
        "creates_429": 0,
        "tasks": 2,
        "queries": 1,
        "queries_429": 0,
        "cancels": 1,
        "lists": 1,
        "asset_gets": 1,
        "max_in_flight": {fingerprint("sk-one"): {"image": 1}, fingerprint("sk-two"): {"image": 1}},
        "statuses": {"completed": 1, "FAILED": 1},
    }
    assert services["dieyuyun"]["asset_gets"] == 1
    assert services["dashscope"] == {
        "creates": 1,
        "creates_429": 0,
        "tasks": 1,
        "queries": 0,
        "queries_429": 0,
        "cancels": 1,
        "lists": 1,
        "asset_gets": 0,
        "max_in_flight": {fingerprint("sk-two"): {"image": 1}},
        "statuses": {"FAILED": 1},
    }


async def test_the_record_of_truth_tells_when_each_task_ended() -> None:
    async with (
        Emulator(image_seconds=(8, 12), queue_seconds=2) as emulator,
        DieyuyunCaller(emulator) as caller,
    ):
        start = asyncio.get_running_loop().time()
        await caller.created("one")
        await caller.created("two", n=2)
        before = emulator.tasks()
        await asyncio.sleep(12)
        after = emulator.tasks()

    assert [task.status for task in before + after] == ["queued", "queued", "completed", "completed"]
    for task in after:
        assert task.created == pytest.approx(start, abs=0.1)
        assert task.started - task.created == pytest.approx(2)
        assert 8 <= task.ended - task.created <= 12
        assert (task.service, task.kind, task.model, task.key) == (
            "dieyuyun",
            "image",
            "gpt-image-2",
            fingerprint("sk-one"),
        )
    assert [(task.prompt, task.body.get("n")) for task in after] == [("one", None), ("two", 2)]


async def _ends(**settings: Any) -> list[float]:
    async with Emulator(**settings) as emulator, DieyuyunCaller(emulator) as caller:
        for _ in range(40):
            await caller.created()
        return [task.ended - task.created for task in emulator.tasks()]


async def test_durations_follow_the_seed() -> None:
    first, again, other = [await _ends(image_seconds="lognormal:16:0.3", seed=seed) for seed in (1, 1, 2)]

    assert first == pytest.approx(again)
    assert first != pytest.approx(other)
    assert 13 < sorted(first)[20] < 19


async def test_speed_divides_durations() -> None:
    assert await _ends(image_seconds=10, speed=20) == pytest.approx([0.5] * 40)


async def test_a_share_of_the_tasks_fails_with_documented_codes() -> None:
    async with (
        Emulator(image_seconds=1, failure_share=0.5, dashscope_limits=ServiceLimits()) as emulator,
        DashScopeCaller(emulator) as caller,
    ):
        ids = [await caller.created() for _ in range(60)]
        await asyncio.sleep(1)
        outputs = [await caller.output(task_id) for task_id in ids]

    codes = {each.get("code") for each in outputs if each["task_status"] == "FAILED"}
    assert 15 < emulator.stats()["statuses"]["FAILED"] < 45
    assert codes == {"InternalError.Timeout", "InternalError", "DataInspectionFailed", None}


@pytest.mark.parametrize(
    "duration",
    ["soon", "uniform:3", "lognormal:0:1", "normal:1:2", "1:2:3", (3, 2), (1, 2, 3), -1, float("inf"), "nan"],
)
def test_a_duration_that_makes_no_sense_is_refused(duration: Any) -> None:
    with pytest.raises(ValueError, match=r"duration|range"):
        Emulator(image_seconds=duration)


@pytest.mark.parametrize("settings", [{"speed": 0}, {"failure_share": 1.5}])
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Emulator(**settings)


async def test_a_rotated_key_is_refused_and_the_new_one_has_its_tasks_and_its_slots() -> None:
    limits = ServiceLimits(concurrency=1)
    async with (
        Emulator(image_seconds=60, queue_seconds=0, dashscope_limits=limits, api_keys=["sk-one"]) as emulator,
        DashScopeCaller(emulator) as old,
        DashScopeCaller(emulator, "sk-two") as new,
    ):
        refused = await new.create()
        task_id = await old.created()
        url = emulator.dieyuyun_url + "/_emulator/keys"

        answer = await old.post(url, json={"old": "sk-one", "new": "sk-two"})

        assert (refused.status_code, answer.json()) == (401, {"ok": True})
        assert (await old.get(f"/tasks/{task_id}")).status_code == 401
        assert (await new.output(task_id))["task_status"] == "RUNNING"
        assert (await new.create()).status_code == 429
        assert emulator.stats()["max_in_flight"] == {fingerprint("sk-one"): {"image": 1}}
        emulator.reset()
        assert [(await each.create()).status_code for each in (old, new)] == [200, 401]


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"old": "sk-three", "new": "sk-four"}, "the old key is refused already"),
        ({"old": "sk-one", "new": "sk-one"}, "the new key is in use"),
        ({"old": "sk-one", "new": "sk-two"}, "the new key is in use"),
        ({"old": "sk-one"}, "expected"),
        ({"old": "sk-one", "new": 3}, "expected"),
        (["sk-one", "sk-two"], "expected"),
    ],
)
async def test_an_order_to_rotate_a_key_says_what_is_wrong_with_it(order: Any, error: str) -> None:
    async with Emulator(api_keys=["sk-one", "sk-two"]) as emulator, DieyuyunCaller(emulator) as caller:
        answer = await caller.post("/_emulator/keys", json=order)

        assert (answer.status_code, (await caller.create()).status_code) == (400, 200)
        assert error in answer.json()["error"]


async def test_a_key_can_be_rotated_again_but_not_back() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator, "sk-three") as caller:
        emulator.rotate_key("sk-one", "sk-two")
        emulator.rotate_key("sk-two", "sk-three")
        with pytest.raises(ValueError, match="was in use before"):
            emulator.rotate_key("sk-three", "sk-one")

        await caller.created()

        assert emulator.tasks()[0].key == fingerprint("sk-one")
