"""Which version of a file the rest belongs to, and which bytes of it came: two halves of two files are never one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest

from support.downloads import World, asked_from, fetched, original, sent, world
from support.scripted_server import cut, reply, serving


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "out") as there:
        yield there


def statuses(at: World) -> list[int | None]:
    return [each.status for each in fetched(at.emulator)]


# Versions ------------------------------------------------------------------------------------------------------


async def test_a_file_that_changes_between_a_cut_and_the_rest_is_fetched_anew(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", changed=True)

    await at.saved(task, state=1)

    assert asked_from(at.emulator) == [0, 200_000]
    assert statuses(at) == [200, 200]


async def test_a_file_that_changes_again_and_again_is_one_of_them_in_the_end(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    for _ in range(2):
        at.emulator.fault(on="asset", changed=True, truncate=100_000)

    file = await at.saved(task, state=2)

    assert asked_from(at.emulator) == [0, 200_000, 100_000, 100_000]
    assert sent(at.emulator) == 300_000 + file.size


async def test_a_file_without_a_validator_is_fetched_from_its_begin(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", validator="none", truncate=200_000)

    await at.saved(task)

    assert asked_from(at.emulator) == [0, 0]


async def test_a_file_that_changes_and_has_no_validator_is_never_two_halves(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", validator="none", truncate=200_000)
    at.emulator.fault(on="asset", validator="none", changed=True)

    await at.saved(task, state=1)


async def test_a_date_alone_is_enough_to_go_on(at: World) -> None:
    task = await at.task()
    await asyncio.sleep(2)
    at.emulator.fault(on="asset", validator="last-modified", truncate=200_000)
    at.emulator.fault(on="asset", validator="last-modified")

    file = await at.saved(task)

    assert asked_from(at.emulator) == [0, 200_000]
    assert sent(at.emulator) == file.size


async def test_a_file_whose_date_has_changed_is_fetched_anew(at: World) -> None:
    task = await at.task()
    await asyncio.sleep(2)
    at.emulator.fault(on="asset", validator="last-modified", truncate=200_000)
    at.emulator.fault(on="asset", validator="last-modified", changed=True)

    await at.saved(task, state=1)

    assert statuses(at) == [200, 200]


async def test_a_weak_tag_is_never_what_a_download_goes_on_by(at: World) -> None:
    """Nor is the date beside it: it is for those that have no tag at all (RFC 9110, 13.1.5)."""
    task = await at.task()
    await asyncio.sleep(2)
    at.emulator.fault(on="asset", validator="weak", truncate=200_000)
    at.emulator.fault(on="asset", validator="weak")

    await at.saved(task)

    assert asked_from(at.emulator) == [0, 0]


async def test_a_date_that_is_as_young_as_the_answer_names_no_version(at: World) -> None:
    """The file may have changed twice in that second: such a date is a weak validator (RFC 9110, 8.8.2.2)."""
    task = await at.task()
    date = formatdate(usegmt=True)
    young = f"Content-Type: image/png\r\nLast-Modified: {date}\r\nDate: {date}\r\n"
    old, new = original(at.emulator, task), original(at.emulator, task, state=1)
    size = len(old)
    first = f"HTTP/1.1 200 X\r\nContent-Length: {size}\r\n{young}\r\n".encode() + old[:200_000]
    rest = reply(
        new[200_000:], status=206, headers=f"{young}Content-Range: bytes 200000-{size - 1}/{size}\r\n"
    )
    async with serving([cut(first), rest, reply(new, headers=young)]) as server:
        at.emulator.fault(on="asset", redirect=f"{server.url}/a", times=3)

        # Else two halves would be saved as one.
        await at.saved(task, state=1)


async def test_a_file_that_changes_behind_a_weak_tag_is_fetched_anew(at: World) -> None:
    task = await at.task()
    await asyncio.sleep(2)
    at.emulator.fault(on="asset", validator="weak", truncate=200_000)
    at.emulator.fault(on="asset", validator="weak", changed=True)

    await at.saved(task, state=1)


# Ranges --------------------------------------------------------------------------------------------------------


async def test_a_server_that_knows_no_ranges_is_asked_for_all_of_it(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", unranged=True)

    file = await at.saved(task)

    assert statuses(at) == [200, 200]
    assert sent(at.emulator) == 200_000 + file.size


@pytest.mark.parametrize("told", ["bytes */300000", "bytes */200000", "bytes */9", "", "rubbish"])
async def test_a_416_means_from_the_start(told: str, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", status=416, headers={"Content-Range": told})

    await at.saved(task)

    assert asked_from(at.emulator) == [0, 200_000, 0]


@pytest.mark.parametrize(
    "told",
    [
        "bytes 0-99/{size}",
        "bytes 199999-{last}/{size}",
        "bytes 200001-{last}/{size}",
        "bytes 200000-{last}/999999",
        "bytes 200000-{size}/{size}",
        "bytes 200000-",
        "bytes */{size}",
        "",
    ],
)
async def test_a_range_that_was_not_asked_for_is_not_taken(told: str, at: World) -> None:
    task = await at.task()
    size = len(original(at.emulator, task))
    range_told = told.format(size=size, last=size - 1)
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(
        on="asset", status=206, body=b"x" * (size - 200_000), headers={"Content-Range": range_told}
    )

    await at.saved(task)

    assert asked_from(at.emulator) == [0, 200_000, 0]


async def test_a_206_that_nobody_asked_for_is_not_taken(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=206, body=b"x" * 9, headers={"Content-Range": "bytes 0-8/9"})

    await at.saved(task)

    assert statuses(at) == [206, 200]
