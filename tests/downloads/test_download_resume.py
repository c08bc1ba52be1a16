"""One file, saved twice, by two at once, by one who leaves and one who comes later: fetched once, and whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bide import DownloadError, Downloads, EventName, SavedFile, Task
from bide.emulator import DieyuyunStyle
from bide.ledgers import Ledger, MemoryLedger, SQLiteLedger
from support.downloads import World, asked_from, fetched, names, sent, world
from support.virtual_time import wait_for_ledgers

SLOW = {"on": "asset", "drip": 50_000}
"""A drip that a file of 300 kB takes 6 s for."""


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "out") as there:
        yield there


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    if request.param == "memory":
        return MemoryLedger()
    wait_for_ledgers(monkeypatch)
    return SQLiteLedger(tmp_path / "tasks.db")


def start(at: World, task: Task, folder: Path | None = None, **options: Any) -> asyncio.Task[list[SavedFile]]:
    return asyncio.create_task(at.client.save(task, folder or at.folder, **options))


# Twice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video"])
async def test_saving_twice_sends_nothing(kind: str, ledger: Ledger, tmp_path: Path) -> None:
    async with world(tmp_path / "out", ledger=ledger) as at:
        task = await at.task(kind=kind)
        first = await at.saved(task)
        before = len(at.emulator.requests())

        again = [await at.saved(task), *(await at.handles[0].save(at.folder))]

        assert again == [first, first]
        assert len(at.emulator.requests()) == before


async def test_all_of_several_files_are_on_record(ledger: Ledger, tmp_path: Path) -> None:
    async with world(tmp_path / "out", ledger=ledger) as at:
        task = await at.task(n=4)

        second = await at.client.save(task, at.folder, output=1)
        files = await at.client.save(task, at.folder)

        for place, file in enumerate(files):
            await at.assert_whole(task, file, place=place)
        assert files[1:2] == second
        assert len(fetched(at.emulator)) == 4


async def test_a_file_that_has_been_removed_is_fetched_again(ledger: Ledger, tmp_path: Path) -> None:
    async with world(tmp_path / "out", ledger=ledger) as at:
        task = await at.task()
        file = await at.saved(task)
        Path(file).unlink()

        assert await at.saved(task) == file
        assert len(fetched(at.emulator)) == 2


async def test_a_file_that_was_changed_since_is_told_and_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    async with world(tmp_path / "out", ledger=ledger) as at:
        task = await at.task()
        path = Path(await at.saved(task))
        path.write_bytes(b"painted over")

        with pytest.raises(DownloadError, match="has changed since it was saved"):
            await at.client.save(task, at.folder)

        assert path.read_bytes() == b"painted over"
        assert len(fetched(at.emulator)) == 1
        await at.saved(task, overwrite=True)


async def test_a_directory_has_one_name_for_all_who_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with world(Path("out")) as at:
        task = await at.task()
        file = await at.saved(task)

        (again,) = await at.client.save(task, tmp_path / "out" / ".." / "out")

        assert Path(file).samefile(again)
        assert len(fetched(at.emulator)) == 1


async def test_a_directory_behind_a_link_is_where_the_system_finds_it(tmp_path: Path) -> None:
    """What stands before a `..` may be a link: then the path means another directory than its text says."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    async with world(tmp_path / "out") as at:
        task = await at.task()
        await at.saved(task)

        (file,) = await at.client.save(task, tmp_path / "link" / ".." / "out")

        # Were `link/..` dropped as text, a file would be found that is not there.
        assert Path(file).exists()
        assert names(tmp_path / "far" / "out") == names(tmp_path / "out")


async def test_a_second_directory_gets_a_file_of_its_own(ledger: Ledger, tmp_path: Path) -> None:
    async with world(tmp_path / "out", ledger=ledger) as at:
        task = await at.task()
        await at.saved(task)

        (other,) = await at.client.save(task, tmp_path / "other")

        await at.assert_whole(task, other)
        assert names(tmp_path / "other") == names(at.folder)


# At once -------------------------------------------------------------------------------------------------------


async def test_two_saves_at_once_share_one_download(at: World) -> None:
    task = await at.task()
    at.emulator.fault(**SLOW)

    first, second = await asyncio.gather(at.client.save(task, at.folder), at.handles[0].save(str(at.folder)))

    assert first == second
    await at.assert_whole(task, first[0])
    assert len(fetched(at.emulator)) == 1
    assert len(at.told(EventName.SAVED)) == 1


async def test_one_who_comes_later_joins_the_download(at: World) -> None:
    task = await at.task()
    at.emulator.fault(**SLOW)

    saving = start(at, task)
    await asyncio.sleep(3)
    await at.saved(task)

    await saving
    assert len(fetched(at.emulator)) == 1


