"""What every ledger does with what was learned of a service's durations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bide.ledgers import Held, Ledger, MemoryLedger, SQLiteLedger
from bide.ledgers._records import MOST_LEARNED_NAMES
from support.ledger_worlds import SQLitePairWorld, World, admit, record


def to(text: str) -> Callable[[str | None], str]:
    return lambda before: text


def plus(text: str) -> Callable[[str | None], str]:
    return lambda before: (before or "") + text


async def test_what_was_learned_is_read_back(ledger: Ledger) -> None:
    told = await ledger.learn({"wan": to("[1]"), "qwen": to('{"名": "\\u0000"}')})

    assert told == {"wan": "[1]", "qwen": '{"名": "\\u0000"}'}
    assert await ledger.read_learned() == told
    assert await ledger.read_learned(["wan", "flux"]) == {"wan": "[1]"}
    assert await ledger.read_learned([]) == {}


async def test_nothing_was_learned_at_first(ledger: Ledger) -> None:
    assert await ledger.read_learned() == {}
    assert await ledger.read_learned({"wan"}) == {}
    assert await ledger.learn({}) == {}


async def test_a_change_gets_what_is_on_record_or_none(ledger: Ledger) -> None:
    seen: list[str | None] = []

    def change(before: str | None) -> str:
        seen.append(before)
        return plus("+")(before)

    for _ in range(3):
        await ledger.learn({"wan": change})

    assert seen == [None, "+", "++"]
    assert await ledger.read_learned() == {"wan": "+++"}


async def test_a_change_that_raises_changes_nothing_and_harms_no_other_step(ledger: Ledger) -> None:
    """Steps that come together share a transaction."""

    def fail(before: str | None) -> str:
        raise ZeroDivisionError("a bad state")

    await ledger.learn({"wan": to("old")})

    results = await asyncio.gather(
        ledger.add(record("t1")),
        ledger.learn({"qwen": to("1"), "wan": fail}),
        ledger.learn({"flux": to("1"), "wan": lambda before: None}),  # type: ignore[dict-item, return-value]
        ledger.learn({"flux": to("1"), "wan": to("\ud800")}),
        ledger.learn({"veo": plus("1")}),
        admit(ledger),
        return_exceptions=True,
    )

    kinds = [type(each) for each in results[1:4]]
    assert kinds == [ZeroDivisionError, TypeError, UnicodeEncodeError]
    assert results[4] == {"veo": "1"}
    assert not isinstance(results[5], BaseException | Held)
    assert await ledger.read_learned() == {"wan": "old", "veo": "1"}


async def test_the_names_that_were_changed_longest_ago_go(ledger: Ledger) -> None:
    half = MOST_LEARNED_NAMES // 2
    await ledger.learn({f"old{number}": to("1") for number in range(half)})
    await ledger.learn({f"new{number}": to("1") for number in range(half)})
    await ledger.learn({"old7": plus("2")})

    await ledger.learn({f"newest{number}": to("1") for number in range(half)})

    names = await ledger.read_learned()
    assert len(names) == MOST_LEARNED_NAMES
    assert names["old7"] == "12"
    assert sum(name.startswith("old") for name in names) == 1
    assert sum(name.startswith("newest") for name in names) == half


async def test_the_loops_own_ledger_shares_what_was_learned() -> None:
    await MemoryLedger.of_loop().learn({"wan": to("1")})

    assert await MemoryLedger.of_loop().read_learned() == {"wan": "1"}


@pytest.mark.real_time
async def test_two_ledgers_on_one_file_lose_no_change_of_each_other(tmp_path: Path) -> None:
    world: World = SQLitePairWorld(tmp_path)
    await world.open()
    one, other = world.ledgers

    async def fifty(ledger: Ledger, name: str) -> None:
        for _ in range(50):
            await ledger.learn({"wan": plus(name)})

    await asyncio.gather(fifty(one, "1"), fifty(other, "2"))

    for ledger in (one, other):
        (text,) = (await ledger.read_learned()).values()
        assert (text.count("1"), text.count("2")) == (50, 50)
    await world.aclose()


@pytest.mark.real_time
async def test_what_was_learned_outlives_who_has_learned_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with SQLiteLedger(path, store_prompts=False) as ledger:
        await ledger.learn({"wan": to("1")})

    async with SQLiteLedger(path, keep=0.0) as ledger:
        assert await ledger.read_learned() == {"wan": "1"}
        assert await ledger.learn({"wan": plus("2")}) == {"wan": "12"}
