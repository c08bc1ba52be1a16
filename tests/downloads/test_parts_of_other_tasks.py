"""A part file of another task with the same ticket: none of its bytes is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bide import DownloadError, Output, Task, TaskStatus
from bide._downloads import download as _download
from bide._downloads.part_file import PartFile
from support.clients import near_client
from support.downloads import (
    Asked,
    Cut,
    ok,
    part_of,
    png,
    store,
)

# Parts of other tasks ----------------------------------------------------------------------------------------------


async def saved_anew(folder: Path, url: str, task_id: str, **options: Any) -> bytes:
    """What a client of another process saves for a task with a ticket that was used before."""
    outputs = (Output(url=url, kind="image"),)
    task = Task(ticket="hero", task_id=task_id, status=TaskStatus.SUCCEEDED, outputs=outputs)
    async with near_client() as client:
        (file,) = await client.save(task, folder, **options)
    return Path(file.path).read_bytes()


def by_path(asked: Asked) -> bytes:
    """Each path has a file of its own, of one length and one tag."""
    data = png(300_000, asked.path[-1:].encode())
    return part_of(data, asked.start) if asked.start else ok(data)


async def test_a_part_of_another_task_with_the_same_ticket_is_not_published(tmp_path: Path) -> None:
    async with store(by_path) as there:
        assert await saved_anew(tmp_path, f"{there.url}/A", "one") == png(300_000, b"A")
        with pytest.raises(DownloadError, match="is another file than this result"):
            await saved_anew(tmp_path, f"{there.url}/B", "two")

        third = await saved_anew(tmp_path, f"{there.url}/C", "three", overwrite=True)

        assert third == png(300_000, b"C")


@pytest.mark.parametrize("came", [200_000, 300_000])
async def test_what_a_crash_has_left_of_another_task_with_the_same_ticket_is_not_published(
    came: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(asked: Asked) -> bytes | Cut:
        said = by_path(asked)
        return said if asked.path == "/C" else Cut(said[: came - 300_000 or None])

    async with store(answer) as there:
        with monkeypatch.context() as patch:
            patch.setattr(PartFile, "finish", _killed)
            patch.setattr(_download, "MAX_FRUITLESS_TRIES", 1)
            with pytest.raises(DownloadError):
                await saved_anew(tmp_path, f"{there.url}/A", "one")
        assert (tmp_path / ".hero-0.part").stat().st_size == came

        second = await saved_anew(tmp_path, f"{there.url}/C", "two")

        assert second == png(300_000, b"C")


def _killed(*_: Any, **__: Any) -> bool:
    raise OSError("the process has ended here")
