"""A lost create whose task is found by model and time alone: it may be another program's, and is not delivered then."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from bide import (
    ImageRequest,
    SQLiteLedger,
    SubmissionUnknownError,
    TaskStatus,
    VideoRequest,
)
from bide.emulator import Emulator
from support.emulated import KEY, calls, client_at, emulator_with, image, truth, video
from support.emulator_callers import IMAGES, VIDEOS
from support.toy import ToyService
from support.virtual_time import wait_for_ledgers

PATHS = {"image": IMAGES, "video": VIDEOS}


async def order(emulator: Emulator, request: ImageRequest | VideoRequest, prompt: str) -> str:
    """Another program with the key has the same model make something else. Returns the id of its task."""
    body = {"model": request.model, "input": {"prompt": prompt}}
    headers = {"Authorization": f"Bearer {KEY}", "X-DashScope-Async": "enable"}
    async with httpx.AsyncClient(base_url=emulator.dashscope_url) as other:
        answer = await other.post(PATHS[request.kind], json=body, headers=headers)
    return str(answer.json()["output"]["task_id"])


async def mistaken(emulator: Emulator, client: Any, request: ImageRequest | VideoRequest) -> tuple[Any, str]:
    """The create of *request* is lost, and the task of another program is found in its place."""
    emulator.fault(on="create", drop="before")
    handle = await client.submit(request)
    await asyncio.sleep(0.5)
    foreign = await order(emulator, request, "theirs")
    assert (await handle.accepted()).task_id == foreign
    return handle, foreign


def assert_left_alone(emulator: Emulator, foreign: str) -> None:
    assert truth(emulator, foreign).status == "SUCCEEDED"
    assert calls(emulator, "cancel") == []
    assert calls(emulator, "asset") == []


@pytest.mark.parametrize("make", [image, video])
async def test_the_result_of_another_program_is_not_delivered(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = make("mine")
    async with (
        emulator_with(image_seconds=40, video_seconds=40) as emulator,
        client_at(emulator, save_to=tmp_path) as client,
    ):
        handle, foreign = await mistaken(emulator, client, request)
        seen = [task async for task in handle.events()]

        with pytest.raises(SubmissionUnknownError, match="was made for another prompt") as caught:
            await handle.result()
        assert (caught.value.bought, caught.value.task_id, handle.task_id) == (None, None, None)
        assert all(task.outputs == () for task in seen)
        assert seen[-1].status is TaskStatus.UNKNOWN
        (lane,) = (await client.statistics()).lanes
        assert lane.slots == 1, "what may have been bought uses a slot"
        await asyncio.sleep(60)
        assert_left_alone(emulator, foreign)
        assert list(tmp_path.iterdir()) == []
        assert len(calls(emulator, "create")) == 2


@pytest.mark.parametrize("prompt", ["mine", "  mine\n of\tnow ", "m" * 3000])
async def test_a_task_that_shows_the_prompt_of_the_request_is_delivered(prompt: str) -> None:
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="after")

        task = await client.run(video(prompt))

        assert task.status is TaskStatus.SUCCEEDED
        assert truth(emulator, task.task_id).prompt == prompt


async def test_a_match_is_undone_after_a_restart_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_ledgers(monkeypatch)
    path = tmp_path / "ledger.db"
    async with emulator_with(video_seconds=40) as emulator:
        async with client_at(emulator, ledger=SQLiteLedger(path)) as first:
            handle, foreign = await mistaken(emulator, first, video("mine"))
            ticket = handle.ticket
        ledger = SQLiteLedger(path)
        async with client_at(emulator, ledger=ledger) as second:
            (handle,) = await second.resume()
            assert handle.task_id == foreign
            with pytest.raises(SubmissionUnknownError, match="was made for another prompt"):
                await handle.result()

            record = await ledger.get(ticket)
            assert record is not None
            assert (record.task.status, record.task.task_id, record.guessed) == (
                TaskStatus.UNKNOWN,
                None,
                False,
            )
            assert record.bought is None
            assert record.slot_until > ledger.now()
            assert await ledger.ticket_of_task(record.origin, foreign) is None
            assert_left_alone(emulator, foreign)


async def test_after_it_was_undone_the_right_task_can_be_named() -> None:
    async with emulator_with(video_seconds=40) as emulator, client_at(emulator) as client:
        handle, _ = await mistaken(emulator, client, video("mine"))
        with pytest.raises(SubmissionUnknownError):
            await handle.result()
        mine = await order(emulator, video("mine"), "mine")

        found = await client.attach(mine, ticket=handle.ticket)

        assert (await found.result()).task_id == mine


async def test_a_task_that_may_be_of_another_program_is_not_cancelled() -> None:
    async with emulator_with(video_seconds=40, queue_seconds=30) as emulator, client_at(emulator) as client:
        handle, foreign = await mistaken(emulator, client, video("mine"))

        assert not await handle.cancel()

        with pytest.raises(SubmissionUnknownError):
            await handle.result()
        assert_left_alone(emulator, foreign)


async def test_a_cancel_that_was_requested_while_the_create_was_looked_up_is_not_sent_either() -> None:
    async with emulator_with(video_seconds=40, queue_seconds=30) as emulator, client_at(emulator) as client:
        emulator.fault(on="create", drop="before")
        handle = await client.submit(video("mine"))
        await asyncio.sleep(0.5)
        cancelling = asyncio.create_task(handle.cancel())
        foreign = await order(emulator, video("mine"), "theirs")

        assert not await cancelling

        with pytest.raises(SubmissionUnknownError):
            await handle.result()
        assert_left_alone(emulator, foreign)


async def test_two_creates_that_are_answered_with_one_id_are_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "bide")
    service = ToyService(creates=[{"id": "one", "status": "queued"}], queries=[{"status": "running"}])
    async with service.client() as client:
        first, second = await client.submit(image("first")), await client.submit(image("second"))
        await first.accepted()

        words = f"the service answered with task id one, which it had given to ticket {first.ticket} already"
        with pytest.raises(SubmissionUnknownError, match=words) as caught:
            await second.result()

        assert (caught.value.bought, caught.value.ticket) == (None, second.ticket)
        assert not first.task.status.is_final
        assert first.task_id == "one"


async def test_the_second_create_may_be_answered_as_done_with_that_id() -> None:
    done = {"id": "one", "status": "failed"}
    service = ToyService(creates=[{"id": "one", "status": "queued"}, done], queries=[{"status": "running"}])
    async with service.client() as client:
        first = await client.submit(image("first"))
        await first.accepted()
        with pytest.raises(SubmissionUnknownError, match=f"given to ticket {first.ticket}"):
            await client.run(image("second"))
