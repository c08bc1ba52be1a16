"""DashScope as its documents describe it, over a real socket."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta, timezone

import httpx
import pytest

from bide.emulator import Emulator
from support.emulator_callers import IMAGES, IMAGES_26, VIDEOS, Caller, DashScopeCaller

BEIJING = timezone(timedelta(hours=8))


async def test_a_video_is_pending_then_running_then_succeeded() -> None:
    async with (
        Emulator(video_seconds=100, queue_seconds=10) as emulator,
        DashScopeCaller(emulator) as caller,
    ):
        created = (await caller.create("a kitten", path=VIDEOS, duration=10, resolution="1080P")).json()
        task_id = created["output"]["task_id"]
        pending = await caller.output(task_id)
        await asyncio.sleep(50)
        running = await caller.task(task_id)
        await asyncio.sleep(50)
        done = await caller.task(task_id)

    assert created["output"] == {"task_status": "PENDING", "task_id": task_id}
    assert set(created) == {"output", "request_id"}
    assert pending["task_status"] == "PENDING"
    assert set(running) == {"request_id", "output"}
    assert set(running["output"]) == {"task_id", "task_status", "submit_time", "scheduled_time"}
    assert running["output"]["task_status"] == "RUNNING"
    assert done["output"]["task_status"] == "SUCCEEDED"
    assert done["output"]["video_url"].startswith(emulator.asset_url)
    assert done["output"]["orig_prompt"] == "a kitten"
    assert done["usage"] == {"duration": 10, "output_video_duration": 10, "video_count": 1, "SR": 1080}


async def test_times_have_milliseconds_and_are_beijings() -> None:
    async with Emulator(image_seconds=3600) as emulator, DashScopeCaller(emulator) as caller:
        before = datetime.now(BEIJING).replace(tzinfo=None)
        task_id = await caller.created()
        await asyncio.sleep(3600)
        output = await caller.output(task_id)

    times = [output[name] for name in ("submit_time", "scheduled_time", "end_time")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", time) for time in times)
    submitted, _, ended = map(datetime.fromisoformat, times)
    assert abs((submitted - before).total_seconds()) < 5
    assert (ended - submitted).total_seconds() == pytest.approx(3600, abs=0.01)


async def test_images_of_the_older_models_stand_in_results() -> None:
    async with Emulator(image_seconds=10) as emulator, DashScopeCaller(emulator) as caller:
        task_id = await caller.created("cats [part 2]", n=3)
        await asyncio.sleep(10)
        task = await caller.task(task_id)

    results = task["output"]["results"]
    assert set(results[0]) == {"orig_prompt", "actual_prompt", "url"}
    assert [each.get("code") for each in results] == [None, "InternalError.Timeout", "InternalError.Timeout"]
    assert task["output"]["task_status"] == "SUCCEEDED"
    assert task["output"]["task_metrics"] == {"TOTAL": 3, "SUCCEEDED": 1, "FAILED": 2}
    assert task["usage"] == {"image_count": 1}


async def test_images_of_the_newer_models_stand_in_choices() -> None:
    async with Emulator(image_seconds=10) as emulator, DashScopeCaller(emulator) as caller:
        task_id = await caller.created("two cats", path=IMAGES_26, n=2)
        await asyncio.sleep(10)
        task = await caller.task(task_id)

    choices = task["output"]["choices"]
    assert len(choices) == 2
    assert choices[0]["finish_reason"] == "stop"
    assert choices[0]["message"]["content"][0]["type"] == "image"
    assert choices[0]["message"]["content"][0]["image"].startswith(emulator.asset_url)


@pytest.mark.parametrize(("model", "files"), [("wanx-v1", 4), ("wan2.2-t2i-flash", 1)])
async def test_the_first_models_make_four_images_where_n_is_missing(model: str, files: int) -> None:
    async with Emulator(image_seconds=10) as emulator, DashScopeCaller(emulator) as caller:
        created = await caller.post(IMAGES, json={"model": model, "input": {"prompt": "a cat"}})
        await asyncio.sleep(10)
        task = await caller.task(created.json()["output"]["task_id"])

    assert task["usage"]["image_count"] == files


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("[fail]", None),
        ("[fail DataInspectionFailed]", "DataInspectionFailed"),
        ("[fail InternalError.Timeout]", "InternalError.Timeout"),
        ("[fail Something.New]", "Something.New"),
    ],
)
async def test_a_failed_task_tells_its_code_flat_in_the_output(words: str, code: str | None) -> None:
    async with Emulator(image_seconds=10) as emulator, DashScopeCaller(emulator) as caller:
        task_id = await caller.created(f"a cat {words}")
        await asyncio.sleep(10)
        output = await caller.output(task_id)

    assert output["task_status"] == "FAILED"
    assert output.get("code") == code
    assert ("message" in output) == (code is not None)


async def test_a_status_word_that_nobody_knows_stands_for_running() -> None:
    async with Emulator(image_seconds=10) as emulator, DashScopeCaller(emulator) as caller:
        task_id = await caller.created("a cat [status SUSPENDED] [queue 3]")
        words = []
        for _ in range(3):
            words.append((await caller.output(task_id))["task_status"])
            await asyncio.sleep(5)

    assert words == ["PENDING", "SUSPENDED", "SUCCEEDED"]


async def test_only_a_pending_task_can_be_cancelled() -> None:
    async with (
        Emulator(video_seconds=100, queue_seconds=10) as emulator,
        DashScopeCaller(emulator) as caller,
    ):
        early, late = await caller.created(path=VIDEOS), await caller.created(path=VIDEOS)
        accepted = await caller.cancel(early)
        await asyncio.sleep(10)
        refused = await caller.cancel(late)
        unknown = await caller.cancel("nothing")
        cancelled = await caller.output(early)

    assert (accepted.status_code, set(accepted.json())) == (200, {"request_id"})
    assert cancelled["task_status"] == "CANCELED"
    for answer in (refused, unknown):
        assert (answer.status_code, answer.json()["code"]) == (400, "UnsupportedOperation")
        assert "PENDING" in answer.json()["message"]


async def test_a_task_that_is_unknown_or_anothers_or_a_day_old_is_unknown_with_http_200() -> None:
    async with (
        Emulator(image_seconds=10) as emulator,
        DashScopeCaller(emulator) as caller,
        DashScopeCaller(emulator, "sk-two") as other,
    ):
        task_id = await caller.created()
        never, others = await caller.task("nothing"), await other.task(task_id)
        await asyncio.sleep(24 * 3600)
        almost = await caller.output(task_id)
        await asyncio.sleep(10)
        old = await caller.task(task_id)

    assert almost["task_status"] == "SUCCEEDED"
    assert never["output"] == {"task_id": "nothing", "task_status": "UNKNOWN"}
    for answer in (others, old):
        assert answer["output"] == {"task_id": task_id, "task_status": "UNKNOWN"}


async def test_a_task_is_given_up_after_three_hours() -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        task_id = await caller.created("a cat [seconds 100000]", path=VIDEOS)
        await asyncio.sleep(3 * 3600 - 1)
        before = await caller.output(task_id)
        await asyncio.sleep(1)
        after = await caller.output(task_id)

    assert before["task_status"] == "RUNNING"
    assert (after["task_status"], after["code"]) == ("FAILED", "InternalError.Timeout")


async def test_the_list_has_pages_and_epoch_milliseconds_and_no_results() -> None:
    async with (
        Emulator(image_seconds=10) as emulator,
        DashScopeCaller(emulator) as caller,
        DashScopeCaller(emulator, "sk-two") as other,
    ):
        await other.created()
        ids = []
        for _ in range(5):
            ids.append(await caller.created())
            await asyncio.sleep(4)
        first = (await caller.get("/tasks", params={"page_size": 2})).json()
        last = (await caller.get("/tasks/", params={"page_size": 2, "page_no": 3, "stray": "1"})).json()

    assert {name: first[name] for name in ("page_no", "page_size", "total_page", "total")} == {
        "page_no": 1,
        "page_size": 2,
        "total_page": 3,
        "total": 5,
    }
    assert [each["task_id"] for page in (first, last) for each in page["data"]] == [ids[4], ids[3], ids[0]]
    newest, oldest = first["data"][0], last["data"][0]
    assert (newest["status"], oldest["status"]) == ("RUNNING", "SUCCEEDED")
    assert "end_time" not in newest
    assert oldest["end_time"] - oldest["gmt_create"] == pytest.approx(10_000, abs=2)
    assert newest["gmt_create"] - oldest["gmt_create"] == pytest.approx(16_000, abs=2)
    assert newest["model_name"] == "wan2.2-t2i-flash"


async def test_the_list_can_be_narrowed_by_time_status_and_model() -> None:
    async with Emulator(image_seconds=100) as emulator, DashScopeCaller(emulator) as caller:
        old = await caller.created()
        await asyncio.sleep(200)
        moment = datetime.fromtimestamp(emulator.wall_time(), BEIJING)
        young = await caller.created()
        await asyncio.sleep(20)
        start = f"{moment - timedelta(seconds=2):%Y%m%d%H%M%S}"
        end = f"{moment + timedelta(seconds=60):%Y%m%d%H%M%S}"
        answers = [
            (await caller.get("/tasks", params=params)).json()["data"]
            for params in (
                {"start_time": start, "end_time": end},
                {"start_time": f"{moment - timedelta(hours=3):%Y%m%d%H%M%S}", "end_time": start},
                {"status": "SUCCEEDED"},
                {"model_name": "wan9"},
            )
        ]

    assert [[each["task_id"] for each in data] for data in answers] == [[young], [old], [old], []]


@pytest.mark.parametrize(
    "params",
    [
        {"page_no": "0"},
        {"page_size": "many"},
        {"start_time": "yesterday"},
        {"start_time": "20260101000000", "end_time": "20260102000001"},
    ],
)
async def test_a_list_that_makes_no_sense_is_refused(params: dict[str, str]) -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        answer = await caller.get("/tasks", params=params)

    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")


async def test_the_gateways_query_path_and_trailing_slashes_are_answered_too() -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        task_id = await caller.created()
        gateway = emulator.dashscope_url.replace("/api/v1", "/apis/v1")
        answers = [
            await caller.get(f"{base}{path}")
            for base in (emulator.dashscope_url, gateway)
            for path in (
                f"/tasks/{task_id}",
                f"/tasks/{task_id}/?stray=1",
                f"/services/aigc/tasks?task_id={task_id}",
            )
        ]
        created = await caller.post(gateway + VIDEOS, json={"model": "m", "input": {"prompt": "a cat"}})

    assert [answer.json()["output"]["task_status"] for answer in answers] == ["PENDING"] * 6
    assert created.json()["output"]["task_status"] == "PENDING"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "InvalidParameter"),
        (b"[]", 400, "InvalidParameter"),
        (b'{"input": {"prompt": "a cat"}}', 400, "InvalidParameter"),
        (b'{"model": "m"}', 400, "InvalidParameter"),
        (b'{"model": "m", "input": {"prompt": ""}}', 400, "InvalidParameter"),
        (b'{"model": "m", "input": {"prompt": "a"}, "parameters": []}', 400, "InvalidParameter"),
        (b'{"model": "m", "input": {"prompt": "a"}, "parameters": {"n": 5}}', 400, "InvalidParameter"),
        (b'{"model": "m", "input": {"prompt": "a"}, "parameters": {"size": "big"}}', 400, "InvalidParameter"),
        (b'{"model": "m", "input": {"messages": [1, {"content": [2]}]}}', 400, "InvalidParameter"),
        (b'{"model": "m", "input": {"prompt": "a [refuse Arrearage]"}}', 400, "Arrearage"),
        (b'{"model": "m", "input": {"prompt": "a [refuse Model.AccessDenied]"}}', 403, "Model.AccessDenied"),
        (b'{"model": "m", "input": {"prompt": "a [refuse ModelNotFound]"}}', 404, "ModelNotFound"),
        (
            b'{"model": "m", "input": {"prompt": "a [refuse Throttling.BurstRate]"}}',
            429,
            "Throttling.BurstRate",
        ),
        (b'{"model": "m", "input": {"prompt": "a [refuse InternalError.Algo]"}}', 500, "InternalError.Algo"),
    ],
)
async def test_a_create_is_refused_with_code_and_message_at_the_top(
    body: bytes, status: int, code: str
) -> None:
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        answer = await caller.post(IMAGES, content=body)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"code", "message", "request_id"}
    assert answer.headers["content-type"] == "application/json"
    assert emulator.stats()["tasks"] == 0


async def test_a_video_may_start_from_a_picture_without_a_prompt() -> None:
    body = {"model": "wan2.2-i2v-flash", "input": {"img_url": "https://example.com/cat.png"}}
    async with Emulator() as emulator, DashScopeCaller(emulator) as caller:
        answer = await caller.post(VIDEOS, json=body)

    assert answer.status_code == 200


async def test_a_create_without_the_async_header_is_refused() -> None:
    async with Emulator() as emulator, Caller(emulator.dashscope_url) as caller:
        answer = await caller.post(IMAGES, json={"model": "m", "input": {"prompt": "a cat"}})

    assert (answer.status_code, answer.json()["code"]) == (403, "AccessDenied")
    assert answer.json()["message"] == "current user api does not support synchronous calls."


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "No API-key provided."),
        ("Bearer", "Invalid API-key provided."),
        ("Basic c2s6", "Invalid API-key provided."),
        ("Bearer sk-wrong", "Invalid API-key provided."),
    ],
)
async def test_a_call_without_a_valid_key_is_unauthorized(header: str | None, message: str) -> None:
    async with Emulator(api_keys=["sk-right"]) as emulator, Caller(emulator.dashscope_url, None) as caller:
        answer = await caller.get("/tasks", headers={"Authorization": header} if header else {})

    assert (answer.status_code, answer.json()["code"]) == (401, "InvalidApiKey")
    assert answer.json()["message"] == message


async def test_an_accepted_key_is_let_in() -> None:
    async with Emulator(api_keys=["sk-right"]) as emulator, DashScopeCaller(emulator, "sk-right") as caller:
        answer = await caller.create()

    assert answer.status_code == 200


async def test_without_its_base_path_there_is_nothing() -> None:
    async with Emulator() as emulator, httpx.AsyncClient() as http:
        root = emulator.dashscope_url.removesuffix("/api/v1")
        answer = await http.get(f"{root}/tasks/x", headers={"Authorization": "Bearer k"})

    assert answer.status_code == 404
