"""The handle: waiting, events, refresh, many at once."""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path
from typing import Any

import anyio
import pytest

from bide import (
    Billing,
    DownloadError,
    Limits,
    NotFoundError,
    ServerError,
    TaskFailedError,
    TaskStatus,
    TransportError,
    WaitTimeoutError,
)
from support.emulated import KEY, client_at, emulator_with, image, now, video
from support.toy import Toy, ToyService

DONE = {"status": "succeeded"}
RUNNING = {"status": "running"}


def bar(percent: float) -> dict[str, Any]:
    return {**RUNNING, "progress": percent}


async def test_events_begin_with_the_state_now_and_end_with_the_last_one() -> None:
    service = ToyService(queries=[RUNNING, RUNNING, bar(30), bar(30), bar(70), {**DONE, "progress": 100}])
    async with service.client() as client:
        handle = await client.submit(image())
        seen = [(str(task.status), task.progress) async for task in handle.events()]

        assert seen[0][0] in ("waiting", "submitting")
        assert seen[-4:] == [("running", None), ("running", 30), ("running", 70), ("succeeded", 100)]
        assert [task async for task in handle.events()] == [handle.task]


async def test_a_failure_ends_the_events_quietly_with_its_snapshot() -> None:
    async with ToyService(queries=[{"status": "failed"}]).client() as client:
        handle = await client.submit(image())

        last = [task async for task in handle.events()][-1]

        assert last.status is TaskStatus.FAILED


async def test_events_raise_what_waiters_are_told_and_can_go_on() -> None:
    async with ToyService(queries=[*[401] * 4, DONE]).client() as client:
        events = (await client.submit(image())).events()

        with pytest.raises(Exception, match="denied"):
            async for _ in events:
                pass

        assert (await anext(events)).status is TaskStatus.SUCCEEDED
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_a_slow_reader_misses_what_lies_between_and_never_the_last() -> None:
    service = ToyService(queries=[*[bar(percent) for percent in range(1, 20)], DONE])
    async with service.client() as client:
        handle = await client.submit(image())
        seen = []
        async for task in handle.events():
            seen.append(task)
            await asyncio.sleep(25)

        assert 3 <= len(seen) <= 8
        assert seen[-1].status is TaskStatus.SUCCEEDED


async def test_any_number_of_waiters_and_readers_share_one_poll() -> None:
    service = ToyService(queries=[bar(10), bar(50), DONE])
    async with service.client() as client:
        handle = await client.submit(image())

        async def read() -> list[Any]:
            return [task async for task in handle.events()]

        results = await asyncio.gather(*(handle.result() for _ in range(50)), *(read() for _ in range(50)))

        assert all(result is handle.task for result in results[:50])
        assert service.count("GET") == 3


async def test_leaving_the_loop_of_events_early_breaks_nothing() -> None:
    service = ToyService(queries=[bar(10), bar(50), DONE])
    async with service.client() as client, anyio.create_task_group() as group:
        handle = await client.submit(image())

        async def read() -> None:
            async for task in handle.events():
                if task.progress:
                    break

        group.start_soon(read)
        with anyio.move_on_after(2):
            async for _ in handle.events():
                pass

        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_a_timeout_bounds_that_one_wait() -> None:
    async with ToyService(queries=[*[RUNNING] * 10, DONE]).client() as client:
        handle = await client.submit(image())
        before = now()

        with pytest.raises(TimeoutError) as caught:
            await handle.result(timeout=7)

        assert isinstance(caught.value, WaitTimeoutError)
        assert now() - before == pytest.approx(7, abs=0.01)
        assert "client.attach('toy-1')" in str(caught.value)
        assert caught.value.task == handle.task
        assert (await handle.result(timeout=1000)).status is TaskStatus.SUCCEEDED
        assert (await handle.result(timeout=0)).status is TaskStatus.SUCCEEDED


async def test_a_timeout_of_the_caller_is_not_mistaken_for_ours() -> None:
    async with ToyService().client() as client:
        handle = await client.submit(image())

        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(3):
                await handle.result(timeout=100)

        assert not isinstance(caught.value, WaitTimeoutError)


async def test_a_timeout_before_the_acceptance_says_how_to_withdraw() -> None:
    service = ToyService()
    service.delay["POST"] = 30
    async with service.client() as client:
        handle = await client.submit(image())

        with pytest.raises(WaitTimeoutError, match=r"handle\.cancel\(\) to withdraw"):
            await handle.accepted(timeout=2)


