"""Each row of the table of measured faults, against the emulator over real sockets.

Where a row holds for both services, the test runs with both.
"""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from bide import Billing, Limits, SubmissionUnknownError, TaskFailedError, TaskStatus, WaitTimeoutError
from bide.emulator import Emulator
from support.emulated import KEY, SERVICES, THREE, calls, client_at, emulator_with, image, now, truth, video

pytestmark = pytest.mark.parametrize("service", SERVICES)


async def test_a_create_that_was_read_before_the_cut_is_sent_once_and_looked_up_or_told(service: str) -> None:
    async with emulator_with(video_seconds=12) as emulator, client_at(emulator, service) as client:
        emulator.fault(on="create", drop="after")
        handle = await client.submit(video())

        if service == "dashscope":
            task = await handle.result()
            assert task.task_id == emulator.tasks()[0].id
            assert task.status is TaskStatus.SUCCEEDED
        else:
            with pytest.raises(SubmissionUnknownError, match="console or list") as caught:
                await handle.result()
            assert caught.value.ticket == handle.ticket
            assert caught.value.request == handle.request
            assert caught.value.sent_at is not None
            assert caught.value.model == "wan2.6-t2v"

        assert len(calls(emulator, "create")) == 1
        assert len(emulator.tasks()) == 1


@pytest.mark.parametrize(
    "body", ["<html>gateway</html>", "{}", '{"output": {"task_id": ""}}', "", '{"id": null}']
)
async def test_a_2xx_without_a_readable_id_is_treated_as_such_a_create(service: str, body: str) -> None:
    async with emulator_with(video_seconds=12) as emulator, client_at(emulator, service) as client:
        emulator.fault(on="create", status=200, body=body, effect=True)
        handle = await client.submit(video())

        if service == "dashscope":
            assert (await handle.result()).task_id == emulator.tasks()[0].id
        else:
            with pytest.raises(SubmissionUnknownError, match="makes no sense"):
                await handle.result()

        assert len(calls(emulator, "create")) == 1


async def test_an_answer_that_breaks_off_is_treated_as_such_a_create(service: str) -> None:
    async with emulator_with(video_seconds=12) as emulator, client_at(emulator, service) as client:
        emulator.fault(on="create", truncate=10)
        handle = await client.submit(video())

        if service == "dashscope":
            assert (await handle.result()).status is TaskStatus.SUCCEEDED
        else:
            with pytest.raises(SubmissionUnknownError):
                await handle.result()

        assert len(calls(emulator, "create")) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_server_error_on_create_is_treated_as_such_a_create(service: str, status: int) -> None:
    async with emulator_with(video_seconds=12) as emulator, client_at(emulator, service) as client:
        emulator.fault(on="create", status=status, body={"code": "InternalError"}, effect=True)
        handle = await client.submit(video())

        if service == "dashscope":
            assert (await handle.result()).task_id == emulator.tasks()[0].id
        else:
            with pytest.raises(SubmissionUnknownError, match=str(status)):
                await handle.result()

        assert len(calls(emulator, "create")) == 1


async def test_twelve_tasks_behind_three_slots_all_finish_with_twelve_creates_and_no_429(
    service: str,
) -> None:
    async with emulator_with(concurrency=3, video_seconds=(8, 12), retry_after=5) as emulator:
        async with client_at(emulator, service, limits=THREE) as client:
            started = now()
            tasks = await client.gather(*(video(f"number {number}") for number in range(12)))
            wall = now() - started

        stats = emulator.stats()
        assert [task.status for task in tasks] == [TaskStatus.SUCCEEDED] * 12
        assert (stats["creates"], stats["creates_429"]) == (12, 0)
        assert [kinds["video"] for kinds in stats["max_in_flight"].values()] == [3]
        assert wall <= 4 * 12 + 4 * 6, "four task lengths and the lag of four looks"


async def test_a_hundred_tasks_at_twenty_queries_a_second_all_finish_without_a_429(service: str) -> None:
    async with emulator_with(queries=20, image_seconds=20) as emulator:
        options = {"limits": Limits(100, math.inf), "queries_per_second": 20.0}
        async with client_at(emulator, service, **options) as client:
            started = now()
            tasks = await client.gather(*(image(f"number {number}") for number in range(100)))
            wall = now() - started

        stats = emulator.stats()
        assert [task.status for task in tasks] == [TaskStatus.SUCCEEDED] * 100
        assert stats["queries_429"] == 0
        assert wall <= 33


async def test_nobody_of_the_lane_creates_before_the_retry_after_has_passed(service: str) -> None:
    async with (
        emulator_with(video_seconds=5) as emulator,
        client_at(emulator, service, limits=THREE) as client,
    ):
        emulator.fault(on="create", status=429, headers={"Retry-After": "30"})
        handles = [await client.submit(video(f"number {number}")) for number in range(6)]
        await asyncio.gather(*(handle.result() for handle in handles))

        times = [call.time for call in calls(emulator, "create")]
        refused = [call.time for call in calls(emulator, "create") if call.status == 429]
        assert len(refused) == 1
        # Two more were on their way with the first one; after its answer nobody went before 30 s.
        assert all(each <= refused[0] + 1 or each >= refused[0] + 30 for each in times)
        assert sum(each <= refused[0] + 1 for each in times) <= 3


