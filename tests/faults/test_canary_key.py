"""The API key, whatever goes wrong, is in no file, log, repr, traceback, statement of SQL or pickle."""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import json
import logging
import os
import pickle
import sqlite3
import sys
import traceback
import types
from collections.abc import Iterable
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import Any

import failpoints
import pytest

from bide import BideError, Client, DashScope, Dieyuyun, LedgerError, Limits
from bide._wire import Secret
from bide.emulator import Emulator
from bide.ledgers import SQLiteLedger
from world import SERVICES, client_at, emulator_with, provider_at, video

CORE = "Zq7Xw2Lp9Rt4Vb6N"
KEY = f"sk-canary-{CORE}"
FORMS = [
    CORE.encode(),
    CORE[:8].encode(),
    CORE[-8:].encode(),
    CORE.encode("utf-16-le"),
    CORE[::-1].encode(),
    CORE.encode().hex().encode(),
    *(base64.b64encode(b"-" * shift + KEY.encode())[4:-8] for shift in range(3)),
]
"""As it is, in parts, and in the ways that things are packed for a log or a file."""


def assert_clean(what: str, *texts: str | bytes) -> None:
    for text in texts:
        plain = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        for form in FORMS:
            if form in plain:
                at = plain.index(form)
                pytest.fail(f"the key is in {what}: ...{plain[max(0, at - 200) : at + 60]!r}")


def assert_files_clean(folder: Path) -> None:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert paths
    for path in paths:
        assert_clean(f"the file {path.name}", path.read_bytes(), str(path))


def assert_error_clean(error: BaseException) -> None:
    """Neither its text nor a traceback with locals, along the whole chain, suppressed contexts included."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
        assert_clean(f"the error {type(each).__name__}", str(each), repr(each), repr(vars(each)))
        # `traceback.TracebackException(capture_locals=True)` does the same, and gives up where a repr fails.
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != __file__:
                for name, value in frame.f_locals.items():
                    # A reporter may look one level deeper than a repr.
                    at = f"{name} in {frame.f_code.co_qualname}, in a traceback of {type(each).__name__}"
                    assert_clean(at, shown(value), shown(_inside(value)))


def shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as fault:  # noqa: BLE001 - of any library
        return str(fault)


def _inside(value: object) -> object:
    return {} if isinstance(value, Secret | types.ModuleType | type) else getattr(value, "__dict__", {})


def assert_pickle_clean(value: object) -> None:
    """It pickles to something without the key, or not at all."""
    for pack in (pickle.dumps, copy.deepcopy):
        try:
            packed = pack(value)  # type: ignore[operator]
        except Exception as refusal:  # noqa: BLE001 - of any kind
            assert_error_clean(refusal)
        else:
            assert_clean(f"a {pack.__name__} of {type(value).__name__}", repr(packed))


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


NOT_ENTERED = (
    types.ModuleType,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
    asyncio.AbstractEventLoop,
    Context,
    logging.Logger,
    Emulator,
    Secret,
)


def reachable(*roots: object) -> Iterable[object]:
    """All objects behind *roots*; the code of programs, the loop and the service itself left out."""
    seen: set[int] = set()
    todo: list[object] = list(roots)
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, types.FunctionType):
            todo += [cell.cell_contents for cell in each.__closure__ or () if _is_full(cell)]
        if not isinstance(each, NOT_ENTERED):
            todo += gc.get_referents(each)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def assert_reprs_clean(*roots: object) -> int:
    """Every repr, and every text itself, behind *roots*."""
    count = 0
    for each in reachable(*roots):
        count += 1
        assert_clean(f"an object of type {type(each).__name__}", shown(each))
    return count


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
    monkeypatch.setattr("bide._submission.LOOKUPS", (0.05,))
    monkeypatch.setattr("bide._polling.RECHECK", 0.1)
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
                await cut.accepted(timeout=5)
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