async def test_refresh_looks_now_and_shares_a_look_under_way() -> None:
    service = ToyService(queries=[bar(10), bar(20), DONE])
    service.delay["GET"] = 0.5
    async with service.client() as client:
        handle = await client.submit(image())
        assert not (await handle.refresh()).status.is_accepted, "there is nothing to look at yet"
        await handle.accepted()

        one, two = await asyncio.gather(handle.refresh(), handle.refresh())

        assert (one.progress, two.progress) == (10, 10)
        assert service.count("GET") == 1
        assert (await handle.refresh()).progress == 20
        assert (await handle.refresh()).status is TaskStatus.SUCCEEDED
        await handle.refresh()
        assert service.count("GET") == 3


async def test_a_refresh_that_fails_says_so_and_ends_nothing() -> None:
    service = ToyService(queries=[500, 404, 401, DONE])
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()

        with pytest.raises(ServerError, match="later") as caught:
            await handle.refresh()
        with pytest.raises(NotFoundError):
            await handle.refresh()
        with pytest.raises(Exception, match="denied"):
            await handle.refresh()

        assert caught.value.ticket == handle.ticket
        assert (await handle.result()).status is TaskStatus.SUCCEEDED


async def test_a_cancelled_refresh_leaves_the_look_alone() -> None:
    service = ToyService(queries=[DONE])
    service.delay["GET"] = 2
    async with service.client() as client:
        handle = await client.submit(image())
        await handle.accepted()
        refresh = asyncio.create_task(handle.refresh())
        await asyncio.sleep(1)
        refresh.cancel()

        assert (await handle.result()).status is TaskStatus.SUCCEEDED
        assert service.count("GET") == 1


async def test_a_failed_task_says_what_is_known_of_it() -> None:
    async with emulator_with(video_seconds=5) as emulator, client_at(emulator) as client:
        with pytest.raises(TaskFailedError) as caught:
            await client.run(video("[fail InternalError.Timeout] a cat"))

    error = caught.value
    assert (error.code, error.billing, error.retryable) == ("InternalError.Timeout", Billing.NONE, True)
    assert error.task_id in str(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(again) == str(error)
        assert again.task == error.task


async def test_a_part_that_failed_is_an_output_with_an_error(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator) as client:
        handle = await client.submit(image("[part] cats", n=3))

        task = await handle.result()
        files = await handle.save(tmp_path)

        assert [output.error is None for output in task.outputs].count(False) == 1
        assert len(files) == 2


async def test_files_are_named_by_ticket_and_index_and_written_whole(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator, "dieyuyun") as client:
        handle = await client.submit(image("two cats", n=2, size="64x48"), ticket="order-7")

        files = await handle.save(tmp_path / "out")

        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["order-7-0.png", "order-7-1.png"]
        assert {Path(file).read_bytes()[:8] for file in files} == {b"\x89PNG\r\n\x1a\n"}
        assert files[0].media_type == "image/png"
        assert files[0].size == Path(files[0].path).stat().st_size


async def test_a_snapshot_can_be_saved_without_its_handle(tmp_path: Path) -> None:
    async with emulator_with(video_seconds=5) as emulator, client_at(emulator) as client:
        task = await client.run(video())

        (file,) = await client.save(task, tmp_path)

        assert Path(file).read_bytes()[4:8] == b"ftyp"
        assert Path(file).name == f"{task.ticket}-0.mp4"


async def test_a_file_that_cannot_be_fetched_is_told_with_the_ids(tmp_path: Path) -> None:
    async with emulator_with(image_seconds=5) as emulator, client_at(emulator) as client:
        handle = await client.submit(image())
        await handle.result()
        emulator.fault(on="asset", status=403, times=99)

        with pytest.raises(DownloadError, match="403") as caught:
            await handle.save(tmp_path)

        assert (caught.value.ticket, caught.value.task_id) == (handle.ticket, handle.task_id)
        assert list(tmp_path.iterdir()) == []


async def test_a_handle_shows_its_ids_and_state_and_never_the_key() -> None:
    async with ToyService(queries=[DONE]).client(api_key=KEY) as client:
        handle = await client.submit(image(), ticket="order-1")
        await handle.result()

        assert repr(handle) == "<TaskHandle order-1 (toy-1) succeeded>"
        assert repr(client) == "<Client toy at https://toy.example, 1 key(s)>"
        assert KEY not in repr(vars(client)) + repr(client._engine.__dict__)  # type: ignore[union-attr]
        assert handle.request == image()


async def test_an_unknown_error_of_the_network_in_a_result_carries_no_object_of_the_http_library() -> None:
    import httpx

    service = ToyService(creates=[httpx.ConnectError("no route")])
    async with service.client(Toy(), limits=Limits(1)) as client:
        handle = await client.submit(image())
        with pytest.raises(TransportError) as caught:
            await handle.result()

    assert pickle.loads(pickle.dumps(caught.value)).ticket == handle.ticket
    assert "httpx" not in repr(caught.value.__cause__) + repr(caught.value.__context__)
