"""Saving results beside `curl`, over loopback: throughput, how late the loop is for others, and memory.

One server, in a process of its own, and one directory on disk serve all; the rounds of all ways alternate. bide writes
to a part file with a journal, hashes the bytes (SHA-256), and returns when the file is on disk. curl leaves the write
to disk to the system. "curl, on disk, hashed" does what bide does: curl, then `sync` and `sha256sum` of the files.
"httpx by hand" is a loop that writes in its own thread, one file after another. Each save has a new process and a new
client, which has polled one task before, as every client with a result to save has. The start of a process is not
counted. The lag is that of the saver's loop, beside that of an idle loop in another process in the same seconds. It is
measured in a save of its own, since measuring a thousand times a second uses a part of two cores. Memory is the most
that the saver's process had until the end, less what it had just before.

The files go to the directory for temporary files: `TMPDIR=/somewhere` tries another disk. Figures without a goal are
for comparison. Without curl there are no ratios, and their goals are left out.
"""

from __future__ import annotations

import asyncio
import gc
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter, truediv
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from attrs import evolve

from bide import Client, DashScope
from bide.models import Output
from files import API, LARGEST, MB, files
from goals import Row, arguments, percentile, show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from typing import TypeAlias

    Saver: TypeAlias = Callable[[list[str], Path, bool], Awaitable["Measured"]]
    Way: TypeAlias = Callable[[list[str], Path], "Measured"]

ROUNDS = 5
SMALL, MANY, AT_ONCE = 4 * MB, 50, 4
"""Bytes of each of many files, how many those are, and how many of them are fetched at once: bide's default."""
GOAL = 0.6
"""Bide's throughput for one file by that of curl, at least."""
TICK = 0.001
"""Seconds that the probe of the loop's lag sleeps."""
CURL = ("curl", "--disable", "--silent", "--show-error", "--fail")


@dataclass(frozen=True)
class Measured:
    """What one save came to.

    Attributes:
        began: by the clock that all processes share.
        late: seconds that the loop was late, each time that the probe measured it; `idle`: the same of an idle loop.
        growth: bytes of memory beyond those before.
    """

    seconds: float
    began: float = 0.0
    late: tuple[float, ...] = ()
    idle: tuple[float, ...] = ()
    growth: int = 0


# In a process of its own -------------------------------------------------------------------------------------


async def with_bide(urls: list[str], folder: Path, probed: bool) -> Measured:
    """A task is saved that has such outputs."""
    outputs = tuple(Output(url=url, kind="video") for url in urls)
    async with Client(DashScope(base_url=urls[0].rsplit("/", 2)[0] + API), api_key="sk-bench") as client:
        task = await (await client.attach("task-1")).refresh()
        return await watched(client.save(evolve(task, outputs=outputs), folder), probed)


async def with_httpx(urls: list[str], folder: Path, probed: bool) -> Measured:
    """What one would write by hand."""

    async def fetch(client: httpx.AsyncClient) -> None:
        for number, url in enumerate(urls):
            with (folder / str(number)).open("wb") as file:
                async with client.stream("GET", url) as answer:
                    async for chunk in answer.aiter_raw():
                        file.write(chunk)

    async with httpx.AsyncClient() as client:
        await client.get(urls[0].rsplit("/", 2)[0] + f"{API}/tasks/task-1")
        return await watched(fetch(client), probed)


async def watched(saving: Awaitable[object], probed: bool) -> Measured:
    """Wait for *saving*, and see what memory the process takes, and if *probed*, how late the loop is."""
    gc.collect()
    async with probe() if probed else nullcontext([]) as late:
        before, began = memory("VmRSS"), time.perf_counter()
        await saving
        seconds = time.perf_counter() - began
        growth = memory("VmHWM") - before
    return Measured(seconds, began, within(late, began, seconds), growth=growth)


@asynccontextmanager
async def probe() -> AsyncIterator[list[tuple[float, float]]]:
    """Notes when it woke, and how late the loop was to wake it, again and again."""
    late: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + TICK
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            late.append((now, now - due))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(5 * TICK)
    try:
        yield late
        await asyncio.sleep(5 * TICK)  # it may have been kept waiting until now
    finally:
        watching.cancel()


def within(late: Sequence[tuple[float, float]], began: float, seconds: float) -> tuple[float, ...]:
    """Those that fell due in so many *seconds*."""
    return tuple(each for woke, each in late if began <= woke - each <= began + seconds)