async def test_a_failure_is_told_to_all_who_share_it(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=404, times=2)

    outcomes = await asyncio.gather(*(start(at, task) for _ in range(3)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [DownloadError] * 3
    assert len(fetched(at.emulator)) == 2
    await at.saved(task)


async def test_two_directories_at_once_get_a_whole_file_each(at: World, tmp_path: Path) -> None:
    task = await at.task()

    saved = await asyncio.gather(*(at.client.save(task, tmp_path / name) for name in "ab"))

    for (file,) in saved:
        await at.assert_whole(task, file)


@pytest.mark.parametrize("shared", [False, True])
async def test_two_clients_that_save_into_one_directory_at_once_make_one_whole_file(
    shared: bool, tmp_path: Path
) -> None:
    async with world(tmp_path / "out") as at:
        ledger = at.ledger if shared else MemoryLedger()
        async with world(tmp_path / "out", ledger=ledger, emulator=at.emulator) as other:
            task = await at.task()
            at.emulator.fault(**SLOW)

            (first,), (second,) = await asyncio.gather(
                at.client.save(task, at.folder), other.client.save(task, other.folder)
            )

        assert first == second
        await at.assert_whole(task, first)
        assert names(at.folder) == [f"{task.ticket}-0.png"]
        assert len(fetched(at.emulator)) == (1 if shared else 2)


async def test_a_client_goes_on_with_the_part_that_another_leaves_behind(tmp_path: Path) -> None:
    async with world(tmp_path / "out") as at:
        async with world(tmp_path / "out", ledger=at.ledger, emulator=at.emulator) as other:
            task = await at.task()
            at.emulator.fault(**SLOW)
            first = start(at, task)
            await asyncio.sleep(2)
            second = start(other, task)
            await asyncio.sleep(1)

            first.cancel()
            (file,) = await second

        await at.assert_whole(task, file)
        assert asked_from(at.emulator)[1] >= 100_000
        assert names(at.folder) == [f"{task.ticket}-0.png"]


async def test_who_overwrites_while_another_saves_gets_a_whole_file_too(at: World) -> None:
    task = await at.task()
    at.emulator.fault(**SLOW)

    outcomes = await asyncio.gather(start(at, task), start(at, task, overwrite=True))

    for (file,) in outcomes:
        await at.assert_whole(task, file)


# Leaving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", [0, 1])
async def test_one_who_leaves_stops_nobody_elses_download(leaver: int, at: World) -> None:
    task = await at.task()
    at.emulator.fault(**SLOW)
    savings = [start(at, task), start(at, task)]
    await asyncio.sleep(3)

    savings.pop(leaver).cancel()
    (file,) = await savings[0]

    await at.assert_whole(task, file)
    assert len(fetched(at.emulator)) == 1


async def test_the_last_one_who_leaves_keeps_the_part_and_the_next_one_goes_on(at: World) -> None:
    task = await at.task()
    at.emulator.fault(**SLOW)
    savings = [start(at, task), start(at, task)]
    await asyncio.sleep(3)

    for saving in savings:
        saving.cancel()
    await asyncio.wait(savings)

    assert all(saving.cancelled() for saving in savings)
    assert names(at.folder) == [f".{task.ticket}-0.part", f".{task.ticket}-0.part.log"]
    file = await at.saved(task)
    assert 140_000 <= asked_from(at.emulator)[1] <= 160_000
    assert sent(at.emulator) <= file.size + 10_000


async def test_one_who_comes_while_the_last_one_leaves_gets_the_file(at: World) -> None:
    task = await at.task()
    at.emulator.fault(**SLOW)
    first = start(at, task)
    await asyncio.sleep(3)

    first.cancel()
    file = await at.saved(task)

    assert first.cancelled()
    assert sent(at.emulator) <= file.size + 10_000


async def test_many_who_come_and_leave_fetch_no_byte_again_that_was_here(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", drip=50_000, times=100)

    for _ in range(10):
        saving = start(at, task)
        await asyncio.sleep(0.5)
        saving.cancel()
        await asyncio.wait([saving])
    file = await at.saved(task)

    assert asked_from(at.emulator) == sorted(set(asked_from(at.emulator)))
    assert sent(at.emulator) <= file.size + 10 * 5_000, "one drop each that was on its way"


async def test_a_client_that_is_closed_in_mid_download_leaves_a_part_to_go_on_with(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    async with world(tmp_path / "out", ledger=ledger) as at:
        task = await at.task()
        at.emulator.fault(**SLOW)
        saving = start(at, task)
        await asyncio.sleep(3)
        await at.client.aclose(grace=0)
        with pytest.raises(Exception, match="closed"):
            await saving

        async with world(tmp_path / "out", ledger=ledger, emulator=at.emulator) as other:
            await other.client.save(task, other.folder)

        assert asked_from(at.emulator)[1] >= 100_000
        assert names(at.folder) == [f"{task.ticket}-0.png"]


async def test_at_most_so_many_files_are_fetched_at_once(tmp_path: Path) -> None:
    async with world(tmp_path / "out", options={"downloads": Downloads(at_once=2)}) as at:
        task = await at.task(n=4, size=100_000)
        at.emulator.fault(on="asset", drip=50_000, times=4)

        saving = start(at, task)
        await asyncio.sleep(1)
        begun = len(fetched(at.emulator))
        files = await saving

        assert begun == 2
        for place, file in enumerate(files):
            await at.assert_whole(task, file, place=place)


async def test_of_those_that_wait_the_one_that_expires_first_is_fetched_first(tmp_path: Path) -> None:
    async with world(tmp_path / "out", options={"downloads": Downloads(at_once=1)}) as at:
        tasks = [await at.task(f"a cat {number}") for number in range(4)]
        at.emulator.fault(on="asset", drip=50_000, times=4)

        savings = []
        for task, hours in zip(tasks, (2, None, 5, 3), strict=True):
            ends = None if hours is None else datetime.now(UTC) + timedelta(hours=hours)
            due = evolve(task, outputs=(evolve(task.outputs[0], expires_at=ends),))
            savings.append(start(at, due))
            await asyncio.sleep(0.5)
        await asyncio.gather(*savings)

        order = [
            next(n for n, task in enumerate(tasks) if str(task.task_id) in each.path)
            for each in fetched(at.emulator)
        ]
        assert order == [0, 3, 2, 1]


# Progress ------------------------------------------------------------------------------------------------------


async def test_progress_is_told_at_most_five_times_a_second_and_ends_with_all_of_it(at: World) -> None:
    task = await at.task(size=5_000_000)
    at.emulator.fault(on="asset", drip=2_000_000)

    file = await at.saved(task)

    told = at.told(EventName.SAVING)
    sizes = [event.bytes or 0 for event in told]
    assert sizes == sorted(sizes)
    assert {event.output for event in told} == {0}
    assert {event.total for event in told} == {file.size}
    assert sizes[-1] == file.size
    assert 3 <= len(told) <= 14
    (saved,) = at.told(EventName.SAVED)
    assert saved.files == (file,)
    assert saved.seconds is not None
    assert 2 <= saved.seconds <= 4


# Inline --------------------------------------------------------------------------------------------------------


async def test_inline_results_are_saved_the_same_way(ledger: Ledger, tmp_path: Path) -> None:
    async with world(tmp_path / "out", "dieyuyun", ledger=ledger) as at:
        task = await at.task(size=1_500_000, n=2, extra={"response_format": "b64_json"})
        assert [output.url for output in task.outputs] == [None, None]

        files = await at.client.save(task, at.folder)

        for place, file in enumerate(files):
            await at.assert_whole(task, file, place=place)
        before = len(at.emulator.requests())
        assert await at.client.save(task, at.folder) == files
        assert (len(at.emulator.requests()), fetched(at.emulator)) == (before, [])


async def test_an_inline_result_of_a_create_that_answers_at_once_is_saved(tmp_path: Path) -> None:
    async with world(tmp_path / "out", "dieyuyun", dieyuyun=DieyuyunStyle(always_sync=True)) as at:
        task = await at.task(extra={"response_format": "b64_json"})

        await at.saved(task)

        assert fetched(at.emulator) == []


async def test_an_inline_result_that_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    options = {"downloads": Downloads(largest_image=1_000_000)}
    async with world(tmp_path / "out", "dieyuyun", options=options) as at:
        task = await at.task(size=1_500_000, extra={"response_format": "b64_json"})
        at.put_older(task)

        error = await at.refused(task, "bytes or more, and 1000000 are allowed", overwrite=True)

        assert not error.retryable
        assert names(at.folder) == [f"{task.ticket}-0.png"]


async def test_an_inline_result_that_the_ledger_does_not_keep_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_ledgers(monkeypatch)
    path = tmp_path / "tasks.db"
    async with world(tmp_path / "out", "dieyuyun", ledger=SQLiteLedger(path)) as at:
        task = await at.task(extra={"response_format": "b64_json"})
        await at.client.aclose()
        async with world(
            tmp_path / "out", "dieyuyun", ledger=SQLiteLedger(path), emulator=at.emulator
        ) as other:
            handle = await other.client.attach(ticket=task.ticket)
            (file,) = await handle.save(other.folder)

            await other.assert_whole(task, file)
