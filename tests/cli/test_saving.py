"""`--save`: files that were not saved in time, or not at once, are brought home by the next command."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bide import Client, Pace, SQLiteLedger
from bide._downloads import download
from bide._downloads.part_file import PartFile
from bide.cli import main
from bide.cli._demo.files import is_readable
from support.emulated import calls, emulator_with, image, provider_at, video
from support.terminal import (
    IMAGE,
    KEY,
    VIDEO,
    ledger_of,
    left_ids,
    piped,
    quick,
    start,
    watch_command,
)
from support.virtual_time import advance
from support.waits import A_MINUTE, until

if TYPE_CHECKING:
    from bide.emulator import Emulator

pytestmark = pytest.mark.real_time

IMPATIENT = f"import {download.__name__} as download; download.MAX_FRUITLESS_TRIES = 1\n"
"""A program that gives up early: a test does not wait for tries that cannot help."""

FULL_DISK = f"""
from {PartFile.__module__} import PartFile
def full(*_):
    raise OSError(28, "No space left on device")
PartFile.open = full
"""

ONE_AT_A_TIME = """
import bide
from functools import partial
bide.Client = partial(bide.Client, downloads=bide.Downloads(at_once=1))
"""
"""Of several at once nobody can say whose call arrives first."""

ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
"""A whole PNG."""


def client_on(emulator: Emulator, path: Path) -> Client:
    """A client of the test's, on a ledger of the commands, that looks as often as they do here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    provider = provider_at(emulator, "dashscope", image_floor=0.1, video_floor=0.1)
    return Client(provider, api_key=KEY, ledger=SQLiteLedger(path), pace=Pace.fixed(0.1))


async def test_resume_saves_what_expires_first_before_the_others_and_what_goes_on_last(
    tmp_path: Path,
) -> None:
    async with emulator_with(image_seconds=0.2, video_seconds=1.5, queue_seconds=0) as emulator:
        async with client_on(emulator, ledger_of(emulator)) as client:
            late, parted, soon = [
                await client.submit(image(prompt, n=n))
                for prompt, n in (("[expire 9000]", 1), ("[expire 8000]", 2), ("[expire 7000]", 1))
            ]
            for handle in (late, parted, soon):
                await handle.result()
            await parted.save(tmp_path, output=0)
            (before,) = calls(emulator, "asset")
            goes_on = await client.submit(video())
            await goes_on.accepted()
        process = await start(emulator, "resume", "--save", str(tmp_path), before=ONE_AT_A_TIME)
        out, err = await asyncio.wait_for(process.communicate(), A_MINUTE)

        fetched = [each.path.partition("?")[0] for each in calls(emulator, "asset")]
    assert process.returncode == 0, err
    assert fetched == [
        before.path.partition("?")[0],
        f"/dashscope/{soon.task_id}/0.png",
        f"/dashscope/{parted.task_id}/1.png",
        f"/dashscope/{late.task_id}/0.png",
        f"/dashscope/{goes_on.task_id}/0.mp4",
    ]
    assert sorted(out.decode().splitlines()) == sorted(str(path) for path in tmp_path.iterdir())
    assert len(out.splitlines()) == 5


async def test_an_address_that_has_expired_is_asked_for_once_more_while_the_service_knows_the_task(
    tmp_path: Path,
) -> None:
    async with emulator_with(
        image_seconds=0.2, queue_seconds=0, url_seconds=600, fresh_urls=True
    ) as emulator:
        async with client_on(emulator, ledger_of(emulator)) as client:
            task = await client.run(image())
        expire(ledger_of(emulator), task.ticket)
        advance(600)
        ended = await piped(emulator, "resume", "--save", str(tmp_path))

    assert ended.status == 0, ended.err
    assert ended.lines == [str(path) for path in tmp_path.iterdir()]


