"""What was submitted with a key that no open client holds any more, as after a key was replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bide import BideError, Client, Limits, TaskStatus
from bide.ledgers import Ledger, MemoryLedger, SQLiteLedger
from bide.models import ImageRequest
from support.toy import Toy, ToyService
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time

OLD, NEW, FOREIGN = "sk-old-000", "sk-new-000", "sk-foreign-0"
ONE = Limits(1)


class Account(ToyService):
    """A service that accepts some keys, and shows a task to the keys of its account."""

    def __init__(self) -> None:
        super().__init__(queries=[{"status": "running"}])
        self.accepts = {OLD, NEW}
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["authorization"].removeprefix("Bearer ")
        self.asked.append((request.method, key))
        if key not in self.accepts:
            return httpx.Response(404 if key == FOREIGN else 401, json={})
        return await super().__call__(request)

    def end_all(self) -> None:
        self.script["GET"] = [{"status": "succeeded"}]


@pytest.fixture(params=["memory", "sqlite"])
def make_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ledger]:
    if request.param == "sqlite":
        return lambda: SQLiteLedger(tmp_path / "ledger.db")
    ledger = MemoryLedger()
    return lambda: ledger


def open_client(service: Account, ledger: Ledger, key: str = NEW, **options: Any) -> Client:
    return service.client(Toy(), ledger=ledger, api_key=key, **options)


async def left_by_the_old_key(service: Account, ledger: Ledger) -> None:
    """A task that was accepted."""
    async with open_client(service, ledger, OLD) as client:
        await (await client.submit(ImageRequest("a", model="m"), ticket="a")).accepted()
    service.accepts = {NEW}


async def test_a_new_key_goes_on_with_the_tasks_of_the_old_one_if_the_service_shows_them(
    make_ledger: Callable[[], Ledger],
) -> None:
    service, ledger = Account(), make_ledger()
    await left_by_the_old_key(service, ledger)
    async with open_client(service, ledger) as client:
        handle = await client.attach(ticket="a")
        service.end_all()

        task = await handle.result(timeout=A_MINUTE)

    assert task.status is TaskStatus.SUCCEEDED
    assert service.count("POST") == 1


async def test_it_goes_on_by_the_id_of_the_task_too(make_ledger: Callable[[], Ledger]) -> None:
    service, ledger = Account(), make_ledger()
    await left_by_the_old_key(service, ledger)
    async with open_client(service, ledger) as client:
        handle = await client.attach("toy-1")
        service.end_all()

        assert (await handle.result(timeout=A_MINUTE)).ticket == "a"


async def test_it_goes_on_without_being_asked(tmp_path: Path) -> None:
    service = Account()
    await left_by_the_old_key(service, SQLiteLedger(tmp_path / "ledger.db"))
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    async with open_client(service, ledger):
        service.end_all()

        async def has_ended() -> bool:
            record = await ledger.get("a")
            return record is not None and record.task.status is TaskStatus.SUCCEEDED

        await until(has_ended)


async def test_the_key_of_another_account_gets_nothing_and_stops_asking(
    make_ledger: Callable[[], Ledger],
) -> None:
    service, ledger = Account(), make_ledger()
    await left_by_the_old_key(service, ledger)
    async with open_client(service, ledger, FOREIGN) as client:
        await asyncio.sleep(1.2)
        for _ in range(3):
            with pytest.raises(ValueError, match="another key"):
                await client.attach(ticket="a")

        assert [key for _, key in service.asked].count(FOREIGN) == 1


async def test_what_ended_under_another_key_is_there_for_who_runs_the_batch_again(
    make_ledger: Callable[[], Ledger],
) -> None:
    service, ledger = Account(), make_ledger()
    service.end_all()
    request = ImageRequest("a", model="m")
    async with open_client(service, ledger, OLD) as client:
        await client.run(request, ticket="a")
    service.accepts = {NEW}
    async with open_client(service, ledger) as client:
        task = await client.run(request, ticket="a")

    assert task.status is TaskStatus.SUCCEEDED
    assert service.count("POST") == 1


async def left_waiting(service: Account, ledger: Ledger) -> None:
    client = open_client(service, ledger, OLD, limits=ONE)
    await (await client.submit(ImageRequest("a", model="m"), ticket="a")).accepted()
    for ticket in ("b", "c"):
        await client.submit(ImageRequest(ticket, model="m"), ticket=ticket)
    await client.aclose()
    service.accepts = {NEW}


async def test_what_waits_for_a_lost_key_is_reported_and_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = Account()
    await left_waiting(service, SQLiteLedger(tmp_path / "ledger.db"))
    caplog.set_level(logging.WARNING, "bide")
    async with open_client(service, SQLiteLedger(tmp_path / "ledger.db"), limits=ONE) as client:
        service.end_all()
        await until(lambda: "2 requests wait for keys" in caplog.text)
        await asyncio.sleep(1.5)
        with pytest.raises(ValueError, match=r"resume\(other_keys=True\)"):
            await client.attach(ticket="b")
        with pytest.raises(ValueError, match=r"resume\(other_keys=True\)"):
            await client.run(ImageRequest("c", model="m"), ticket="c")

    assert service.count("POST") == 1
    assert caplog.text.count("wait for keys that no open client") == 1


async def test_only_an_explicit_order_sends_it_with_the_new_key(tmp_path: Path) -> None:
    service = Account()
    await left_waiting(service, SQLiteLedger(tmp_path / "ledger.db"))
    async with open_client(service, SQLiteLedger(tmp_path / "ledger.db"), limits=ONE) as client:
        service.end_all()
        handles = await client.resume(other_keys=True)
        assert {handle.ticket for handle in handles} >= {"b", "c"}

        for handle in handles:
            assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED

    assert service.count("POST") == 3
    assert {key for method, key in service.asked[-6:] if method == "POST"} == {NEW}


async def test_what_waits_for_a_key_that_an_open_client_holds_is_not_moved(tmp_path: Path) -> None:
    service = Account()
    await left_waiting(service, SQLiteLedger(tmp_path / "ledger.db"))
    service.accepts = {OLD, NEW}
    path = tmp_path / "ledger.db"
    async with open_client(service, SQLiteLedger(path), OLD, limits=ONE, adopt=False):
        async with open_client(service, SQLiteLedger(path), limits=ONE) as client:
            assert await client.resume(other_keys=True) == []
            with pytest.raises(ValueError, match="another key"):
                await client.attach(ticket="b")
            handle = await client.attach(ticket="a")
            service.end_all()
            assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED


async def test_an_unanswered_look_says_nothing_about_another_key(tmp_path: Path) -> None:
    service = Account()
    await left_by_the_old_key(service, SQLiteLedger(tmp_path / "ledger.db"))
    service.script["GET"] = [httpx.ConnectError("no route"), {"status": "succeeded"}]
    async with open_client(service, SQLiteLedger(tmp_path / "ledger.db")) as client:
        for _ in range(100):
            try:
                handle = await client.attach(ticket="a")
                break
            except (ValueError, BideError):
                client._engine.takeover._lost_keys._next_try.clear()  # type: ignore[union-attr]
        assert (await handle.result(timeout=A_MINUTE)).status is TaskStatus.SUCCEEDED
