"""`Client(save_to=...)`: each result is saved when it is there, whoever waits, and again until it is."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from bide import BideError, DownloadError, Downloads, EventName
from bide.emulator import Emulator
from bide.ledgers import Ledger, MemoryLedger, SQLiteLedger
from support.downloads import World, asked_from, fetched, names, sent, world
from support.emulated import calls, image, now
from support.virtual_time import wait_for_ledgers

SLOW = {"on": "asset", "drip": 50_000}
"""A drip that a file of 300 kB takes 6 s for."""


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    if request.param == "memory":
        return MemoryLedger()
    wait_for_ledgers(monkeypatch)
    return SQLiteLedger(tmp_path / "tasks.db")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wait_for_ledgers(monkeypatch)
    return tmp_path / "tasks.db"


def saving_to(folder: Path, **options: Any) -> dict[str, Any]:
    return {"options": {"save_to": folder, **options}}


def request(prompt: str = "a cat", *, size: int = 300_000) -> Any:
    return image(f"{prompt} [bytes {size}] [seconds 1]")


def whole(at: World) -> bool:
    """Whether the directory holds the files of all tasks of the emulator, whole, and nothing else."""
    there = sorted((at.folder / name).read_bytes() for name in names(at.folder))
    return there == sorted(at.emulator._assets.content(task, 0) for task in at.emulator.tasks())


# Whoever waits -------------------------------------------------------------------------------------------------


async def test_a_result_is_saved_where_nobody_waits(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with world(folder, ledger=ledger, **saving_to(folder)) as at:
        ticket = (await at.client.submit(request())).ticket
        gc.collect()
        await asyncio.sleep(60)

        (event,) = at.told(EventName.SAVED)
        assert event.ticket == ticket
        assert names(folder) == [f"{ticket}-0.png"]
        assert whole(at)


async def test_a_result_is_saved_where_somebody_waits(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with world(folder, ledger=ledger, **saving_to(folder)) as at:
        task = await at.task()
        await asyncio.sleep(5)
        (file,) = at.told(EventName.SAVED)[0].files

        await at.assert_whole(task, file)
        assert await at.client.save(task, folder) == [file]
        assert len(fetched(at.emulator)) == 1


async def test_a_save_that_is_asked_for_shares_the_one_that_goes_on_by_itself(tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        at.emulator.fault(**SLOW)
        task = await at.task()

        await at.saved(task)

        assert len(fetched(at.emulator)) == 1


async def test_inline_results_are_saved_by_themselves_too(tmp_path: Path) -> None:
    async with world(tmp_path, "dieyuyun", **saving_to(tmp_path)) as at:
        await at.task(extra={"response_format": "b64_json"})
        await asyncio.sleep(5)

        assert whole(at)
        assert fetched(at.emulator) == []


async def test_results_of_tasks_that_fail_are_nothing_to_save(tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        handle = await at.client.submit(image("a cat [fail] [seconds 1]"))
        with pytest.raises(BideError):
            await handle.result()

    assert not at.told(EventName.UNSAVED)
    assert names(tmp_path) == []


# Leaving -------------------------------------------------------------------------------------------------------


async def test_leaving_waits_for_what_is_being_saved(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with Emulator() as emulator:
        async with world(folder, ledger=ledger, emulator=emulator, **saving_to(folder)) as at:
            emulator.fault(on="asset", drip=20_000)
            await at.task()
            begun = now()

        assert now() - begun >= 14
        assert whole(at)


async def test_leaving_does_not_wait_for_what_fails(tmp_path: Path) -> None:
    async with Emulator() as emulator:
        async with world(tmp_path, emulator=emulator, **saving_to(tmp_path)) as at:
            emulator.fault(on="asset", status=500, times=1000)
            await at.task()
            begun = now()

        assert now() - begun <= 120
        assert at.told(EventName.UNSAVED)
        assert names(tmp_path) == []


async def test_closing_waits_no_longer_than_its_grace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        at.emulator.fault(on="asset", drip=5_000)
        task = await at.task()
        await asyncio.sleep(1)
        begun = now()

        await at.client.aclose(grace=7)

        assert 7 <= now() - begun <= 7.5
        assert names(tmp_path) == [f".{task.ticket}-0.part", f".{task.ticket}-0.part.log"]
        assert f"closed with 1 results not saved yet, by ticket: {task.ticket}" in caplog.text


async def test_closing_waits_for_what_is_done_within_its_grace(tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        at.emulator.fault(**SLOW)
        await at.task()
        begun = now()

        await at.client.aclose(grace=100)

        assert now() - begun <= 7
        assert whole(at)


async def test_an_error_in_the_block_is_not_held_up(tmp_path: Path) -> None:
    async with Emulator() as emulator:
        begun = 0.0

        async def fails() -> None:
            nonlocal begun
            async with world(tmp_path, emulator=emulator, **saving_to(tmp_path)) as at:
                emulator.fault(on="asset", drip=1_000)
                await at.task()
                begun = now()
                raise KeyError

        with pytest.raises(KeyError):
            await fails()

        assert now() - begun <= 11


# Failing -------------------------------------------------------------------------------------------------------


async def test_a_download_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        at.emulator.fault(on="asset", status=500, times=6)
        task = await at.task()
        await asyncio.sleep(120)

        (unsaved,) = at.told(EventName.UNSAVED)
        assert (unsaved.ticket, getattr(unsaved.error, "retryable", None)) == (task.ticket, True)
        assert len(at.told(EventName.SAVED)) == 1
        assert whole(at)


async def test_a_server_that_asks_for_a_long_wait_is_left_alone_until_then(tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        at.emulator.fault(on="asset", status=503, headers={"Retry-After": "1000"})
        await at.task()
        await asyncio.sleep(1100)

        first, second = fetched(at.emulator)
        assert 1000 <= second.time - first.time <= 1001
        assert whole(at)


@pytest.mark.parametrize(("status", "prompt"), [(451, "a cat"), (403, "a cat [expire 2]")])
async def test_a_download_that_fails_for_good_is_told_once(status: int, prompt: str, tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path)) as at:
        at.emulator.fault(on="asset", status=status, delay=10, times=1000)
        task = await at.task(prompt)
        await asyncio.sleep(3600)

        (unsaved,) = at.told(EventName.UNSAVED)
        assert (unsaved.ticket, getattr(unsaved.error, "retryable", None)) == (task.ticket, False)
        assert len(fetched(at.emulator)) == 1
        assert names(tmp_path) == []


async def test_a_failing_result_keeps_no_other_away(tmp_path: Path) -> None:
    async with world(tmp_path, **saving_to(tmp_path, downloads=Downloads(at_once=1))) as at:
        first = await at.client.submit(request("a cat"))
        failing = await first.accepted()
        at.emulator.fault(on="asset", status=500, times=1000, match=failing.task_id)
        others = [await at.client.submit(request(f"dog {number}")) for number in range(5)]
        await asyncio.sleep(300)

        assert names(tmp_path) == sorted(f"{handle.ticket}-0.png" for handle in others)
        assert {event.ticket for event in at.told(EventName.UNSAVED)} == {first.ticket}


async def test_a_disk_that_is_full_for_a_while_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with world(folder, **saving_to(folder)) as at:
        handle = await at.client.submit(request())
        folder.rmdir() if folder.is_dir() else None
        folder.write_bytes(b"in the way")
        await handle.result()
        await asyncio.sleep(30)
        assert at.told(EventName.UNSAVED)

        folder.unlink()
        await asyncio.sleep(300)

        assert whole(at)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/bide-out"])
async def test_a_directory_that_cannot_be_written_to_is_told_before_anything_is_sent(
    place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with Emulator() as emulator:
        with pytest.raises(DownloadError, match=r"save_to: cannot write to .*nothing was sent"):
            async with world(tmp_path / place, emulator=emulator, **saving_to(tmp_path / place)) as at:
                await at.task()

        assert calls(emulator, "create") == []


# The next client -----------------------------------------------------------------------------------------------


async def test_the_next_client_saves_what_was_left_unsaved(database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with Emulator() as emulator:
        async with world(folder, ledger=SQLiteLedger(database), emulator=emulator) as before:
            tasks = [await before.task(prompt) for prompt in ("a cat", "a dog")]
            await before.client.save(tasks[0], folder)
        async with world(folder, ledger=SQLiteLedger(database), emulator=emulator, **saving_to(folder)) as at:
            await asyncio.sleep(5)

            assert whole(at)
            assert len(fetched(emulator)) == 2
            assert [event.ticket for event in at.told(EventName.SAVED)] == [tasks[1].ticket]


async def test_the_next_client_goes_on_with_the_parts(database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with Emulator() as emulator:
        async with world(
            folder, ledger=SQLiteLedger(database), emulator=emulator, **saving_to(folder)
        ) as before:
            emulator.fault(**SLOW)
            await before.task()
            await asyncio.sleep(3)
            await before.client.aclose(grace=0)
        async with world(folder, ledger=SQLiteLedger(database), emulator=emulator, **saving_to(folder)) as at:
            await asyncio.sleep(5)

            assert whole(at)
            assert asked_from(emulator)[1] >= 100_000
            assert sent(emulator) <= 1.1 * 300_000


async def test_a_client_that_does_not_adopt_saves_its_own_results_only(
    database: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    async with Emulator() as emulator:
        async with world(folder, ledger=SQLiteLedger(database), emulator=emulator) as before:
            await before.task()
        own = saving_to(folder, adopt=False)
        async with world(folder, ledger=SQLiteLedger(database), emulator=emulator, **own) as at:
            task = await at.task("a dog")
            await asyncio.sleep(5)

            assert names(folder) == [f"{task.ticket}-0.png"]


async def test_two_clients_with_one_directory_fetch_each_file_once(database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with Emulator() as emulator:
        async with (
            world(folder, ledger=SQLiteLedger(database), emulator=emulator, **saving_to(folder)) as at,
            world(folder, ledger=SQLiteLedger(database), emulator=emulator, **saving_to(folder)) as other,
        ):
            await asyncio.gather(
                *(each.client.run(request(f"a cat {n}")) for n in range(3) for each in (at, other))
            )
            await asyncio.sleep(10)

            assert whole(at)
            assert len(fetched(emulator)) == 6
