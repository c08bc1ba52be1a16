"""The query rate of an account, which all clients on a ledger share."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bide import Client, SQLiteLedger
from bide._service import query_rate
from bide._service.query_rate import RAISE_AFTER_SECONDS
from bide._wire import Secret
from bide.ledgers.sqlite import session as _session
from support.emulated import UNLIMITED, now, video
from support.sites import QuickToy, Site
from support.toy import ToyService
from support.virtual_time import wait_for_ledgers

RUNNING = {"status": "running"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wait_for_ledgers(monkeypatch)
    return tmp_path / "tasks.db"


async def queries(client: Client) -> int:
    return (await client.statistics()).queries


def most_in_a_second(times: list[float]) -> int:
    times = sorted(times)
    return max(sum(start <= each < start + 1.0 for each in times) for start in times)


async def test_two_clients_together_keep_to_the_query_rate_of_their_account(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_rate, "RAISE_AFTER_SECONDS", 1.0)  # so long others have to hear of it
    site = Site(path, ToyService(queries=[RUNNING]))
    options: dict[str, Any] = {"limits": UNLIMITED, "queries_per_second": 12}
    async with site.client(**options) as first:
        for number in range(12):
            await first.submit(video(str(number)))
        await asyncio.sleep(0.5)
        async with site.client(**options) as second:
            for number in range(4):
                await second.submit(video(f"second {number}"))
            await asyncio.sleep(1.2)
            before = await queries(first), await queries(second)
            await asyncio.sleep(2.2)
            after = await queries(first), await queries(second)

    assert most_in_a_second(site.service.times("GET")) <= 12
    mine, theirs = after[0] - before[0], after[1] - before[1]
    assert mine > theirs > 0, "each has its part, by its open tasks"
    assert mine + theirs >= 12 * 2, "the rate is used"


async def test_a_process_that_died_has_no_part_of_the_query_rate(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart after a crash looks at once: nobody has to hear of it first."""
    monkeypatch.setattr(query_rate, "RAISE_AFTER_SECONDS", 2.0)
    site = Site(path, ToyService())
    async with SQLiteLedger(path) as ledger:
        key = Secret("sk-toy").fingerprint(await ledger.salt())
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO owners VALUES ('0123456789ab', 1, 'here', '2026-01-01')")
            row = ("0123456789ab.1", "0123456789ab", "toy@https://toy.example", key)
            connection.execute("INSERT INTO clients VALUES (?, ?, ?, ?)", row)
    async with site.client(QuickToy(queries_per_second=20.0)) as client:
        began = now()
        await client.attach("toy-9")
        while not site.service.count("GET"):
            await asyncio.sleep(0.01)

        assert now() - began < 1.0


def test_whoever_has_to_do_with_less_has_heard_of_it_before_another_one_has_more() -> None:
    """A process looks at its part at each tick, and what it has sent counts for a second more."""
    longest = _session.TICK_SECONDS * 1.2

    assert longest + 1.0 <= RAISE_AFTER_SECONDS
