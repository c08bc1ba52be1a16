"""Each thing that can go wrong on the way of a file, over real sockets: it is whole under its name, or absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bide import Downloads
from bide.emulator import DieyuyunStyle
from support.downloads import SIZE, World, asked_from, fetched, names, original, sent, world
from support.emulated import calls, image

ALWAYS = 1000


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "out") as there:
        yield there


def statuses(at: World) -> list[int | None]:
    return [each.status for each in fetched(at.emulator)]


def looks(at: World) -> int:
    return len(calls(at.emulator, "query"))


# Addresses that do not work ------------------------------------------------------------------------------------


async def test_an_expired_address_is_replaced_by_one_look_at_the_task(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True, url_seconds=60) as at:
        task = await at.task()
        before = looks(at)
        await asyncio.sleep(100)

        await at.saved(task)

        assert statuses(at) == [403, 200]
        assert looks(at) == before + 1


@pytest.mark.real_time  # an expiry is one of the wall's clock
async def test_an_address_that_has_expired_for_good_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, url_seconds=0) as at:
        handle = await at.client.submit(image("a cat [seconds 0]"))
        await handle.accepted()
        task = await handle.refresh()
        before = looks(at)

        error = await at.refused(
            task, r"HTTP 403: results are kept for a limited time .this one until 20\d\d-.*is lost"
        )

        assert not error.retryable
        assert (names(tmp_path), looks(at)) == ([], before + 1)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_refused_address_is_asked_for_once_more(status: int, at: World) -> None:
    task = await at.task()
    before = looks(at)
    at.emulator.fault(on="asset", status=status)

    await at.saved(task)

    assert statuses(at) == [status, 200]
    assert looks(at) == before + 1


@pytest.mark.parametrize(
    ("status", "older"), [(401, False), (403, False), (403, True), (404, True), (410, False)]
)
async def test_an_address_that_is_refused_twice_is_given_up_for_now(
    status: int, older: bool, at: World
) -> None:
    task = await at.task()
    before = looks(at)
    at.emulator.fault(on="asset", status=status, times=ALWAYS)
    if older:
        at.put_older(task)

    error = await at.refused(
        task, f"HTTP {status}, and the fresh address of the service failed too", overwrite=older
    )

    assert error.retryable
    assert (statuses(at), looks(at)) == ([status] * 2, before + 1)
    assert names(at.folder) == [f"{task.ticket}-0.png"] * older


async def test_an_address_that_expires_between_a_cut_and_the_rest_costs_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True, url_seconds=60) as at:
        task = await at.task()
        at.emulator.fault(on="asset", truncate=200_000)
        at.emulator.fault(on="asset", status=403)

        file = await at.saved(task)

        assert asked_from(at.emulator) == [0, 200_000, 200_000]
        assert sent(at.emulator) <= file.size + 100


async def test_all_files_of_a_task_share_one_look(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True, url_seconds=60) as at:
        task = await at.task(n=4)
        before = looks(at)
        await asyncio.sleep(100)

        files = await at.client.save(task, tmp_path)

        for place, file in enumerate(files):
            await at.assert_whole(task, file, place=place)
        assert looks(at) == before + 1


async def test_a_task_that_the_service_has_forgotten_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as at:
        task = await at.task("a cat [expire 60]")
        await asyncio.sleep(100)

        error = await at.refused(task, r"HTTP 40\d: results are kept for a limited time")

        assert not error.retryable
        assert names(tmp_path) == []


async def test_an_address_that_is_known_to_have_expired_is_not_called(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True, url_seconds=60) as at:
        task = await at.task()
        before = looks(at)
        over = evolve(task.outputs[0], expires_at=datetime.now(UTC) - timedelta(seconds=1))

        await at.saved(evolve(task, outputs=(over,)))

        assert (statuses(at), looks(at)) == ([200], before + 1)


async def test_a_look_for_a_fresh_address_is_tried_again(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True, url_seconds=60) as at:
        task = await at.task()
        await asyncio.sleep(100)
        at.emulator.fault(on="query", status=500)
        at.emulator.fault(on="query", drop="before")

        await at.saved(task)

        assert statuses(at) == [403, 200]


async def test_a_service_that_cannot_be_asked_costs_nothing_that_has_come(tmp_path: Path) -> None:
    async with world(tmp_path, fresh_urls=True, url_seconds=60) as at:
        task = await at.task()
        at.emulator.fault(on="asset", truncate=200_000)
        at.emulator.fault(on="asset", status=403)
        at.emulator.fault(on="query", status=500, times=3)

        error = await at.refused(task, "the service could not be queried for a fresh one")

        assert error.retryable
        file = await at.saved(task)
        assert asked_from(at.emulator) == [0, 200_000, 200_000]
        assert sent(at.emulator) <= file.size + 100


async def test_a_result_that_has_no_task_to_look_at_is_told_when_it_expires(tmp_path: Path) -> None:
    style = DieyuyunStyle(always_sync=True)
    async with world(tmp_path, "dieyuyun", dieyuyun=style, url_seconds=60) as at:
        task = await at.task()
        await asyncio.sleep(100)

        error = await at.refused(task, "HTTP 403: results are kept for a limited time")

        assert not error.retryable
        assert (statuses(at), looks(at), names(tmp_path)) == ([403], 0, [])


# Cuts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [1, 100, SIZE // 2, SIZE - 1])
async def test_a_download_that_was_cut_goes_on_where_it_was(place: int, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=place)

    file = await at.saved(task)

    assert asked_from(at.emulator) == [0, place]
    assert statuses(at) == [200, 206]
    assert sent(at.emulator) == file.size


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_that_is_cut_before_the_first_byte_costs_one_try(drop: Any, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", drop=drop)
    at.emulator.fault(on="asset", truncate=0)

    await at.saved(task)

    assert asked_from(at.emulator) == [0, 0, 0]


async def test_a_download_that_was_cut_three_times_goes_on_three_times(at: World) -> None:
    task = await at.task(kind="video")
    for _ in range(3):
        at.emulator.fault(on="asset", truncate=70_000)

    file = await at.saved(task)

    assert asked_from(at.emulator) == [0, 70_000, 140_000, 210_000]
    assert sent(at.emulator) == file.size


async def test_cuts_that_bring_something_each_time_are_no_failures(at: World) -> None:
    task = await at.task(size=1_500_000)
    at.emulator.fault(on="asset", truncate=70_000, times=20)

    file = await at.saved(task)

    assert len(fetched(at.emulator)) == 21
    assert sent(at.emulator) == file.size


async def test_cuts_that_bring_next_to_nothing_come_to_an_end_and_a_later_save_goes_on(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=1_000, times=6)

    error = await at.refused(task, r"could not be fetched.*6000 of \d+ bytes came and are kept")

    assert error.retryable
    assert names(at.folder) == [f".{task.ticket}-0.part", f".{task.ticket}-0.part.log"]
    file = await at.saved(task)
    assert asked_from(at.emulator)[-1] == 6_000
    assert sent(at.emulator) == file.size


async def test_a_connection_that_is_always_cut_leaves_nothing(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", drop="before", times=ALWAYS)
    at.put_older(task)

    error = await at.refused(task, "could not be fetched", overwrite=True)

    assert error.retryable
    assert (names(at.folder), len(fetched(at.emulator))) == ([f"{task.ticket}-0.png"], 6)


# Lengths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("more", [-100_000, -1, 1, 1_000])
async def test_a_wrong_length_is_not_believed(kind: str, more: int, at: World) -> None:
    task = await at.task(kind=kind)
    at.emulator.fault(on="asset", length=len(original(at.emulator, task)) + more)

    await at.saved(task)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("more", [-100_000, 1_000])
async def test_a_length_that_is_always_wrong_leaves_no_file(older: bool, more: int, at: World) -> None:
    task = await at.task()
    length = len(original(at.emulator, task)) + more
    at.emulator.fault(on="asset", length=length, unranged=True, times=ALWAYS)
    if older:
        at.put_older(task)

    error = await at.refused(task, "could not be fetched", overwrite=older)

    assert error.retryable


# Slow ones -----------------------------------------------------------------------------------------------------


async def test_the_deadline_ends_a_slow_drip_and_a_later_save_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path, options={"downloads": Downloads(deadline=20)}) as at:
        task = await at.task()
        at.emulator.fault(on="asset", drip=5_000)

        error = await at.refused(
            task, r"was not complete within 20 s: \d+ of \d+ bytes came; save again to continue"
        )

        assert error.retryable
        assert names(tmp_path) == [f".{task.ticket}-0.part", f".{task.ticket}-0.part.log"]
        file = await at.saved(task)
        assert 90_000 <= asked_from(at.emulator)[1] <= 100_000
        assert sent(at.emulator) <= file.size + 10_000


async def test_a_drip_that_brings_next_to_nothing_counts_as_cut(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", drip=100)

    file = await at.saved(task)

    assert statuses(at) == [200, 206]
    assert sent(at.emulator) <= file.size + 1_000


async def test_a_server_that_falls_silent_in_mid_body_counts_as_cut(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", delay=3600)

    await at.saved(task)

    assert len(fetched(at.emulator)) == 2


# Redirects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [1, 5])
async def test_redirects_are_followed(hops: int, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", redirect="loop", times=hops)

    await at.saved(task)

    assert statuses(at) == [302] * hops + [200]


async def test_a_redirect_to_another_origin_is_followed_and_a_cut_there_goes_on(at: World) -> None:
    task = await at.task()
    port = at.emulator.asset_url.rpartition(":")[2]
    url = str(task.outputs[0].url).replace(at.emulator.asset_url, f"http://localhost:{port}")
    at.emulator.fault(on="asset", redirect=url)
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", redirect=url)

    file = await at.saved(task)

    assert statuses(at) == [302, 200, 302, 206]
    assert sent(at.emulator) == file.size


@pytest.mark.parametrize("hops", [6, ALWAYS])
@pytest.mark.parametrize("older", [False, True])
async def test_the_sixth_redirect_is_one_too_many(hops: int, older: bool, at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", redirect="loop", times=hops)
    if older:
        at.put_older(task)

    error = await at.refused(task, "more than 5 redirects", overwrite=older)

    assert not error.retryable
    assert statuses(at) == [302] * 6
    assert names(at.folder) == [f"{task.ticket}-0.png"] * older


# What is no file -----------------------------------------------------------------------------------------------


async def test_a_compressed_bomb_is_not_unpacked(at: World) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", bomb=50_000_000, times=ALWAYS)

    error = await at.refused(task, "came packed with gzip")

    assert not error.retryable
    assert (names(at.folder), len(fetched(at.emulator))) == ([], 1)


PAGES = [
    ("<!DOCTYPE html><html><body>Busy, try later</body></html>", "text/html; charset=utf-8"),
    ("<!DOCTYPE html><html><body>Busy, try later</body></html>", "image/png"),
    ("\n\n  <html>" + "x" * 200_000, "image/png"),
    ('{"code": "Throttling"}', "application/json"),
    ('{"code": "Throttling"}', "image/png"),
    ("Busy, try later", "text/plain"),
    ("Busy, try later", "application/octet-stream"),
]


@pytest.mark.parametrize(
    ("body", "content_type", "kind"),
    [(*page, kind) for page, kind in zip(PAGES, cycle(("image", "video")), strict=False)],
)
async def test_a_page_in_the_place_of_the_file_is_not_saved(
    body: str, content_type: str, kind: str, at: World
) -> None:
    task = await at.task(kind=kind)
    at.emulator.fault(on="asset", status=200, body=body, headers={"Content-Type": content_type})

    await at.saved(task)

    assert statuses(at) == [200, 200]


@pytest.mark.parametrize(("body", "content_type"), PAGES)
async def test_a_page_that_stays_is_given_up_and_leaves_nothing(
    body: str, content_type: str, at: World
) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", status=200, body=body, headers={"Content-Type": content_type}, times=ALWAYS)
    at.put_older(task)

    error = await at.refused(task, "answered with text and not with the image", overwrite=True)

    assert error.retryable
    assert names(at.folder) == [f"{task.ticket}-0.png"]


@pytest.mark.parametrize("content_type", ["text/html", "image/png"])
async def test_a_page_in_the_place_of_the_rest_costs_nothing_that_has_come(
    content_type: str, at: World
) -> None:
    task = await at.task()
    at.emulator.fault(on="asset", truncate=200_000)
    at.emulator.fault(on="asset", status=200, body="<html>", headers={"Content-Type": content_type})

    await at.saved(task)

    assert asked_from(at.emulator) == [0, 200_000, 200_000]


@pytest.mark.parametrize("older", [False, True])
async def test_an_empty_file_is_none(older: bool, at: World) -> None:
    task = await at.task()
    empty = {"status": 200, "body": "", "headers": {"Content-Type": "image/png"}}
    at.emulator.fault(on="asset", **empty, times=6)
    if older:
        at.put_older(task)

    error = await at.refused(task, "the file is empty", overwrite=older)

    assert error.retryable
    assert names(at.folder) == [f"{task.ticket}-0.png"] * older
    at.emulator.fault(on="asset", **empty)
    await at.saved(task, overwrite=True)