@pytest.mark.parametrize(
    "fault",
    [{"drop": "before"}, {"drop": "after"}, {"status": 429}, {"status": 500}, {"status": 503}, {"status": 408},
     {"truncate": 5}, {"status": 200, "body": "not json"}],
)  # fmt: skip
async def test_one_bad_poll_loses_nothing(service: str, fault: dict[str, object]) -> None:
    async with emulator_with(video_seconds=20) as emulator, client_at(emulator, service) as client:
        emulator.fault(on="query", **fault)  # type: ignore[arg-type]

        task = await client.run(video())

        assert task.status is TaskStatus.SUCCEEDED
        assert len(calls(emulator, "create")) == 1


async def test_a_poll_that_hangs_does_not_hold_a_wait_beyond_its_limit_and_the_task_goes_on(
    service: str,
) -> None:
    async with emulator_with(video_seconds=30) as emulator, client_at(emulator, service) as client:
        emulator.fault(on="query", delay=3600)
        handle = await client.submit(video())
        await handle.accepted()
        await asyncio.sleep(11)
        before = now()

        with pytest.raises(WaitTimeoutError, match="may still finish"):
            await handle.result(timeout=3)

        assert now() - before == pytest.approx(3, abs=0.01)
        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_a_new_status_word_counts_as_running_and_is_warned_about_once(
    service: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator, service) as client:
        handles = [await client.submit(video("[status DREAMING] a cat")) for _ in range(2)]
        with caplog.at_level(logging.WARNING, logger="bide"):
            await handles[0].accepted()
            await asyncio.sleep(20)
            during = handles[0].task
            tasks = await asyncio.gather(*(handle.result() for handle in handles))

        assert during.status is TaskStatus.RUNNING
        assert during.raw_status == "DREAMING"
        assert [task.status for task in tasks] == [TaskStatus.SUCCEEDED] * 2
        warnings = [record.getMessage() for record in caplog.records if "DREAMING" in record.getMessage()]
        assert len(warnings) == 1


async def test_a_failure_without_a_code_is_told_as_it_is_with_the_raw_answer(service: str) -> None:
    async with emulator_with(video_seconds=5) as emulator, client_at(emulator, service) as client:
        handle = await client.submit(video("[fail] a cat"))

        with pytest.raises(TaskFailedError, match="gives no reason") as caught:
            await handle.result()

        error = caught.value
        assert error.task is not None
        assert error.code is None
        assert error.retryable is None
        assert error.billing is (Billing.NONE if service == "dashscope" else Billing.UNKNOWN)
        assert error.task.raw is not None
        assert handle.task_id in str(error.task.raw)


async def test_a_failure_with_a_code_tells_it(service: str) -> None:
    async with emulator_with(video_seconds=5) as emulator, client_at(emulator, service) as client:
        with pytest.raises(TaskFailedError) as caught:
            await client.run(video("[fail DataInspectionFailed] a cat"))

        assert caught.value.code == "DataInspectionFailed"


async def test_the_key_never_leaves_the_origin_of_the_api(service: str, tmp_path: object) -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator, service) as client:
        handle = await client.submit(image())

        files = await handle.save(str(tmp_path))

        assert len(files) == 1
        assert all(call.has_key for call in calls(emulator, "create") + calls(emulator, "query"))
        assert calls(emulator, "asset")
        assert not any(call.has_key or KEY in str(call) for call in calls(emulator, "asset"))


async def test_a_cancelled_wait_leaves_the_task_and_its_id_on_record(service: str) -> None:
    async with emulator_with(video_seconds=20) as emulator, client_at(emulator, service) as client:
        handle = await client.submit(video(), ticket="order-17")
        wait = asyncio.create_task(handle.result())
        await asyncio.sleep(8)
        wait.cancel()
        await asyncio.wait([wait])

        assert wait.cancelled()
        again = await client.submit(video(), ticket="order-17")
        assert again.task_id == emulator.tasks()[0].id
        assert (await again.result()).status is TaskStatus.SUCCEEDED
        assert len(calls(emulator, "create")) == 1


async def test_an_end_is_seen_soon_and_with_few_looks(service: str) -> None:
    async with emulator_with(concurrency=3, image_seconds=(8, 12)) as emulator:
        lags = []
        async with client_at(emulator, service, limits=THREE) as client:
            async for handle in client.as_completed(image(f"number {number}") for number in range(60)):
                lags.append(now() - truth(emulator, handle.task_id).ended)

        stats = emulator.stats()
        assert len(lags) == 60
        assert sum(lags) / 60 <= 0.8 * 3
        assert stats["queries"] + stats["lists"] <= 60 * (2 + 10 / 3)


async def test_a_client_that_was_told_nothing_keeps_the_documented_limits(service: str) -> None:
    """DashScope's own figures, 3 videos at once. Dieyuyun names none, so its limit is learned from a 429."""
    if service == "dieyuyun":
        async with (
            emulator_with(concurrency=3, video_seconds=6) as emulator,
            client_at(emulator, service) as client,
        ):
            tasks = await client.gather(*(video(str(number)) for number in range(8)))
            assert len({task.task_id for task in tasks}) == len(emulator.tasks()) == 8
        return
    async with Emulator(video_seconds=6) as emulator, client_at(emulator, service) as client:
        await client.gather(*(video(str(number)) for number in range(8)))
        stats = emulator.stats()
        assert stats["creates_429"] == 0
        assert [kinds["video"] for kinds in stats["max_in_flight"].values()] == [3]
