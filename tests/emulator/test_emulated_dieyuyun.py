"""Dieyuyun as its page on async tasks describes it, over a real socket."""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime

import pytest

from bide.emulator import DieyuyunStyle, Emulator, ServiceLimits
from support.emulator_callers import Caller, DieyuyunCaller


async def test_a_task_is_queued_then_processed_then_completed() -> None:
    async with Emulator(image_seconds=20, queue_seconds=2) as emulator, DieyuyunCaller(emulator) as caller:
        created = (await caller.create("a cat on a sill", size="64x48")).json()
        queued = await caller.task(created["id"])
        await asyncio.sleep(11)
        running = await caller.task(created["id"])
        await asyncio.sleep(10)
        done = await caller.task(created["id"])

    assert set(created) == {"id", "status", "progress", "created_at", "request_id"}
    assert (created["status"], created["progress"]) == ("queued", 0)
    assert (queued["status"], queued["progress"], queued["model_code"]) == ("queued", 0, "gpt-image-2")
    assert (running["status"], running["progress"]) == ("processing", 50)
    assert set(running) == {"id", "status", "progress", "model_code", "created_at", "updated_at"}
    assert (done["status"], done["progress"]) == ("completed", 100)
    assert done["usage"] == {"input_tokens": 0, "output_tokens": 1}
    assert done["result"]["data"][0]["url"].startswith(emulator.asset_url)
    assert "a cat on a sill" in done["result"]["data"][0]["revised_prompt"]


async def test_times_are_those_of_the_loops_clock_in_utc() -> None:
    async with Emulator(image_seconds=3600) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        await asyncio.sleep(3600)
        done = await caller.task(task_id)

    created, completed = (datetime.fromisoformat(done[name]) for name in ("created_at", "completed_at"))
    assert done["created_at"].endswith("Z")
    assert 3599 <= (completed - created).total_seconds() <= 3601
    assert abs(done["result"]["created"] - completed.timestamp()) <= 1


async def test_a_failed_task_tells_code_and_message_and_no_progress() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created("a cat [fail upstream_error]")
        await asyncio.sleep(10)
        failed = await caller.task(task_id)

    assert set(failed) == {"id", "status", "error_code", "error_message", "created_at", "failed_at"}
    assert failed["error_code"] == "upstream_error"
    assert failed["error_message"] == "The upstream provider returned an error"


async def test_a_task_can_fail_without_a_word_of_why() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created("a cat [fail]")
        await asyncio.sleep(10)
        failed = await caller.task(task_id)

    assert set(failed) == {"id", "status", "created_at", "failed_at"}


async def test_n_images_are_n_files_and_a_part_may_fail() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created("cats [part]", n=3)
        await asyncio.sleep(10)
        data = (await caller.task(task_id))["result"]["data"]

    assert ["url" in each for each in data] == [True, True, False]
    assert data[2]["error"]["code"] == "upstream_error"
    assert len({each["url"] for each in data[:2]}) == 2


@pytest.mark.parametrize("seconds_before", [0, 5])
async def test_a_task_is_cancelled_while_queued_or_processing(seconds_before: float) -> None:
    async with Emulator(image_seconds=10, queue_seconds=2) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        await asyncio.sleep(seconds_before)
        answer = await caller.cancel(task_id)
        await asyncio.sleep(60)
        later = await caller.task(task_id)

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert later["status"] == "cancelled"
    assert emulator.stats()["cancels"] == 1


async def test_a_finished_task_cannot_be_cancelled() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        await asyncio.sleep(10)
        answer = await caller.cancel(task_id)

        assert answer.status_code == 409
        assert (await caller.task(task_id))["status"] == "completed"


async def test_what_runs_may_go_on_for_a_while_after_a_cancel() -> None:
    async with Emulator(image_seconds=100, cancel_seconds=6) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        await asyncio.sleep(50)
        await caller.cancel(task_id)
        await asyncio.sleep(5)
        before = await caller.task(task_id)
        await asyncio.sleep(1)
        after = await caller.task(task_id)

    assert (before["status"], after["status"]) == ("processing", "cancelled")


async def test_a_cancel_that_comes_just_before_the_end_changes_nothing() -> None:
    async with Emulator(image_seconds=100, cancel_seconds=6) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        await asyncio.sleep(95)
        await caller.cancel(task_id)
        await asyncio.sleep(10)

        assert (await caller.task(task_id))["status"] == "completed"


@pytest.mark.parametrize(("style", "status", "body"), [("no-content", 204, b""), ("empty", 200, b"")])
async def test_a_cancel_may_answer_without_a_body(style: str, status: int, body: bytes) -> None:
    styled = DieyuyunStyle(cancel=style)  # type: ignore[arg-type]
    async with Emulator(dieyuyun=styled) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created()
        answer = await caller.cancel(task_id)

        assert (answer.status_code, answer.content) == (status, body)
        assert (await caller.task(task_id))["status"] == "cancelled"


async def test_an_old_task_has_expired_with_its_files() -> None:
    async with (
        Emulator(image_seconds=10) as emulator,
        DieyuyunCaller(emulator) as caller,
        Caller("", None) as anyone,
    ):
        task_id = await caller.created("a cat [expire 60]")
        await asyncio.sleep(12)
        url = (await caller.task(task_id))["result"]["data"][0]["url"]
        fresh = await anyone.get(url)
        await asyncio.sleep(60)
        stale = await anyone.get(url)
        task = await caller.task(task_id)

    assert (fresh.status_code, stale.status_code) == (200, 403)
    assert set(task) == {"id", "status", "model_code", "created_at"}
    assert task["status"] == "expired"


