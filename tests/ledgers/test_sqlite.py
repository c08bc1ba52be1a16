"""A SQLite ledger's file: when it is opened, who may read it, what of a request is in it, and for how long."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bide import ImageRequest
from bide.errors import LedgerError, TaskCancelledError
from bide.ledgers import Hint, Record, SQLiteLedger, digest_of
from bide.models import Limits, Task, TaskStatus
from support.ledger_worlds import (
    ORIGIN,
    admitted,
    in_thread,
    put_back,
    record,
    running,
    set_forward,
    state,
    terms,
)
from support.toy import ToyService
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time

CANARY = "a canary that must stay at home"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def all_bytes(path: Path) -> bytes:
    """What is in the ledger's files, of every kind."""
    files = [path, *path.parent.glob(f"{path.name}-*"), *path.with_name(f"{path.name}-bide").glob("*")]
    return b"\0".join(each.read_bytes() for each in files if each.is_file())


def raw_rows(path: Path, query: str, *values: object) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


# When it is open -------------------------------------------------------------------------------------------


async def test_nothing_is_made_before_the_first_use(path: Path) -> None:
    ledger = SQLiteLedger(path)
    assert repr(ledger) == f"<SQLiteLedger {path}>"
    assert ledger.now() == pytest.approx(time.time(), abs=60)
    ToyService().client(ledger=ledger)

    assert list(path.parent.iterdir()) == []

    async with ledger:
        assert path.exists()


