"""Very many downloads, each of them cut: all complete, and next to nothing is fetched twice."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from bide import DownloadError, Downloads, Limits, SavedFile, Task
from support.downloads import World, asked_from, fetched, names, original, sent, world
from support.emulated import image

OPTIONS = {"limits": Limits(concurrency=100), "downloads": Downloads(at_once=8)}


@pytest.mark.no_cover
async def test_200_downloads_with_a_random_cut_in_each_complete_and_fetch_little_more_than_the_files(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, options=OPTIONS) as at:
        handles = [
            await at.client.submit(image(f"cat [bytes {size}] [seconds 1]", n=4, size="512*512"))
            for size in (random.randint(300_000, 1_000_000) for _ in range(50))
        ]
        tasks = [await handle.result() for handle in handles]
        total, cuts = 0, []
        for task in tasks:
            for place in range(4):
                size = len(original(at.emulator, task, place))
                total += size
                cuts.append(random.randrange(size))
                at.emulator.fault(on="asset", match=f"{task.task_id}/{place}.", truncate=cuts[-1])

        saved = await asyncio.gather(*(at.client.save(task, tmp_path) for task in tasks))

        for task, files in zip(tasks, saved, strict=True):
            for place, file in enumerate(files):
                await at.assert_whole(task, file, place=place)
        assert len(names(tmp_path)) == 200
        assert sorted(asked_from(at.emulator)) == sorted([0] * 200 + cuts)
        assert total <= sent(at.emulator) <= 1.10 * total


async def saved_in_the_end(at: World, task: Task) -> list[SavedFile]:
    """Six cuts in a row that bring next to nothing end a save; the next one goes on."""
    for _ in range(5):
        with suppress(DownloadError):
            return await at.client.save(task, at.folder)
    return await at.client.save(task, at.folder)


async def test_downloads_that_are_cut_again_and_again_complete_likewise(tmp_path: Path) -> None:
    async with world(tmp_path, options=OPTIONS, cut_share=0.7, seed=1) as at:
        tasks: list[Task] = [await at.task(f"cat {number}", n=4) for number in range(8)]

        saved = await asyncio.gather(*(saved_in_the_end(at, task) for task in tasks))

        for task, files in zip(tasks, saved, strict=True):
            for place, file in enumerate(files):
                await at.assert_whole(task, file, place=place)
        total = sum(Path(file).stat().st_size for files in saved for file in files)
        assert len(fetched(at.emulator)) >= 60
        assert total <= sent(at.emulator) <= 1.10 * total
