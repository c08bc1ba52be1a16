"""The API key, whatever goes wrong, is in no file, log, repr, traceback, statement of SQL or pickle."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import pickle
import sqlite3
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from attrs import evolve

from bide import (
    BideError,
    Client,
    DashScope,
    Dieyuyun,
    DownloadError,
    Event,
    EventName,
    LedgerError,
    Limits,
    Output,
    Task,
)
from bide._polling import observer
from bide._runtime import lost_creates
from bide.emulator import Emulator
from bide.ledgers import SQLiteLedger
from support import failpoints
from support.canary import (
    CORE,
    KEY,
    assert_clean,
    assert_error_clean,
    assert_files_clean,
    assert_pickle_clean,
    assert_reprs_clean,
)
from support.emulated import SERVICES, calls, client_at, emulator_with, provider_at, video
from support.hostile_server import PNG, SECRET, Server, moved, reply, serving
from support.virtual_time import wait_for_ledgers
from support.waits import A_MINUTE


def test_the_search_itself_finds_a_key(tmp_path: Path) -> None:
    def fails(key: str) -> None:
        """Its frame holds the key."""
        raise LedgerError("no")

    packed = base64.b64encode(f"Bearer {KEY}".encode())
    (tmp_path / "file").write_bytes(b"\0" * 99 + packed)
    found = pytest.raises(pytest.fail.Exception, match="the key is in")
    with found:
        assert_files_clean(tmp_path)
    with found:
        assert_reprs_clean({"a": [asyncio.Queue, ("b", KEY)]})
    with found:
        assert_pickle_clean(LedgerError(KEY))
    with found:
        try:
            exec(compile("fails(key)", "elsewhere", "exec"), {"fails": fails, "key": KEY})
        except LedgerError as error:
            assert_error_clean(error)


@pytest.fixture
def everything_logged(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    """All records of all loggers at DEBUG."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [*root.handlers, Keep(logging.DEBUG)])
    for name in (None, "bide", "httpx", "httpcore", "asyncio", "sqlite3", *logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        logger._cache.clear()  # type: ignore[attr-defined]
    return records


def assert_log_clean(records: list[logging.LogRecord]) -> None:
    assert {record.name.partition(".")[0] for record in records} >= {"bide", "httpcore"}
    for record in records:
        formatted = logging.Formatter("%(message)s").format(record)
        assert_clean(f"the log of {record.name}", formatted, repr(record.__dict__), repr(record.args))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All SQL that is run, with its values."""
    ran: list[str] = []
    real = sqlite3.connect

    def connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = real(*arguments, **more)
        connection.set_trace_callback(ran.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)
    return ran


async def caught(wait: Any) -> BaseException:
    """The error that *wait* ends with."""
    try:
        got = await wait
    except (BideError, OSError, ValueError, LookupError, RuntimeError) as error:
        return error
    raise AssertionError(f"there was no error but {got!r}")


def client_with_canary(emulator: Emulator, service: str, path: Path, **options: Any) -> Client:
    options.setdefault("limits", Limits(3))
    return client_at(emulator, service, api_key=KEY, ledger=SQLiteLedger(path), **options)


def order_echoes(emulator: Emulator) -> None:
    """The service gives the key back wherever it can, as services do in their errors."""
    words = f"Incorrect API key provided: {KEY}. Authorization: Bearer {KEY}"
    body = {"code": "InvalidApiKey", "message": words, "request_id": KEY, "error": {"message": words}}
    emulator.fault(on="create", match="refused", status=401, body=body)
    emulator.fault(on="create", match="broken", status=200, body=f"<html>{words}</html>")
    emulator.fault(on="create", match="cut", drop="after")
    emulator.fault(on="query", status=403, body=body)
    emulator.fault(on="cancel", status=401, body=body)
    emulator.fault(on="list", status=401, body=body)


@pytest.mark.real_time
@pytest.mark.parametrize("service", SERVICES)
async def test_the_key_is_found_nowhere_whatever_goes_wrong(
    service: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    everything_logged: list[logging.LogRecord],
    statements: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lost_creates, "LOOKUP_SECONDS", (0.05,))
    monkeypatch.setattr(observer, "RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(observer, "DENIED_SECONDS", 0.0)
    loop = asyncio.get_running_loop()
    path, events, errors = tmp_path / "tasks.db", [], []
    async with emulator_with(video_seconds=0.1) as emulator:
        client = Client(
            provider_at(emulator, service, video_floor=0.05),
            api_key=KEY,
            ledger=SQLiteLedger(path),
            limits=Limits(9),
            on_event=events.append,
        )
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0  # the loop logs the repr of all that it runs
        async with client:
            order_echoes(emulator)
            done = await client.submit(video("done"))
            denied = await caught(done.result())
            await done.result()
            await done.save(tmp_path)
            refused = await client.submit(video("refused"))
            broken = await client.submit(video("broken"))
            cut = await client.submit(video("cut"))
            long = await client.submit(video("long [seconds 60]"))
            await long.accepted()
            errors += [denied, await caught(refused.result()), await caught(broken.result())]
            errors += [await caught(long.cancel())]
            emulator.fault(on="asset", status=403, body=KEY, times=9)
            errors += [await caught(client.save(done.task, tmp_path / "again"))]
            errors += [await caught(client.attach(ticket="nobody"))]
            errors += [await caught(client.submit(video("other"), ticket=done.ticket))]
            with suppress(BideError):
                await cut.accepted(timeout=A_MINUTE)
            emulator.fault(on="query", delay=60, times=9)
            looking = asyncio.create_task(long.refresh())
            waiting = asyncio.create_task(long.result())
            await asyncio.sleep(0.2)
            ledger = client._ledger
            assert isinstance(ledger, SQLiteLedger)
            handles = [done, refused, broken, cut, long]
            seen = [client, ledger, *handles, client._engine, await client.statistics(), *events]
            seen += [await ledger.report(), *await ledger.records(all=True)]
            seen += [each.task for each in handles]
            loop.set_debug(False)
            assert_files_clean(
                tmp_path
            )  # as they are while the ledger is open: its log is not written back yet
        ends = await asyncio.gather(looking, waiting, return_exceptions=True)
        errors += [
            each for each in ends if isinstance(each, BaseException)
        ]  # a look may have come before the fault
        assert_clean("curl", *(each.as_curl(create=True) for each in handles))

        assert len(statements) > 50
        assert len(everything_logged) > 100
        assert_clean("a statement", *statements)
        assert_log_clean(everything_logged)
        assert_files_clean(tmp_path)
        assert_clean("what was printed", *capfd.readouterr())
        for error in errors:
            assert_error_clean(error)
        for each in [*seen, *errors]:
            assert_clean(f"the repr of {type(each).__name__}", repr(each), str(each))
            assert_pickle_clean(each)
        assert_reprs_clean(client, *handles, *events, *errors)


@pytest.mark.real_time
@pytest.mark.parametrize("service", SERVICES)
async def test_nothing_behind_a_client_at_work_shows_the_key(service: str, tmp_path: Path) -> None:
    async with (
        emulator_with(video_seconds=60) as emulator,
        client_with_canary(emulator, service, tmp_path / "tasks.db") as client,
    ):
        handles = [await client.submit(video(str(n))) for n in range(5)]
        await handles[0].accepted()
        await handles[0].refresh()
        await asyncio.sleep(0.1)

        assert assert_reprs_clean(client, *handles) > 500


@pytest.mark.real_time
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "point", ["after add", "after admit", "before send", "after send", "before accept", "before finish"]
)
async def test_a_process_that_crashes_at_a_point_tells_no_key(
    point: str, service: str, tmp_path: Path
) -> None:
    """A reporter of crashes shows the locals of all frames, the loop's debug mode all that it runs."""
    variable = failpoints.provider_at(service, "http://127.0.0.1").key_variables[0]
    async with emulator_with() as emulator:
        url = emulator.dashscope_url if service == "dashscope" else emulator.dieyuyun_url
        untraced = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", failpoints.__file__, point, service, url, str(tmp_path), "crash"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**untraced, "NO_PROXY": "127.0.0.1", "BIDE_LOG": "debug", variable: KEY},
        )
        said, _ = await child.communicate()

    assert child.returncode == failpoints.DEAD
    assert b"Crash" in said
    assert_clean("what a crash tells", said)
    assert_files_clean(tmp_path)