async def test_a_file_that_could_not_be_fetched_is_brought_home_by_the_command_that_was_printed(
    tmp_path: Path,
) -> None:
    async with quick() as emulator:
        emulator.fault(on="asset", match="/1.png", status=503)
        process = await start(emulator, *IMAGE, "-n", "2", "a cat", "--save", str(tmp_path), before=IMPATIENT)
        out, told = await asyncio.wait_for(process.communicate(), A_MINUTE)
        err, (task,) = told.decode(), emulator.tasks()
        command = watch_command(err)
        second = await piped(emulator, *command[1:])
        again = await piped(emulator, "watch", task.id, "--save", str(tmp_path))

        fetched = [each.path.partition("?")[0].rpartition("/")[2] for each in calls(emulator, "asset")]
    assert (process.returncode, out) == (1, b"")
    assert f"bide: {task.id}: " in err
    assert "these files were saved: " in err
    assert left_ids(err) == [task.id]
    assert command == ["bide", "resume", "--provider", "dashscope", "--save", str(tmp_path)]
    assert second.status == 0, second.err
    assert second.lines == sorted(str(path) for path in tmp_path.iterdir())
    assert (again.status, again.lines) == (0, second.lines)
    assert sorted(fetched) == ["0.png", "1.png", "1.png"], "what is there is found"


async def test_a_file_that_came_inline_is_only_saved(tmp_path: Path) -> None:
    body = {"created": 1780655400, "data": [{"b64_json": ONE_PIXEL}]}
    key = {"DIEYUYUN_API_KEY": KEY, "DASHSCOPE_API_KEY": ""}
    async with quick() as emulator:
        emulator.fault(on="create", status=200, body=body, times=2)
        unsaved = await piped(emulator, *IMAGE, "a cat", **key)
        saved = await piped(emulator, *IMAGE, "a cat", "--save", str(tmp_path), **key)

    assert (unsaved.status, unsaved.out) == (0, "")
    assert "--save DIR writes it" in unsaved.err
    assert Path(saved.out.strip()).read_bytes().startswith(b"\x89PNG")


async def test_an_inline_result_that_could_not_be_written_stays_on_record(tmp_path: Path) -> None:
    """Its task may have no id: the ticket names it."""
    body = {"created": 1780655400, "data": [{"b64_json": ONE_PIXEL}]}
    key = {"DIEYUYUN_API_KEY": KEY, "DASHSCOPE_API_KEY": ""}
    async with quick() as emulator:
        emulator.fault(on="create", status=200, body=body)
        words = (*IMAGE, "a cat", "--save", str(tmp_path))
        process = await start(emulator, *words, before=FULL_DISK, **key)
        _, err = await asyncio.wait_for(process.communicate(), A_MINUTE)
        second = await piped(emulator, *watch_command(err.decode())[1:], **key)

    (path,) = map(Path, second.lines)
    assert process.returncode == 1
    assert b"No space left on device" in err
    assert f"1 stay on record: {path.name.removesuffix('-0.png')}" in err.decode()
    assert is_readable(path)


