"""What goes wrong with a file: each fault is a `LedgerError` that says what to do, and nothing is bought meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bide import ImageRequest, Limits
from bide._polling import observer as _polling
from bide._runtime import submitter as _submission
from bide.errors import LedgerError, WaitTimeoutError
from bide.ledgers import SQLiteLedger
from bide.ledgers.sqlite import database
from bide.models import TaskStatus
from support.ledger_worlds import allow_writes, in_thread, record, refuse_writes, running
from support.programs import program
from support.toy import Toy, ToyService
from support.waits import A_MINUTE, until

pytestmark = pytest.mark.real_time

CAT = ImageRequest("a cat", model="m")
HOLDS_THE_LOCK = """
    import fcntl, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    lock = os.open(path, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    say("held")
    signal.sigwait([signal.SIGUSR1])
    fcntl.flock(lock, fcntl.LOCK_UN)
    say("let go")
    time.sleep(600)
"""
AS_NOBODY = """
    import asyncio, os, sys
    from bide.ledgers import SQLiteLedger
    from bide.errors import LedgerError
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    async def use():
        ledger = SQLiteLedger(sys.argv[1])
        try:
            await ledger.records()
        except LedgerError as fault:
            print(fault)
        else:
            print("no fault")

    asyncio.run(use())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a locked file."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(database, "LONGEST_WRITE_SECONDS", 0.2)


async def fault_of(path: Path) -> str:
    with pytest.raises(LedgerError) as caught:
        await SQLiteLedger(path).records()
    assert str(path) in str(caught.value)
    return str(caught.value)


async def fill(ledger: SQLiteLedger) -> None:
    """The disk has no room any more."""

    def take_all(backend: Any) -> None:
        connection = backend.database.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await in_thread(ledger, take_all)


async def make_room(ledger: SQLiteLedger) -> None:
    await in_thread(
        ledger, lambda backend: backend.database.connection.execute("PRAGMA max_page_count = 100000") and None
    )


async def fill_up(ledger: SQLiteLedger) -> LedgerError:
    """Write until there is no room for more."""
    await fill(ledger)
    for number in range(500):
        try:
            await ledger.add(record(f"much{number}", owner="nobody", keys=frozenset({"k9"})))
        except LedgerError as fault:
            return fault
    raise AssertionError("the disk is never full")


def as_nobody(path: Path) -> str:
    """What an unprivileged user is told."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AS_NOBODY), str(path)],
        capture_output=True,
        check=False,
        text=True,
        timeout=A_MINUTE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Opening ---------------------------------------------------------------------------------------------------


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    fault = await fault_of(tmp_path / "none" / "ledger.db")

    assert f"there is no directory {tmp_path / 'none'}; make it first" in fault
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_in_the_place_of_the_file_is_told(path: Path) -> None:
    path.mkdir()

    assert "is a directory: name a file in it" in await fault_of(path)


async def test_a_file_that_is_no_database_is_refused_and_untouched(path: Path) -> None:
    path.write_bytes(b"my diary\n" * 1000)

    assert "is not a SQLite database; name another file" in await fault_of(path)

    assert path.read_bytes() == b"my diary\n" * 1000


async def test_the_database_of_another_program_is_refused_and_untouched(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()

    assert "a database of another program, not a ledger of bide: name another file" in await fault_of(path)

    assert path.read_bytes() == before


async def test_a_damaged_file_is_told(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        for number in range(300):
            await ledger.add(record(f"t{number}"))
    whole = path.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    path.write_bytes(whole[:size] + b"\xa5" * (len(whole) - size))

    assert "the file is damaged; move it away" in await fault_of(path)


async def test_a_file_that_is_damaged_while_it_is_open_is_told_by_each_step(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        for number in range(300):
            await ledger.add(record(f"t{number}"))
    size = int.from_bytes(path.read_bytes()[16:18], "big")
    async with SQLiteLedger(path) as ledger:
        (root,) = await in_thread(
            ledger,
            lambda backend: backend.database.connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'records'"
            ).fetchone(),
        )
        with path.open("r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xa5" * size)

        with pytest.raises(LedgerError, match="the file is damaged; move it away"):
            await ledger.records(all=True)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A path that other users can reach, unlike those of the test run."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory / "ledger.db"
    directory.chmod(0o755)
    shutil.rmtree(directory)


async def make(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))


def test_a_file_that_may_only_be_read_is_told(reachable: Path) -> None:
    asyncio.run(make(reachable))
    reachable.chmod(0o444)

    fault = as_nobody(reachable)

    assert str(reachable) in fault
    assert "cannot be written; change owner or mode" in fault


def test_a_directory_that_may_only_be_read_is_told(reachable: Path) -> None:
    reachable.parent.chmod(0o555)

    fault = as_nobody(reachable)

    assert "cannot be written; change owner or mode" in fault
    assert list(reachable.parent.iterdir()) == []


def test_a_folder_of_locks_that_may_not_be_used_is_told(reachable: Path) -> None:
    asyncio.run(make(reachable))
    reachable.parent.chmod(0o777)
    reachable.chmod(0o666)
    reachable.with_name("ledger.db-bide").chmod(0o500)

    fault = as_nobody(reachable)

    assert str(reachable) in fault
    assert "cannot be written; change owner or mode" in fault


# In use ----------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_told_and_with_room_again_it_works_on(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))

        fault = await fill_up(ledger)

        assert "free some space; nothing was recorded" in str(fault)
        before = [each.ticket for each in await ledger.records()]
        await make_room(ledger)
        await ledger.add(record("last"))
        assert [each.ticket for each in await ledger.records()] == [*before, "last"]
        assert (await ledger.report()).problems == ()


async def test_on_a_full_disk_each_of_many_steps_is_done_whole_or_told(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await fill(ledger)

        steps = (ledger.add(record(f"t{number}")) for number in range(300))
        results = await asyncio.gather(*steps, return_exceptions=True)

        done = [f"t{number}" for number, each in enumerate(results) if not isinstance(each, Exception)]
        assert all(isinstance(each, LedgerError) for each in results if isinstance(each, Exception))
        assert 0 < len(done) < 300
        assert [each.ticket for each in await ledger.records()] == done


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_another_program_has_locked_is_told_and_works_on_later(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(LedgerError, match=r"another program .* has locked it; end that one"):
            await ledger.add(record("t2"))
        assert [each.ticket for each in await ledger.records()] == ["t1"], "reading goes on"

        other.execute("ROLLBACK")
        other.close()
        await ledger.add(record("t2"))
        assert [each.ticket for each in await ledger.records()] == ["t1", "t2"]


@pytest.mark.usefixtures("impatient")
async def test_a_process_that_stopped_in_the_midst_of_writing_is_told_and_waited_for_no_longer_than_that(
    path: Path,
) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t1"))
        lock = path.with_name("ledger.db-bide") / "write.lock"
        async with program(HOLDS_THE_LOCK, lock) as holder:
            assert await holder.line() == "held"
            holder.process.send_signal(signal.SIGSTOP)

            async with asyncio.timeout(A_MINUTE):
                with pytest.raises(LedgerError, match=r"is one stopped while it writes\? Continue or end it"):
                    await ledger.add(record("t2"))
                with pytest.raises(LedgerError, match="Continue or end it"):
                    await SQLiteLedger(path).get("t1")

            holder.process.send_signal(signal.SIGUSR1)
            holder.process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(A_MINUTE):
                while len(await ledger.records()) < 2:
                    with suppress(LedgerError):
                        await ledger.add(record("t2"))
            assert await holder.line() == "let go"
            assert [each.ticket for each in await ledger.records()] == ["t1", "t2"]


async def test_what_a_step_did_before_it_failed_is_undone(path: Path) -> None:
    """What is remembered of records, too."""
    async with SQLiteLedger(path) as ledger:
        got = await running(ledger, "t1", "x1")

        def half(backend: Any) -> None:
            backend.machine.store.drop(got)
            raise OSError(28, "No space left on device")

        with pytest.raises(LedgerError, match="No space left on device"):
            await in_thread(ledger, half, writes=True)

        assert await ledger.get("t1") == got


async def test_a_fault_of_one_step_keeps_no_other_from_its_result(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.add(record("t0"))

        def wrong(backend: Any) -> None:
            backend.database.connection.execute("SELECT * FROM nowhere")

        session = await ledger._open_session()
        results = await asyncio.gather(
            ledger.add(record("t1")),
            session.worker.put(wrong, writes=True),
            ledger.add(record("t2")),
            return_exceptions=True,
        )

        assert [type(each).__name__ for each in results] == ["Record", "LedgerError", "Record"]
        assert [each.ticket for each in await ledger.records()] == ["t0", "t1", "t2"]


# With a client over it -------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be recorded is tried again soon."""
    monkeypatch.setattr(_submission, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(_polling, "RERECORD_SECONDS", 0.2)


async def lock(path: Path) -> sqlite3.Connection:
    """Another program writes, and does not come to an end."""
    other = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    other.execute("BEGIN EXCLUSIVE")
    return other


async def has_succeeded(ledger: SQLiteLedger, ticket: str) -> bool:
    kept = await ledger.get(ticket)
    return kept is not None and kept.task.status is TaskStatus.SUCCEEDED


async def in_the_end(wait: Callable[[], Awaitable[Any]]) -> Any:
    """What a wait comes to; that the ledger did not work meanwhile is told first, and may be told twice."""
    async with asyncio.timeout(A_MINUTE):
        while True:
            try:
                return await wait()
            except LedgerError:
                await asyncio.sleep(0.05)


@pytest.mark.usefixtures("impatient", "eager")
async def test_while_nothing_can_be_recorded_nothing_is_bought_and_known_tasks_are_watched(
    path: Path,
) -> None:
    service, ledger = ToyService(), SQLiteLedger(path)
    async with service.client(Toy(limits=Limits(1)), ledger=ledger) as client:
        known = await client.submit(CAT)
        waits = await client.submit(CAT)
        await known.accepted()
        other = await lock(path)

        with pytest.raises(LedgerError, match="has locked it"):
            await client.submit(CAT, ticket="new")
        looks = service.count("GET")
        service.script["GET"] = [{"status": "succeeded"}]
        looking = asyncio.create_task(known.refresh())
        await until(lambda: service.count("GET") > looks)
        await asyncio.sleep(0.5)
        bought = service.count("POST")
        ended = await in_the_end(known.result)
        row = await ledger.get(known.ticket)
        other.execute("ROLLBACK")
        other.close()

        assert bought == 1
        assert row is not None
        assert not row.task.status.is_final
        assert ended.status is TaskStatus.SUCCEEDED
        await until(lambda: has_succeeded(ledger, known.ticket))
        await in_the_end(waits.accepted)
        assert service.count("POST") == 2
        assert await ledger.get("new") is None
        with suppress(LedgerError):
            await looking


@pytest.mark.usefixtures("eager")
async def test_what_waits_while_nothing_can_be_recorded_is_sent_when_it_can(path: Path) -> None:
    service, ledger = ToyService(queries=[{"status": "succeeded"}]), SQLiteLedger(path)
    async with service.client(Toy(limits=Limits(1)), ledger=ledger) as client:
        first = await client.submit(CAT)
        waits = await client.submit(CAT)
        await first.accepted()
        await refuse_writes(ledger)

        with suppress(LedgerError):
            await first.refresh()
        with pytest.raises(LedgerError):
            await client.submit(CAT)
        await asyncio.sleep(0.5)
        assert service.count("POST") == 1

        await allow_writes(ledger)
        assert (await in_the_end(first.result)).status is TaskStatus.SUCCEEDED
        await in_the_end(waits.accepted)
        assert service.count("POST") == 2


@pytest.mark.usefixtures("eager")
async def test_an_id_that_cannot_be_recorded_at_once_is_recorded_when_it_can_and_not_bought_again(
    path: Path,
) -> None:
    service, ledger = ToyService(), SQLiteLedger(path)
    service.delay["POST"] = 0.2
    async with service.client(ledger=ledger) as client:
        handle = await client.submit(CAT)
        await until(lambda: service.count("POST") == 1)
        await refuse_writes(ledger)
        with pytest.raises(WaitTimeoutError, match=r"accepted ticket .* as task toy-1") as told:
            await handle.accepted(timeout=1.0)
        assert (told.value.ticket, told.value.bought) == (handle.ticket, True)
        assert isinstance(told.value.fault, LedgerError)
        row = await ledger.get(handle.ticket)
        assert row is not None
        assert row.task.status is TaskStatus.SUBMITTING

        await allow_writes(ledger)
        await in_the_end(handle.accepted)

        assert handle.task_id == "toy-1"
        row = await ledger.get(handle.ticket)
        assert row is not None
        assert row.task.task_id == "toy-1"
        assert service.count("POST") == 1


async def test_a_client_over_a_file_that_cannot_be_used_says_so_and_sends_nothing(path: Path) -> None:
    path.write_bytes(b"my diary\n" * 1000)
    service = ToyService()

    with pytest.raises(LedgerError, match="name another file"):
        async with service.client(ledger=SQLiteLedger(path)) as client:
            await client.submit(CAT)

    assert service.seen == []


async def test_an_owner_that_could_not_leave_leaves_when_the_ledger_works_again(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        me, other = await ledger.enter("toy", {"k1"}), await ledger.enter("toy", {"k1"})
        await ledger.add(record("t1", owner=me, origin="toy"))
        await refuse_writes(ledger)

        with pytest.raises(LedgerError):
            await ledger.leave(me)
        await allow_writes(ledger)

        await until(lambda: ledger.adopt("toy", {"k1"}, other))
        assert [each.clients for each in (await ledger.report()).owners] == [1]