def memory(figure: str) -> int:
    """Bytes of this process in memory: those of now (VmRSS), or the most there ever were (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(figure))


def run(saver: Saver, urls: list[str], folder: Path, probed: bool) -> Measured:
    """Save with *saver*, in this process."""

    async def save() -> Measured:
        return await saver(urls, folder, probed)

    return asyncio.run(save())


# Ways --------------------------------------------------------------------------------------------------------


def apart(saver: Saver, urls: list[str], folder: Path) -> Measured:
    """Save with *saver* in a new process; and once more, in another one, beside an idle loop in this one."""

    async def save(elsewhere: Path) -> Measured:
        async with probe() as idle:
            saved: Measured = await asyncio.to_thread(pool.apply, run, (saver, urls, elsewhere, True))
        return replace(saved, idle=within(idle, saved.began, saved.seconds))

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        quiet: Measured = pool.apply(run, (saver, urls, folder, False))
        with tempfile.TemporaryDirectory(prefix="bide-download-") as elsewhere:
            os.sync()
            probed = asyncio.run(save(Path(elsewhere)))
    return replace(quiet, late=probed.late, idle=probed.idle)


def curl(urls: list[str], folder: Path | None, *options: str) -> Measured:
    """Save with `curl`; where no *folder* is given, what comes is thrown away."""
    command: list[str | Path] = [*CURL, *options]
    for number, url in enumerate(urls):
        command += ["--output", os.devnull if folder is None else folder / str(number), url]
    return Measured(timed(command) - timed([*CURL, "--version"]))


def curl_to_nowhere(urls: list[str], _folder: Path) -> Measured:
    """What the server can do."""
    return curl(urls, None)


def curl_on_disk(urls: list[str], folder: Path) -> Measured:
    """Save with `curl`, and then bring the files to disk and hash them."""
    fetched = curl(urls, folder)
    saved = sorted(folder.iterdir())
    return Measured(fetched.seconds + timed(["sync", *saved]) + timed(["sha256sum", *saved]))


def curl_at_once(urls: list[str], folder: Path) -> Measured:
    """Save with `curl`, as many at once as bide does."""
    return curl(urls, folder, "--parallel", "--parallel-max", str(AT_ONCE))


def timed(command: Sequence[str | Path]) -> float:
    """Seconds that a program takes, from its start to its end. It is silent, as curl is not where it is parallel."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def ways(*, many: bool) -> dict[str, Way]:
    """Those that can be had here, bide last."""
    found: dict[str, Way] = {}
    if shutil.which("curl"):
        found |= {"curl to nowhere": curl_to_nowhere, "curl": curl}
        if many and "--parallel-max" in subprocess.check_output(["curl", "--help", "all"], text=True):
            found["curl --parallel"] = curl_at_once
        if shutil.which("sync") and shutil.which("sha256sum"):
            found["curl, on disk, hashed"] = curl_on_disk
    return found | {"httpx by hand": partial(apart, with_httpx), "bide": partial(apart, with_bide)}


# Figures -----------------------------------------------------------------------------------------------------


def in_turns(each: Mapping[str, Way], urls: list[str], size: int) -> dict[str, list[Measured]]:
    """What each way comes to in each round, into a new directory every time."""
    found: dict[str, list[Measured]] = {name: [] for name in each}
    for _ in range(ROUNDS):
        for name, way in each.items():
            with tempfile.TemporaryDirectory(prefix="bide-download-") as folder:
                os.sync()  # no client waits for what another one has left to be written
                found[name].append(way(urls, Path(folder)))
                saved = [path.stat().st_size for path in Path(folder).iterdir()]
                if way is not curl_to_nowhere and saved != [size] * len(urls):
                    raise RuntimeError(f"{name} has not saved {len(urls)} files of {size} bytes, but {saved}")
    return found


def rows_of(what: str, found: Mapping[str, Sequence[Measured]], size: int, goal: float | None) -> list[Row]:
    """Figures of *size* bytes saved each way; *goal* is for bide's throughput by that of curl."""
    rows = []
    rates = {name: [size / MB / run.seconds for run in runs] for name, runs in found.items()}
    for name, rate in rates.items():
        rows.append(Row(f"{what}: {name}", "MB a second", statistics.median(rate)))
        rows.append(Row(f"{what}: {name}", "lowest and", min(rate)))
        rows.append(Row(f"{what}: {name}", f"highest of {ROUNDS} rounds", max(rate)))
    for name, rate in rates.items():
        if name != "bide":
            ratio = statistics.median(map(truediv, rates["bide"], rate))
            judged = (f"at least {goal:.2f}", ratio >= goal) if goal and name == "curl" else ()
            rows.append(Row(f"{what}: bide", f"to {name}", ratio, *judged))
    for name in ("httpx by hand", "bide"):
        late, idle = (
            percentile([each for run in found[name] for each in of(run)], 99) * 1e3
            for of in (attrgetter("late"), attrgetter("idle"))
        )
        growth = max(run.growth for run in found[name]) / MB
        goals = [("under 20", late < 20), ("under 32", growth < 32)] if name == "bide" else [(), ()]
        rows.append(Row(f"{what}: {name}", "lag of the loop p99, ms", late, *goals[0]))
        rows.append(Row(f"{what}: {name}", "meanwhile of an idle loop", idle))
        rows.append(Row(f"{what}: {name}", "growth of memory, MB", growth, *goals[1]))
    return rows


def main(origin: str) -> list[Row]:
    """One large file, and many small ones."""
    one = in_turns(ways(many=False), [f"{origin}/{LARGEST // MB}/one"], LARGEST)
    many = in_turns(ways(many=True), [f"{origin}/{SMALL // MB}/{n}" for n in range(MANY)], SMALL)
    return [
        *(
            []
            if shutil.which("curl")
            else [Row("curl", "is not installed: nothing to compare with", math.nan)]
        ),
        *rows_of(f"1 of {LARGEST // MB} MB", one, LARGEST, GOAL),
        *rows_of(f"{MANY} of {SMALL // MB} MB", many, MANY * SMALL, None),
    ]


if __name__ == "__main__":
    options = arguments(__doc__)
    os.environ["NO_PROXY"] = "*"  # of curl and of ours alike
    with files() as origin:
        show("Saving results, beside curl", main(origin), options)
