"""A ledger's file that is deleted, moved or replaced under a live client: that is noticed, and nothing is bought."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bide import ImageRequest, Limits, Pace, WaitTimeoutError
from bide._polling import observer as _polling
from bide._runtime import engine as _engine
from bide._runtime import submitter as _submission
from bide._runtime import wishes as _wishes
from bide.errors import LedgerError
from bide.ledgers import SQLiteLedger
from bide.models import TaskStatus
from bide.providers import Profile
from support.ledger_worlds import record
from support.toy import Toy, ToyService
from support.waits import until

pytestmark = pytest.mark.real_time

CAT = ImageRequest("a cat", model="m")
SOON = Pace.fixed(0.05)


class Quick(Toy):
    """A service that may be polled often."""

    def profile(self, kind: str) -> Profile:
        return evolve(super().profile(kind), floor=0.05)


ONE = Quick(limits=Limits(1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "ledger.db"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be recorded is tried again soon, and a closing client does not wait for it long."""
    monkeypatch.setattr(_engine, "RECORDING_SECONDS", 0.1)
    monkeypatch.setattr(_wishes, "CONFIRM_SECONDS", 0.1)
    monkeypatch.setattr(_wishes, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(_submission, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(_polling, "RERECORD_SECONDS", 0.05)


def folder_of_locks(path: Path) -> Path:
    return path.with_name(path.name + "-bide")


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    shutil.copy(path, other)
    other.rename(path)


def move_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def delete_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def delete_locks(path: Path) -> None:
    shutil.rmtree(folder_of_locks(path))


def replace_locks(path: Path) -> None:
    delete_locks(path)
    folder_of_locks(path).mkdir()


DELETED, REPLACED = "was deleted or moved while it was open", "was replaced by another one while it was open"
WAYS: list[tuple[Callable[[Path], None], str]] = [
    (delete, DELETED),
    (move, DELETED),
    (replace, REPLACED),
    (move_directory, DELETED),
    (delete_directory, DELETED),
    (delete_locks, DELETED),
    (replace_locks, REPLACED),
]


@pytest.mark.parametrize(("lose", "words"), WAYS)
async def test_each_step_on_a_lost_file_says_what_has_happened_and_what_to_do(
    lose: Callable[[Path], None], words: str, path: Path
) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
        lose(path)

        told = rf"{path} {words}: nothing is recorded and nothing new is sent; .*Move it back .*open new ones"
        for step in (ledger.get("t1"), ledger.add(record("t2")), ledger.records()):
            with pytest.raises(LedgerError, match=told):
                await step


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("lose", "words"), WAYS)
async def test_with_its_file_lost_a_client_sends_nothing_and_watches_what_runs(
    lose: Callable[[Path], None], words: str, path: Path
) -> None:
    service = ToyService()
    async with service.client(ONE, ledger=SQLiteLedger(path), pace=SOON) as client:
        runs, waits = await client.submit(CAT), await client.submit(CAT)
        await runs.accepted()
        result = asyncio.create_task(runs.result())
        lose(path)

        with pytest.raises(LedgerError, match=words):
            await client.submit(CAT)
        service.script["GET"] = [{"status": "succeeded"}]
        assert (await result).status is TaskStatus.SUCCEEDED
        with pytest.raises(WaitTimeoutError) as caught:
            await waits.result(timeout=0.5)
        assert isinstance(caught.value.fault, LedgerError)
        await client.aclose(grace=0)
    assert service.count("POST") == 1


@pytest.mark.usefixtures("eager")
async def test_closing_with_the_file_lost_names_the_tasks_that_run(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = ToyService().client(ONE, ledger=SQLiteLedger(path))
    runs = await client.submit(CAT)
    await client.submit(CAT)
    await runs.accepted()
    delete(path)

    await client.aclose(grace=0)

    assert "1 tasks left running: toy-1" in caplog.text


class Losing(SQLiteLedger):
    """A ledger whose file is moved away as soon as the first request is admitted."""

    has_lost = False

    async def admit(self, *args: Any) -> Any:
        admitted = await super().admit(*args)
        if not hasattr(admitted, "until") and not self.has_lost:
            self.has_lost = True
            move(self.path)
        return admitted


@pytest.mark.usefixtures("eager")
async def test_a_request_that_is_admitted_is_not_sent_while_the_file_is_lost(path: Path) -> None:
    service, ledger = ToyService(), Losing(path)
    async with service.client(ledger=ledger, pace=SOON) as client:
        handle = await client.submit(CAT)
        with pytest.raises(WaitTimeoutError) as caught:
            await handle.accepted(timeout=0.5)
        assert "was deleted or moved" in str(caught.value.fault)
        assert service.count("POST") == 0

        path.with_name("elsewhere.db").rename(path)
        await handle.accepted()
        assert service.count("POST") == 1


@pytest.mark.usefixtures("eager")
async def test_the_task_of_a_create_that_was_under_way_is_watched_and_its_result_arrives(path: Path) -> None:
    service = ToyService(queries=[{"status": "succeeded"}])
    async with (
        service.holding("POST"),
        service.client(Quick(), ledger=SQLiteLedger(path), pace=SOON) as client,
    ):
        result = asyncio.create_task(client.run(CAT))
        await until(lambda: service.count("POST") == 1)
        delete(path)
        service.let_go("POST")

        task = await result
        assert (task.status, task.task_id) == (TaskStatus.SUCCEEDED, "toy-1")
        await client.aclose(grace=0)
        assert service.count("POST") == 1


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("lose", [move, move_directory])
async def test_with_the_file_moved_back_work_goes_on(lose: Callable[[Path], None], path: Path) -> None:
    service, ledger = ToyService(), SQLiteLedger(path)
    async with service.client(ONE, ledger=ledger, pace=SOON) as client:
        runs, waits = await client.submit(CAT), await client.submit(CAT)
        await runs.accepted()
        lose(path)
        with pytest.raises(LedgerError):
            await client.submit(CAT)
        service.script["GET"] = [{"status": "succeeded"}]

        away = path.parent.with_name("elsewhere")
        away.rename(path.parent) if away.exists() else path.with_name("elsewhere.db").rename(path)

        assert (await runs.result()).status is TaskStatus.SUCCEEDED
        assert (await waits.result()).status is TaskStatus.SUCCEEDED
        assert service.count("POST") == 2
        assert {each.task.status for each in await ledger.records(all=True)} == {TaskStatus.SUCCEEDED}


@pytest.mark.usefixtures("eager")
async def test_a_client_without_its_file_does_not_ask_for_it_without_a_pause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_submission, "RETRY_SECONDS", 5.0)
    asked = 0

    class Counting(SQLiteLedger):
        async def admit(self, *args: Any) -> Any:
            nonlocal asked
            asked += 1
            return await super().admit(*args)

    service = ToyService()
    async with service.client(ONE, ledger=Counting(path), pace=SOON) as client:
        for _ in range(3):
            await client.submit(CAT)
        await until(lambda: service.count("POST") == 1)
        move(path)
        before = asked
        await asyncio.sleep(1.0)
        assert asked - before <= 3
        await client.aclose(grace=0)


async def test_closing_a_ledger_whose_file_was_replaced_leaves_the_new_file_whole(path: Path) -> None:
    new = path.with_name("new.db")
    async with SQLiteLedger(path) as old:
        await old.add(record("old"))
        async with SQLiteLedger(new) as made:
            await made.add(record("first"))
        new.rename(path)
        shutil.rmtree(folder_of_locks(path))
        path.with_name("ledger.db-wal").unlink()
        path.with_name("ledger.db-shm").unlink()
        async with SQLiteLedger(path) as fresh:
            await fresh.add(record("second"))
            await old.aclose()
            async with SQLiteLedger(path) as another:
                assert [each.ticket for each in await another.records()] == ["first", "second"]


async def test_a_client_that_is_opened_anew_uses_the_new_file(path: Path) -> None:
    ledger = SQLiteLedger(path)
    async with ledger:
        await ledger.add(record("t1"))
        delete_directory(path)
        with pytest.raises(LedgerError):
            await ledger.get("t1")
    path.parent.mkdir()

    async with ledger:
        assert await ledger.records() == []


async def test_what_changes_or_hides_the_file_is_no_loss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Path.stat
    faults: list[OSError] = []

    def stat(self: Path, **how: Any) -> Any:
        if faults and self == path:
            raise faults.pop()
        return honest(self, **how)

    monkeypatch.setattr(Path, "stat", stat)
    async with SQLiteLedger(path) as ledger:
        for number in range(200):
            await ledger.add(record(f"t{number}"))
        other = sqlite3.connect(path, isolation_level=None)
        for command in ("PRAGMA wal_checkpoint(PASSIVE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            other.execute(command)
            await ledger.add(record(command))
        other.close()
        path.chmod(0o640)
        await ledger.add(record("mode"))
        link = path.with_name("link.db")
        link.symlink_to(path)
        for fault in (InterruptedError(4, "EINTR"), PermissionError(13, "EACCES"), OSError(5, "EIO")):
            faults.append(fault)
            await ledger.add(record(str(fault)))
        assert faults == []
        assert len(await ledger.records()) == 207