async def test_the_file_and_its_folder_are_for_their_owner_alone(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
        folder = path.with_name("ledger.db-bide")
        modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
        inside = [each.stat().st_mode & 0o777 for each in folder.iterdir() if each.suffix == ".lock"]

    assert modes.pop("ledger.db-bide") == 0o700
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm"), 0o600)
    assert inside == [0o600, 0o600]


async def test_it_closes_with_its_last_client_and_opens_again(path: Path) -> None:
    ledger, service = SQLiteLedger(path), ToyService()
    async with service.client(ledger=ledger) as one, service.client(ledger=ledger):
        handle = await one.submit(ImageRequest("a cat", model="m"))
        await handle.accepted()
        await one.aclose()
        assert path.with_name("ledger.db-wal").exists(), "another client still has it"

    assert not path.with_name("ledger.db-wal").exists()
    assert [each.name for each in path.with_name("ledger.db-bide").iterdir()] == ["write.lock"]
    async with service.client(ledger=ledger) as later:
        assert [each.ticket for each in await later.resume()] == [handle.ticket]


def test_it_serves_one_loop_after_another(path: Path) -> None:
    ledger = SQLiteLedger(path)

    async def add(ticket: str) -> list[str]:
        async with ledger:
            await ledger.add(record(ticket))
            return [each.ticket for each in await ledger.records()]

    assert asyncio.run(add("t1")) == ["t1"]
    assert asyncio.run(add("t2")) == ["t1", "t2"]


def test_a_loop_that_was_closed_over_an_open_ledger_is_in_nobodys_way(path: Path) -> None:
    """What it drove belongs to nobody as soon as the ledger is used again."""
    ledger = SQLiteLedger(path)

    async def begin() -> None:
        me = await ledger.enter(ORIGIN, {"k1"})
        await ledger.add(record("t1", owner=me))

    async def go_on() -> None:
        async with ledger:
            await until(lambda: ledger.adopt(ORIGIN, {"k1"}, "another"))
            assert [each.clients for each in (await ledger.report()).owners] == [0]

    asyncio.run(begin())

    asyncio.run(go_on())


def test_it_can_be_closed_though_its_loop_was_closed_before(path: Path) -> None:
    ledger = SQLiteLedger(path)
    asyncio.run(ledger.add(record("t1")))

    asyncio.run(ledger.aclose())

    async def look() -> list[str]:
        async with ledger:
            return [each.ticket for each in await ledger.records()]

    assert asyncio.run(look()) == ["t1"]


async def test_another_loop_is_told_to_make_a_ledger_of_its_own(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        steps: list[Callable[[], Any]] = [
            lambda: ledger.get("t1"),
            ledger.salt,
            lambda: ledger.enter(ORIGIN, {"k1"}),
            ledger.records,
        ]
        for step in steps:

            async def there(step: Callable[[], Any] = step) -> None:
                await step()

            with pytest.raises(RuntimeError, match="make a SQLiteLedger for each loop"):
                await asyncio.to_thread(asyncio.run, there())


async def test_it_is_not_pickled(path: Path) -> None:
    with pytest.raises(TypeError, match="make a SQLiteLedger of the same path in the other process"):
        pickle.dumps(SQLiteLedger(path))


@pytest.mark.parametrize("wrong", [{"durability": "disk"}, {"keep": -1}, {"keep": True}, {"keep": "7"}])
def test_wrong_arguments_are_refused_at_once(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SQLiteLedger(path, **wrong)


async def test_many_steps_at_once_are_each_done_or_refused_by_itself(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await running(ledger, "t0", "x0")
        steps = [ledger.add(record(f"t{number}")) for number in range(1, 600)]
        wrong = [ledger.forget("t0"), ledger.settle("t0", "x1"), ledger.forget("t9999")]

        results = await asyncio.gather(*steps, *wrong, return_exceptions=True)

        assert [type(each) for each in results[-3:]] == [ValueError, ValueError, LookupError]
        assert len(await ledger.records()) == 600


async def test_a_step_that_is_cancelled_is_taken_all_the_same_and_keeps_nobody(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        step = asyncio.create_task(ledger.add(record("t1")))
        await asyncio.sleep(0)
        step.cancel()
        await ledger.add(record("t2"))

        assert [each.ticket for each in await ledger.records()] == ["t1", "t2"]


# Two on one file -------------------------------------------------------------------------------------------


async def test_two_ledgers_on_one_file_name_keys_and_time_alike(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        assert await one.salt() == await other.salt()
        assert one.now() == pytest.approx(other.now(), abs=60)
        assert one.now() == pytest.approx(time.time(), abs=60)


async def test_each_ledger_has_a_salt_of_its_own(tmp_path: Path) -> None:
    async with SQLiteLedger(tmp_path / "a") as one, SQLiteLedger(tmp_path / "b") as other:
        assert await one.salt() != await other.salt()


@pytest.mark.usefixtures("no_ticks")
async def test_what_an_owner_drives_is_heard_of_when_another_process_changes_it(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        me = await one.enter(ORIGIN, {"k1"})
        await one.add(record("t1", owner=me))
        heard: list[Record | Hint] = []
        one.subscribe(heard.append)

        await other.withdraw("t1", Task(ticket="t1", status=TaskStatus.CANCELLED))

        await until(lambda: any(isinstance(each, Record) for each in heard))
        (news,) = [each for each in heard if isinstance(each, Record)]
        assert (news.ticket, news.task.status) == ("t1", TaskStatus.CANCELLED)


@pytest.mark.usefixtures("no_ticks")
async def test_a_read_sees_what_another_process_has_written_before_it_was_asked_for(path: Path) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def read_slowly(backend: Any) -> None:
        backend.store.record("none")
        begun.set()
        may_end.wait(A_MINUTE)

    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        slow = asyncio.ensure_future(in_thread(other, read_slowly))
        await asyncio.to_thread(begun.wait, A_MINUTE)
        await one.add(record("t1"))
        asked = asyncio.ensure_future(other.get("t1"))
        await asyncio.sleep(0.05)
        may_end.set()

        assert await asked is not None
        await slow


@pytest.mark.usefixtures("no_ticks")
async def test_what_is_followed_is_heard_of_whoever_drives_it(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        me = await one.enter(ORIGIN, {"k1"})
        got = await running(one, "t1", "x1", owner=me)
        heard: list[tuple[TaskStatus, int | None]] = []
        other.subscribe(
            lambda news: (
                heard.append((news.task.status, news.task.progress)) if isinstance(news, Record) else None
            )
        )
        await other.follow("t1", client="me")
        await one.update("t1", state(got, TaskStatus.RUNNING, progress=40), owner=me)
        await until(lambda: (TaskStatus.RUNNING, 40) in heard)
        await one.finish("t1", state(got, TaskStatus.SUCCEEDED), owner=me)

        await until(lambda: heard[-1][0] is TaskStatus.SUCCEEDED)


@pytest.mark.usefixtures("no_ticks")
async def test_whoever_is_next_is_woken_when_another_process_frees_a_slot(path: Path) -> None:
    lanes = terms(limits=Limits(1))
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        me, them = await one.enter(ORIGIN, {"k1"}), await other.enter(ORIGIN, {"k1"})
        await one.add(record("t1", owner=me))
        first = await admitted(one, lanes, me)
        await other.add(record("t2", owner=them))
        await asyncio.sleep(0.05)
        heard: list[Record | Hint] = []
        other.subscribe(heard.append)

        await one.finish("t1", state(first, TaskStatus.FAILED), owner=me)

        await until(lambda: Hint.SLOTS in heard)
        assert (await admitted(other, lanes, them)).ticket == "t2"


@pytest.mark.usefixtures("no_ticks")
async def test_others_hear_of_owners_that_come_and_go(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        heard: list[Record | Hint] = []
        one.subscribe(heard.append)

        them = await other.enter(ORIGIN, {"k1"})
        await until(lambda: Hint.OWNERS in heard)
        await other.add(record("t1", owner=them))
        heard.clear()
        await other.leave(them)

        await until(lambda: Hint.OWNERS in heard)
        assert [each.ticket for each in await one.adopt(ORIGIN, {"k1"}, "me")] == ["t1"]


async def test_processes_share_a_query_rate_by_their_open_tasks(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        me, them = await one.enter(ORIGIN, {"k1"}), await other.enter(ORIGIN, {"k1", "k2"})
        far = await other.enter("https://other.example", {"k1"})
        for number in range(3):
            await running(one, f"t{number}", f"x{number}", owner=me)

        mine, theirs = await one.share(me, 20.0), await other.share(them, 20.0)

        assert mine + theirs == 20
        assert mine > theirs >= 1
        assert await other.share(far, 20.0) == 20
        await other.leave(them)
        assert await one.share(me, 20.0) == 20


# What it waits for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "levels"), [("power", (2, 1)), ("process", (1, 1))])
async def test_a_loss_of_power_is_stood_where_it_was_asked_for(
    path: Path, durability: Any, levels: tuple[int, int]
) -> None:
    """In that mode each transaction of the intent and of the id waits for the disk (FULL); the others do not."""
    async with SQLiteLedger(path, durability=durability) as ledger:

        def level(backend: Any) -> int:
            return int(backend.database.connection.execute("PRAGMA synchronous").fetchone()[0])

        vital, usual = [], []
        await ledger.add(record("t1"))
        vital.append(await in_thread(ledger, level))
        await ledger.follow("t1", client="me")
        usual.append(await in_thread(ledger, level))
        got = await admitted(ledger)
        vital.append(await in_thread(ledger, level))
        await put_back(ledger, "t1", "rate")
        usual.append(await in_thread(ledger, level))
        await set_forward(ledger, 10)
        got = await admitted(ledger)
        queued = await ledger.accept("t1", state(got, TaskStatus.QUEUED, task_id="x1"), owner="me")
        vital.append(await in_thread(ledger, level))
        await ledger.update("t1", state(queued, TaskStatus.RUNNING), owner="me")
        usual.append(await in_thread(ledger, level))

        assert set(vital) == {levels[0]}
        assert set(usual) == {levels[1]}


async def test_what_was_not_heard_can_be_asked_for(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        for ticket in ("t1", "t2"):
            await one.add(record(ticket))
        before = [await other.get(ticket) for ticket in ("t1", "t2")]
        versions = {each.ticket: each.version for each in before if each is not None}
        gone = await one.withdraw("t1", Task(ticket="t1", status=TaskStatus.CANCELLED))

        newer = await other.newer_records(versions)

        assert newer == [gone]
        assert await other.newer_records({**versions, "t1": gone.version, "t9": 0}) == []


async def test_news_that_were_read_in_a_step_that_is_undone_are_heard_all_the_same(path: Path) -> None:
    async with SQLiteLedger(path) as one, SQLiteLedger(path) as other:
        await one.add(record("t1"))
        await other.follow("t1", client="me")
        for each in path.with_name("ledger.db-bide").glob("*.sock"):
            each.unlink()
        heard: list[Record | Hint] = []
        other.subscribe(heard.append)
        await one.withdraw("t1", Task(ticket="t1", status=TaskStatus.CANCELLED))

        def read_and_fail(backend: Any) -> None:
            assert [each.ticket for each in backend.read_news()] in (["t1"], [])
            raise RuntimeError("what broke it")

        with pytest.raises(LedgerError, match="what broke it"):
            await in_thread(other, read_and_fail, writes=True)

        await until(lambda: any(isinstance(each, Record) for each in heard))


async def test_a_row_that_cannot_be_read_is_in_no_others_way(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteLedger(path) as ledger:
        for ticket in ("t1", "broken", "t2"):
            await ledger.add(record(ticket, owner=None))
        spoil = "UPDATE records SET task = '{' WHERE ticket = 'broken'"
        await in_thread(
            ledger, lambda backend: backend.database.connection.execute(spoil) and None, writes=True
        )

    async with SQLiteLedger(path) as ledger:
        adopted = await ledger.adopt(ORIGIN, {"k1"}, "other")

        assert [each.ticket for each in adopted] == ["t1", "t2"]
        assert [each.ticket for each in await ledger.records()] == ["t1", "t2"]
        assert (await admitted(ledger, owner="other")).ticket == "t1"
        assert "the record of ticket 'broken' cannot be read" in caplog.text
        with pytest.raises(LedgerError, match="was it changed by hand"):
            await ledger.get("broken")


# What is kept of a request ---------------------------------------------------------------------------------


async def test_without_prompts_no_file_holds_a_byte_of_one_and_the_request_is_sent_all_the_same(
    path: Path,
) -> None:
    ledger = SQLiteLedger(path, store_prompts=False)
    echo = {"status": "running", "prompt": CANARY, "input": {"prompt": [CANARY]}}
    service = ToyService(creates=[{**echo, "status": "queued"}], queries=[echo])
    async with service.client(ledger=ledger, limits=Limits(1)) as client:
        handle = await client.submit(ImageRequest(CANARY, model="m"))
        waiting = await client.submit(ImageRequest(CANARY + " two", model="m"))
        await handle.accepted()
        during = all_bytes(path)

    assert service.count("POST") == 1
    assert service.tickets == [handle.ticket]
    assert CANARY.encode() not in during + all_bytes(path)
    assert handle.ticket.encode() in all_bytes(path)
    kept = raw_rows(path, "SELECT digest FROM records WHERE ticket = ?", waiting.ticket)
    assert kept == [(digest_of(ImageRequest(CANARY + " two", model="m")),)]


async def test_the_prompt_of_a_refusal_is_not_kept_either(path: Path) -> None:
    async with SQLiteLedger(path, store_prompts=False) as ledger:
        asked = ImageRequest(CANARY, model="m")
        await ledger.add(record("t1", request=asked, digest=digest_of(asked)))
        got = await admitted(ledger)
        told = Task.from_dict(
            {
                **got.task.to_dict(),
                "status": "rejected",
                "error": {"message": f"bad prompt: {CANARY}", "text": f"InvalidParameter: {CANARY!r}"},
                "raw": {"echo": CANARY},
            }
        )

        await ledger.finish("t1", told, owner="me")

        assert CANARY.encode() not in all_bytes(path)


async def test_without_prompts_what_waits_ends_when_its_owner_leaves(path: Path) -> None:
    async with SQLiteLedger(path, store_prompts=False) as other, SQLiteLedger(path) as follower:
        service = ToyService()
        async with service.client(ledger=other, limits=Limits(1)) as client:
            sent = await client.submit(ImageRequest("a cat", model="m"))
            waits = await client.submit(ImageRequest("a dog", model="m"))
            await sent.accepted()
            await follower.follow(waits.ticket, client="me")

        left = await follower.get(waits.ticket)

        assert left is not None
        assert left.task.status is TaskStatus.CANCELLED
        assert "its request was not stored" in (left.task.error.message if left.task.error else "")
        async with service.client(ledger=follower) as later:
            handle = await later.attach(ticket=waits.ticket)
            with pytest.raises(TaskCancelledError, match="its request was not stored"):
                await handle.result(timeout=A_MINUTE)
            assert [each.ticket for each in await later.resume()] == [sent.ticket]


@pytest.mark.parametrize("store_prompts", [True, False])
async def test_a_ticket_names_one_request_in_every_process(path: Path, store_prompts: bool) -> None:
    service = ToyService()
    one, other = (SQLiteLedger(path, store_prompts=store_prompts) for _ in range(2))
    async with service.client(ledger=one) as first, service.client(ledger=other) as second:
        await first.submit(ImageRequest("a cat", model="m"), ticket="t1")

        with pytest.raises(ValueError, match="already names another request"):
            await second.submit(ImageRequest("a dog", model="m"), ticket="t1")
        with pytest.raises(ValueError, match="already names another request"):
            await first.submit(ImageRequest("a dog", model="m"), ticket="t1")
        same = await second.submit(ImageRequest("a cat", model="m"), ticket="t1")

        assert same.ticket == "t1"
        await same.accepted()
        assert service.count("POST") == 1


async def test_whoever_stores_prompts_stores_none_of_a_request_that_came_without(path: Path) -> None:
    async with SQLiteLedger(path, store_prompts=False) as one, SQLiteLedger(path) as other:
        asked = ImageRequest(CANARY, model="m")
        got = await running(one, "t1", "x1", request=asked, digest=digest_of(asked))
        await one.leave("me")
        await other.adopt(ORIGIN, {"k1"}, "other")

        ended = state(got, TaskStatus.SUCCEEDED, raw={"prompt": CANARY})
        await other.finish("t1", ended, owner="other")
        mine = ImageRequest("one of its own", model="m")
        await other.add(record("t2", request=mine, digest=digest_of(mine)))

        assert CANARY.encode() not in all_bytes(path)
        assert raw_rows(path, "SELECT json_extract(body, '$.prompt') FROM requests") == [("one of its own",)]