@pytest.mark.real_time
async def test_a_ledger_that_cannot_be_opened_shows_no_key_in_the_traceback(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    path.write_text("this is no database at all, but long enough to look at it" * 99)
    client = Client(Dieyuyun(), api_key=KEY, ledger=SQLiteLedger(path))

    error = await caught(client.submit(video()))
    await client.aclose()

    assert isinstance(error, LedgerError)
    assert_error_clean(error)


@pytest.mark.parametrize("broken", [f"{KEY}\n", f"{KEY} ", f"“{KEY}”"])
def test_a_key_that_cannot_be_sent_is_not_shown_in_the_traceback(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the environment, with a line end as `echo` gives it: no frame of the caller's ever held it."""
    monkeypatch.setenv("DASHSCOPE_API_KEY", broken)

    with pytest.raises(ValueError, match="cannot be sent") as caught:
        Client(DashScope())

    assert_error_clean(caught.value)


def test_a_key_is_not_shown_in_the_traceback_of_other_wrong_arguments() -> None:
    with pytest.raises(TypeError) as caught:
        Client(DashScope(), api_key=KEY, limits=3)  # type: ignore[arg-type]

    assert_error_clean(caught.value)


def test_a_reporter_of_crashes_can_show_a_client_that_was_not_made() -> None:
    with pytest.raises(ValueError, match="is an empty sequence") as caught:
        Client(DashScope(), api_key=[])

    traceback.TracebackException.from_exception(
        caught.value, capture_locals=True
    )  # shows each local by its repr


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "plain"])
async def test_a_key_that_the_service_echoes_is_taken_out_however_it_is_written(escaped: bool) -> None:
    """Many services write "/" as "\\/" in JSON (PHP's default does), and keys may be base64."""
    key = f"sk-canary/{CORE}"
    body = json.dumps({"code": "InvalidApiKey", "message": f"Incorrect API key: {key}"})
    if escaped:
        body = body.replace("/", r"\/")
    async with emulator_with() as emulator, client_at(emulator, api_key=key) as client:
        emulator.fault(on="create", status=401, body=body)
        handle = await client.submit(video())
        error = await caught(handle.result())

    assert_clean("the error", str(error), repr(handle.task))