@pytest.mark.parametrize("status", [404, 410])
async def test_an_old_task_may_also_be_an_error(status: int) -> None:
    styled = DieyuyunStyle(expired=status)  # type: ignore[arg-type]
    async with (
        Emulator(image_seconds=10, keep=60, dieyuyun=styled) as emulator,
        DieyuyunCaller(emulator) as caller,
    ):
        task_id = await caller.created()
        await asyncio.sleep(71)
        answer = await caller.get(f"/v1/tasks/{task_id}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, "task_expired")


async def test_a_task_is_only_known_to_the_key_that_made_it() -> None:
    async with (
        Emulator() as emulator,
        DieyuyunCaller(emulator) as caller,
        DieyuyunCaller(emulator, "sk-two") as other,
    ):
        task_id = await caller.created()
        answers = [
            await other.get(f"/v1/tasks/{task_id}"),
            await other.cancel(task_id),
            await caller.get("/v1/tasks/none"),
        ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert answers[0].json()["error"]["code"] == "task_not_found"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "a cat", "async": true}', 400),
        (b'{"model": "m", "async": true}', 400),
        (b'{"model": "m", "prompt": " ", "async": true}', 400),
        (b'{"model": "m", "prompt": "a cat", "async": true, "n": 0}', 400),
        (b'{"model": "m", "prompt": "a cat", "async": true, "n": true}', 400),
        (b'{"model": "m", "prompt": "a cat", "async": true, "size": "large"}', 400),
        (b'{"model": "m", "prompt": "a cat", "async": true, "size": "99999x10"}', 400),
        (b'{"model": "m", "prompt": "a cat [refuse insufficient_credit]", "async": true}', 402),
        (b'{"model": "m", "prompt": "a cat [refuse moderation_blocked]", "async": true}', 400),
    ],
)
async def test_a_create_that_makes_no_sense_is_refused(body: bytes, status: int) -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        answer = await caller.post("/v1/images/generations", content=body)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "type"}
    assert (emulator.stats()["creates"], emulator.stats()["tasks"]) == (1, 0)


async def test_errors_may_be_flat() -> None:
    async with (
        Emulator(dieyuyun=DieyuyunStyle(errors="flat")) as emulator,
        DieyuyunCaller(emulator, None) as caller,
    ):
        answer = await caller.get("/v1/tasks/task_1")

    assert answer.status_code == 401
    assert answer.json() == {"error_code": "missing_api_key", "error_message": "No API key provided."}


async def test_without_the_async_flag_the_create_answers_with_the_result_itself() -> None:
    async with Emulator(image_seconds=20) as emulator, DieyuyunCaller(emulator) as caller:
        start = asyncio.get_running_loop().time()
        answer = await caller.create("a cat", **{"async": False})
        took = asyncio.get_running_loop().time() - start

    assert set(answer.json()) == {"created", "data"}
    assert took == pytest.approx(20, abs=0.01)


async def test_some_models_answer_at_once_though_async_was_asked_for() -> None:
    styled = DieyuyunStyle(always_sync=True)
    async with Emulator(image_seconds=20, dieyuyun=styled) as emulator, DieyuyunCaller(emulator) as caller:
        fine = await caller.create("a cat [seconds 0]", response_format="b64_json", size="16x16")
        failed = await caller.create("a cat [seconds 0] [fail upstream_error]")

    picture = base64.b64decode(fine.json()["data"][0]["b64_json"])
    assert picture.startswith(b"\x89PNG")
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "upstream_error")


async def test_a_task_can_be_finished_when_it_is_created() -> None:
    async with Emulator() as emulator, DieyuyunCaller(emulator) as caller:
        answer = (await caller.create("a cat [seconds 0]")).json()

    assert answer["status"] == "completed"
    assert answer["result"]["data"]


async def test_videos_have_a_path_and_a_kind_of_their_own() -> None:
    limits = ServiceLimits(concurrency={"video": 1})
    async with (
        Emulator(video_seconds=100, image_seconds=10, dieyuyun_limits=limits) as emulator,
        DieyuyunCaller(emulator) as caller,
    ):
        task_id = await caller.created("a running cat", kind="videos")
        second = await caller.create(kind="videos")
        image = await caller.create()
        await asyncio.sleep(100)
        done = await caller.task(task_id)

    assert (second.status_code, image.status_code) == (429, 200)
    assert second.json()["error"]["code"] == "concurrency_limit_exceeded"
    assert second.headers["retry-after"] == "5"
    assert ".mp4?" in done["result"]["data"][0]["url"]


async def test_a_status_word_that_nobody_knows_stands_for_processing() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        task_id = await caller.created("a cat [status rendering]")
        await asyncio.sleep(5)

        assert (await caller.task(task_id))["status"] == "rendering"


async def test_an_order_that_makes_no_sense_is_plain_text() -> None:
    async with Emulator(image_seconds=10) as emulator, DieyuyunCaller(emulator) as caller:
        await caller.created("a cat [seconds soon] [queue] [colour red] [bytes -1]")

        assert emulator.tasks()[0].ended - emulator.tasks()[0].created == pytest.approx(10)