async def test_an_interrupted_download_goes_on_from_its_part_file(tmp_path: Path) -> None:
    size = 3_000_000
    async with quick() as emulator:
        emulator.fault(on="asset", drip=1_500_000)
        process = await start(emulator, *VIDEO, f"[bytes {size}]", "--save", str(tmp_path))
        await until(lambda: any((each.sent or 0) > size // 4 for each in calls(emulator, "asset")))
        process.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(process.communicate(), A_MINUTE)
        err, left = told.decode(), [path.name for path in tmp_path.iterdir()]
        second = await piped(emulator, *watch_command(err)[1:])

        first, rest = calls(emulator, "asset")
    assert process.returncode == 130
    assert left_ids(err) == [emulator.tasks()[0].id]
    assert left
    assert all(name.startswith(".") for name in left), "what is not whole has no name yet"
    assert second.status == 0, second.err
    assert is_readable(Path(second.out.strip()))
    assert (rest.status, [path.name for path in tmp_path.iterdir()]) == (206, [Path(second.out.strip()).name])
    assert (first.sent or 0) + (rest.sent or 0) < 1.4 * size, "beyond the size is what was in the sockets"


async def test_files_of_a_task_on_no_record_are_found_by_its_id_and_overwritten_on_request(
    tmp_path: Path,
) -> None:
    async with quick() as emulator:
        async with client_on(emulator, tmp_path / "another ledger.db") as client:
            task = await client.run(image())
        words = ("watch", str(task.task_id), "--save", str(tmp_path))
        path = tmp_path / f"{task.task_id}-0.png"
        path.write_bytes(b"another file")
        refused = await piped(emulator, *words)
        written = await piped(emulator, *words, "--overwrite")

    assert (refused.status, refused.out) == (1, "")
    assert f"{task.task_id}: " in refused.err
    assert "set overwrite to replace it" in refused.err
    assert "left at the service" not in refused.err, "the same command would fare no better"
    assert (written.status, written.lines) == (0, [str(path)])
    assert is_readable(path)


async def test_a_result_on_record_is_saved_with_another_key_too(tmp_path: Path) -> None:
    """A key may have been replaced, and the address of a result needs none."""
    async with quick() as emulator:
        async with client_on(emulator, ledger_of(emulator)) as client:
            task_id = str((await client.run(image())).task_id)
        before = len(calls(emulator, "query"))
        ended = await piped(
            emulator, "watch", task_id, "--save", str(tmp_path), DASHSCOPE_API_KEY="sk-another"
        )
        assert len(calls(emulator, "query")) == before

    assert (ended.status, len(list(tmp_path.iterdir()))) == (0, 1)


def test_overwrite_is_about_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-any")
    monkeypatch.delenv("DIEYUYUN_API_KEY", raising=False)

    status = main(["watch", "some-id", "--overwrite", "--ledger", str(tmp_path / "none.db")])

    assert status == 2
    assert "--overwrite applies to saved files" in capsys.readouterr().err


def expire(path: Path, ticket: str) -> None:
    """The address of a result stopped working some time ago."""
    connection = sqlite3.connect(path)
    (text,) = connection.execute("SELECT task FROM records WHERE ticket = ?", (ticket,)).fetchone()
    task = json.loads(text)
    task["outputs"][0]["expires_at"] = "2020-01-01T00:00:00+00:00"
    connection.execute("UPDATE records SET task = ? WHERE ticket = ?", (json.dumps(task), ticket))
    connection.commit()
    connection.close()


async def test_ls_and_doctor_tell_what_is_unsaved_and_until_when(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger.db"

    async def told(*words: str) -> str:
        assert await asyncio.to_thread(main, [*words, "--ledger", str(path)]) == 0
        return capfd.readouterr().out

    async with emulator_with(image_seconds=0.2, queue_seconds=0) as emulator:
        async with client_on(emulator, path) as client:
            nothing = await told("doctor")
            whole, parted, unsaved, over = [
                await client.submit(image(prompt, n=n))
                for prompt, n in (
                    ("[expire 9000]", 1),
                    ("[expire 9000]", 2),
                    ("[expire 8000]", 1),
                    ("[expire 7000]", 1),
                )
            ]
            for handle in (whole, parted, unsaved, over):
                await handle.result()
            await whole.save(tmp_path / "out")
            await parted.save(tmp_path / "out", output=0)
        expire(path, over.ticket)
        listed, as_json = await told("ls", "--all"), await told("ls", "--all", "--json")
        doctor, doctors_json = await told("doctor"), await told("doctor", "--json")

    rows = {line.split()[0]: line for line in listed.splitlines()}
    records = {each["ticket"]: each for each in map(json.loads, as_json.splitlines())}
    first = unsaved.task.outputs[0].expires_at
    assert first is not None
    assert " 1 file " in rows[whole.ticket]
    assert " 1 of 2, 2 h left " in rows[parted.ticket]
    assert " no, 2 h left " in rows[unsaved.ticket]
    assert " no, expired " in rows[over.ticket]
    assert [records[each.ticket]["unsaved"] for each in (whole, parted, unsaved)] == [[], [1], [0]]
    assert records[whole.ticket]["expires_at"] is None
    assert records[unsaved.ticket]["expires_at"] == first.isoformat()
    assert "unsaved" not in nothing
    assert (
        f"unsaved  2 results, the first expires {first:%Y-%m-%d %H:%M:%S} UTC: bide resume --ledger {path} --save DIR"
        in doctor
    )
    assert json.loads(doctors_json)["unsaved"] == {"results": 2, "first_expires_at": first.isoformat()}