# Where files are kept -----------------------------------------------------------------------------------------


def assert_stranger_clean(*servers: Server) -> None:
    """What a server of files got, byte for byte, is what anybody may ask with."""
    for request in (request for server in servers for request in server.requests):
        assert_clean("a request to a host of files", request)
        head = request.decode("latin-1").lower()
        names = {line.partition(":")[0] for line in head.split("\r\n")[1:] if line}
        assert names <= {"host", "user-agent", "accept", "accept-encoding", "range", "if-range"}


@pytest.mark.parametrize("service", SERVICES)
async def test_the_key_reaches_no_host_of_files_wherever_they_redirect_to(
    service: str, tmp_path: Path
) -> None:
    """From the API's own origin to a stranger, back to the origin, and to strangers again, with a cut on the way."""
    half = reply(PNG[:20], length=len(PNG), headers='ETag: "1"\r\nSet-Cookie: a=b\r\nConnection: close\r\n')
    rest = {"Content-Range": f"bytes 20-{len(PNG) - 1}/{len(PNG)}", "ETag": '"1"'}
    lines = "".join(f"{name}: {value}\r\n" for name, value in rest.items())

    def last(path: str, head: bytes) -> bytes:
        return reply(PNG[20:], status=206, headers=lines) if b"range: bytes=20-" in head.lower() else half

    def hop(path: str, head: bytes) -> bytes:
        onward = f"http://127.0.0.1:{far.port}/c?Signature={SECRET}"
        return moved(onward if path == "/b" else back[0])

    back: list[str] = []
    async with serving(last) as far, serving(hop) as near:
        async with emulator_with() as emulator, client_at(emulator, service, api_key=KEY) as client:
            done = await (await client.submit(video())).result()
            assert done.outputs[0].url is not None
            back.append(done.outputs[0].url)
            for _ in range(2):  # as often as it is tried
                emulator.fault(on="asset", redirect=f"http://127.0.0.1:{near.port}/a?Signature={SECRET}")
                emulator.fault(on="asset", redirect=f"http://127.0.0.1:{near.port}/b")
            (file,) = await client.save(done, tmp_path)

            assets = calls(emulator, "asset")

    assert Path(file).read_bytes() == PNG
    assert [len(near.requests), len(far.requests), len(assets)] == [4, 2, 4]
    assert_stranger_clean(near, far)
    assert not any(each.has_key or "cookie" in each.headers for each in assets)
    assert all(each.has_key for each in emulator.requests() if each.on in ("create", "query"))


@pytest.mark.parametrize("service", SERVICES)
async def test_the_key_is_not_sent_where_a_file_redirects_to_a_call_of_the_api(
    service: str, tmp_path: Path
) -> None:
    """Or a stranger could see, and stop, what the key's owner has there. (The file comes from the fresh address.)"""
    async with emulator_with() as emulator, client_at(emulator, service, api_key=KEY) as client:
        task = await (await client.submit(video())).result()
        look = calls(emulator, "query")[-1]
        call = urljoin(emulator.dashscope_url, look.path)
        async with serving(moved(call)) as server:
            url = f"http://127.0.0.1:{server.port}/a"
            await client.save(evolve(task, outputs=(Output(url=url, kind="video"),)), tmp_path)

        strange, own = calls(emulator, "query")[-2:]

    assert_stranger_clean(server)
    assert (strange.path, strange.has_key, strange.status) == (look.path, False, 401)
    assert (own.path, own.has_key) == (look.path, True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    """What the library logs, at DEBUG."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log = logging.getLogger("bide")
    monkeypatch.setattr(log, "handlers", [*log.handlers, Keep(logging.DEBUG)])
    monkeypatch.setattr(log, "level", logging.DEBUG)
    log._cache.clear()  # type: ignore[attr-defined]
    return records


def signatures_in(*tasks: Task) -> list[str]:
    queries = [urlsplit(output.url or "").query for task in tasks for output in task.outputs]
    assert all(len(query) > 20 for query in queries)
    return [SECRET, *queries, *(part for query in queries for part in query.split("&") if len(part) > 20)]


def assert_unsigned(what: str, signatures: list[str], *texts: str) -> None:
    for text in texts:
        for each in signatures:
            assert each not in text, f"{what} has a signature: {text[:500]}"


@pytest.mark.parametrize(
    "trouble",
    [
        {"redirect": f"http://10.0.0.1/a?Signature={SECRET}"},
        {"redirect": f"https://me:{SECRET}@cdn.example/a"},
        {"redirect": f"file:///etc/passwd?Signature={SECRET}"},
        {"redirect": f"/there/is/nothing?Signature={SECRET}#{SECRET}"},
        {"redirect": f"http://127.0.0.1:9/a?Signature={SECRET}"},
        {"redirect": "loop"},
        {"status": 403, "body": f"<Error>no: http://a.example/b?Signature={SECRET}</Error>"},
        {"status": 200, "body": f"<html>http://a.example/b?Signature={SECRET}</html>"},
        {"status": 503},
        {"bomb": 10_000},
    ],
    ids=lambda trouble: next(iter(trouble.values())) if "redirect" in trouble else str(trouble)[:20],
)
async def test_no_signature_is_in_a_log_an_event_or_an_error(
    trouble: dict[str, Any],
    tmp_path: Path,
    told: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_for_ledgers(monkeypatch)
    events: list[Event] = []
    async with emulator_with(video_seconds=1) as emulator:
        emulator.fault(on="asset", times=99, **trouble)
        async with client_at(
            emulator,
            api_key=KEY,
            ledger=SQLiteLedger(tmp_path / "tasks.db"),
            save_to=tmp_path / "out",
            on_event=events.append,
        ) as client:
            handle = await client.submit(video())
            task = await handle.result()
            error = await caught(handle.save(tmp_path / "asked"))
            while not any(event.name is EventName.UNSAVED for event in events):
                await asyncio.sleep(1)

    assert isinstance(error, DownloadError)
    signatures = signatures_in(task)
    logged = [str(record.__dict__) + logging.Formatter().format(record) for record in told]
    assert len(logged) > 5
    assert_unsigned("the log", signatures, *logged)
    assert_unsigned("an event", signatures, *map(repr, events), *(str(event.error) for event in events))
    faults = [error, *(event.error for event in events if event.error is not None)]
    for each in faults:
        notes = getattr(each, "__notes__", [])
        assert_unsigned("an error", signatures, str(each), repr(each), repr(each.__dict__), *notes)
        assert_unsigned("a traceback", signatures, "".join(traceback.format_exception(each)))
        assert_unsigned("a pickle", signatures, repr(pickle.dumps(each)))
    assert_error_clean(error)
    assert_clean("the log", *logged)


async def test_no_signature_is_in_what_a_ledger_that_breaks_makes_of_it(
    tmp_path: Path, told: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_ledgers(monkeypatch)
    path = tmp_path / "tasks.db"
    async with emulator_with(video_seconds=1) as emulator:
        async with client_at(emulator, api_key=KEY, ledger=SQLiteLedger(path)) as client:
            task = await (await client.submit(video())).result()
            with sqlite3.connect(path) as database:
                tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                for (name,) in tables:
                    with suppress(sqlite3.Error):
                        database.execute(f'ALTER TABLE "{name}" RENAME TO "lost_{name}"')
            database.close()
            (file,) = await client.save(task, tmp_path / "out")
            found = await caught(client.attach(ticket=task.ticket))

    assert Path(file).is_file()
    signatures = signatures_in(task)
    logged = [str(record.__dict__) + logging.Formatter().format(record) for record in told]
    assert any("could not be recorded" in each for each in logged)
    assert_unsigned("the log", signatures, *logged)
    assert_unsigned("an error", signatures, "".join(traceback.format_exception(found)))
    assert_clean("the log", *logged)
