"""What can go wrong on the way of a file: fresh URLs, cuts, wrong lengths, other files, drips, redirects, bombs."""

from __future__ import annotations

import asyncio
import zlib
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from test_emulated_assets import decoded_png, mp4_boxes

from bide.emulator import Emulator
from support.emulator_callers import Caller, DashScopeCaller, DieyuyunCaller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"


class Site:
    """An emulator with one finished picture, and a client for it without a key."""

    def __init__(self, emulator: Emulator, anyone: Caller, task_id: str) -> None:
        self.emulator = emulator
        self.task_id = task_id
        self._anyone = anyone
        self.url = ""

    async def look(self) -> str:
        async with DieyuyunCaller(self.emulator) as caller:
            (data,) = (await caller.task(self.task_id))["result"]["data"]
        return str(data["url"])

    async def get(self, url: str | None = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._anyone.get(url or self.url, headers=named)

    async def received(self, **headers: str) -> tuple[httpx.Response, bytes, bool]:
        """The answer, the body as far as it came (not unpacked), and whether it came as a whole by HTTP."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = bytearray()
        async with self._anyone.stream("GET", self.url, headers=named) as answer:
            try:
                async for chunk in answer.aiter_raw():
                    body += chunk
            except httpx.RemoteProtocolError:
                return answer, bytes(body), False
        return answer, bytes(body), True

    def sent(self) -> list[int | None]:
        return [record.sent for record in self.emulator.requests() if record.on == "asset"]


async def _site(emulator: Emulator, anyone: Caller, prompt: str, **fields: Any) -> Site:
    async with DieyuyunCaller(emulator) as caller:
        task_id = await caller.created(f"{prompt} [seconds 1]", **{"size": "64x64", **fields})
    site = Site(emulator, anyone, task_id)
    await asyncio.sleep(1)
    site.url = await site.look()
    return site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Emulator() as emulator, Caller("", None) as anyone:
        yield await _site(emulator, anyone, "a cat [bytes 300000]")


async def test_urls_are_always_the_same_unless_fresh_ones_are_asked_for(site: Site) -> None:
    assert await site.look() == site.url


async def test_each_look_gives_a_fresh_url_and_an_old_one_lives_on_to_its_end() -> None:
    async with Emulator(fresh_urls=True, url_seconds=60) as emulator, Caller("", None) as anyone:
        site = await _site(emulator, anyone, "a cat")
        first, second = site.url, await site.look()
        await asyncio.sleep(40)
        third = await site.look()
        at_40 = [(await site.get(url)).status_code for url in (first, second, third)]
        await asyncio.sleep(40)
        at_80 = [(await site.get(url)).status_code for url in (first, second, third)]
        mixed = await site.get(third.replace("Nonce=3", "Nonce=1"))

    assert len({first, second, third}) == 3
    assert (at_40, at_80) == ([200, 200, 200], [403, 403, 200])
    assert mixed.status_code == 403


async def test_a_fresh_url_of_dashscope_replaces_an_expired_one() -> None:
    async with (
        Emulator(fresh_urls=True, url_seconds=60, image_seconds=5) as emulator,
        DashScopeCaller(emulator) as caller,
        Caller("", None) as anyone,
    ):
        task_id = await caller.created()
        await asyncio.sleep(5)
        old = (await caller.output(task_id))["results"][0]["url"]
        await asyncio.sleep(60)
        new = (await caller.output(task_id))["results"][0]["url"]
        answers = [(await anyone.get(url)).status_code for url in (old, new)]

    assert answers == [403, 200]


async def test_a_fresh_url_never_outlives_its_task() -> None:
    async with Emulator(fresh_urls=True, url_seconds=3600) as emulator, Caller("", None) as anyone:
        site = await _site(emulator, anyone, "a cat [expire 100]")
        await asyncio.sleep(90)
        expires = int(parse_qs(urlsplit(await site.look()).query)["Expires"][0])
        left = expires - emulator.wall_time()

    assert 8 <= left <= 11


async def test_the_url_in_a_late_answer_of_a_create_lives_from_the_tasks_end() -> None:
    async with Emulator(fresh_urls=True, url_seconds=60, image_seconds=100) as emulator:
        async with DieyuyunCaller(emulator) as caller, Caller("", None) as anyone:
            made = await caller.create("a cat", **{"async": False})
            answer = await anyone.get(made.json()["data"][0]["url"])

    assert answer.status_code == 200


async def test_an_answer_that_promises_more_than_the_file_is_cut_behind_it(site: Site) -> None:
    site.emulator.fault(on="asset", length=400_000)

    answer, body, whole = await site.received()

    assert (answer.headers["content-length"], len(body), whole) == ("400000", 300_000, False)
    assert (await site.get()).content == body
    assert site.sent() == [300_000, 300_000]


async def test_an_answer_that_promises_less_than_the_file_looks_whole(site: Site) -> None:
    site.emulator.fault(on="asset", length=1000)

    answer, body, whole = await site.received()

    assert (answer.headers["content-length"], len(body), whole) == ("1000", 1000, True)
    assert (await site.get()).content[:1000] == body


async def test_a_lie_about_the_length_is_told_to_head_too(site: Site) -> None:
    site.emulator.fault(on="asset", length=7)
    async with Caller("", None) as anyone:
        lie, truth = await anyone.head(site.url), await anyone.head(site.url)

    assert (lie.headers["content-length"], truth.headers["content-length"]) == ("7", "300000")
    assert site.sent() == [0, 0]


async def test_truncation_counts_the_bytes_of_the_range_that_is_sent(site: Site) -> None:
    file = (await site.get()).content
    site.emulator.fault(on="asset", truncate=1000)

    answer, body, whole = await site.received(Range="bytes=200000-")

    assert (answer.status_code, answer.headers["content-length"], whole) == (206, "100000", False)
    assert body == file[200_000:201_000]
    assert site.sent() == [300_000, 1000]


async def test_a_file_can_be_put_together_from_what_cuts_have_left(site: Site) -> None:
    whole_file = (await site.get()).content
    for cut in (1, 70_000, 0, 130_000):
        site.emulator.fault(on="asset", truncate=cut)
    answer, parts, whole = await site.received()
    tag = answer.headers["etag"]
    while not whole:
        answer, more, whole = await site.received(Range=f"bytes={len(parts)}-", If_Range=tag)
        assert answer.status_code == 206
        parts += more

    assert parts == whole_file
    assert decoded_png(parts)[:2] == (64, 64)
    assert site.sent() == [300_000, 1, 70_000, 0, 130_000, 99_999]


@pytest.mark.parametrize("kind", ["images", "videos"])
async def test_a_changed_file_is_another_valid_one_with_other_validators(kind: str) -> None:
    async with Emulator() as emulator, Caller("", None) as anyone:
        site = await _site(emulator, anyone, "a cat [bytes 300000]", kind=kind)
        old = await site.get()
        emulator.fault(on="asset", changed=True, truncate=100)
        _, start, whole = await site.received()
        by_tag = await site.get(Range="bytes=100-", If_Range=old.headers["etag"])
        by_date = await site.get(Range="bytes=100-", If_Range=old.headers["last-modified"])
        new = await site.get()
        rest = await site.get(Range="bytes=100-", If_Range=new.headers["etag"])

    assert old.content != new.content
    assert len(old.content) == len(new.content)
    assert old.headers["etag"] != new.headers["etag"]
    assert _date(old) < _date(new)
    assert (by_tag.status_code, by_date.status_code) == (200, 200)
    assert by_tag.content == by_date.content == new.content
    assert (start + rest.content, whole) == (new.content, False)
    assert old.content[:100_000] + new.content[100_000:] not in (old.content, new.content)
    if kind == "images":
        assert decoded_png(new.content)[:2] == (64, 64)
    else:
        assert mp4_boxes(new.content)[0][0] == b"ftyp"


async def test_a_file_may_change_again_and_again_and_a_reset_forgets_it(site: Site) -> None:
    site.emulator.fault(on="asset", changed=True, times=3)
    answers = [await site.get() for _ in range(4)]
    other = (await site.get(f"{site.emulator.asset_url}/dieyuyun/none/0.png")).status_code
    site.emulator.fault(on="asset", changed=True)
    elsewhere = (await site.get(f"{site.emulator.asset_url}/dieyuyun/none/0.png")).status_code
    site.emulator.reset()

    assert len({answer.headers["etag"] for answer in answers}) == 3
    assert len({answer.headers["last-modified"] for answer in answers}) == 3
    assert (other, elsewhere) == (404, 404)


async def test_last_modified_is_the_end_of_the_task(site: Site) -> None:
    answer = await site.get()

    assert _date(answer) == pytest.approx(site.emulator.wall_time(), abs=2)


async def test_if_range_may_be_the_tag_or_the_very_date(site: Site) -> None:
    known = (await site.get()).headers

    statuses = {
        validator: (await site.get(Range="bytes=5-", If_Range=validator)).status_code
        for validator in (known["etag"], known["last-modified"], f"W/{known['etag']}", LONG_AGO, '"other"')
    }

    assert list(statuses.values()) == [206, 206, 200, 200, 200]


@pytest.mark.parametrize(
    ("validator", "by_tag", "by_date"), [("last-modified", 200, 206), ("weak", 200, 206), ("none", 200, 200)]
)
async def test_validators_can_be_weak_or_missing(
    site: Site, validator: Any, by_tag: int, by_date: int
) -> None:
    full = (await site.get()).headers
    site.emulator.fault(on="asset", validator=validator, times=4)

    less = (await site.get()).headers
    tag = less.get("etag", full["etag"])
    given = [tag, full["last-modified"]]
    statuses = [(await site.get(Range="bytes=5-", If_Range=each)).status_code for each in given]
    plain = await site.get(Range="bytes=5-")

    assert less.get("etag") == (f"W/{full['etag']}" if validator == "weak" else None)
    assert less.get("last-modified") == (None if validator == "none" else full["last-modified"])
    assert [*statuses, plain.status_code] == [by_tag, by_date, 206]


@pytest.mark.parametrize(("rate", "seconds"), [(30_000, 10), (2_000_000, 0.15), (299_999.5, 1)])
async def test_a_body_can_drip(site: Site, rate: float, seconds: float) -> None:
    site.emulator.fault(on="asset", drip=rate)
    start = asyncio.get_running_loop().time()

    _, body, whole = await site.received()

    assert asyncio.get_running_loop().time() - start == pytest.approx(seconds, abs=0.01)
    assert whole
    assert body == (await site.get()).content


async def test_a_very_slow_drip_comes_byte_by_byte(site: Site) -> None:
    site.emulator.fault(on="asset", drip=0.5)
    loop = asyncio.get_running_loop()
    start, moments = loop.time(), []

    async def read(answer: httpx.Response) -> None:
        async for chunk in answer.aiter_raw():
            moments.append((len(chunk), round(loop.time() - start)))

    async with Caller("", None) as anyone, anyone.stream("GET", site.url) as answer:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(answer), 7)
    await asyncio.sleep(1)

    assert moments == [(1, 2), (1, 4), (1, 6)]
    assert site.sent() == [3]


async def test_closing_the_emulator_ends_a_drip() -> None:
    async with Caller("", None) as anyone:
        async with Emulator() as emulator:
            site = await _site(emulator, anyone, "a cat [bytes 300000]")
            emulator.fault(on="asset", drip=10)
            reading = asyncio.create_task(site.received())
            await asyncio.sleep(10)
        _, body, whole = await reading

    assert (len(body), whole) == (100, False)


async def test_a_redirect_goes_where_it_was_ordered_to(site: Site) -> None:
    targets = [
        "http://127.0.0.1:9/x",
        "http://10.0.0.1/",
        "//host/path",
        "/relative.png",
        "file:///etc/passwd",
    ]
    for target in targets:
        site.emulator.fault(on="asset", redirect=target)
    site.emulator.fault(on="asset", redirect="/there", status=307, headers={"X-Odd": "1"})

    answers = [await site.get() for _ in range(7)]

    assert [answer.headers.get("location") for answer in answers] == [*targets, "/there", None]
    assert [answer.status_code for answer in answers] == [302] * 5 + [307, 200]
    assert [answer.content for answer in answers[:6]] == [b""] * 6
    assert answers[5].headers["x-odd"] == "1"


async def test_a_redirect_can_loop(site: Site) -> None:
    site.emulator.fault(on="asset", redirect="loop", times=1000)

    answer = await site.get()
    async with Caller("", None) as anyone:
        with pytest.raises(httpx.TooManyRedirects):
            await anyone.get(site.url, follow_redirects=True)

    assert answer.headers["location"] == site.url


@pytest.mark.parametrize("size", [1, 70_000, 3 * 2**20, 50_000_000])
async def test_a_bomb_inflates_to_its_size_and_begins_as_the_file_does(site: Site, size: int) -> None:
    file = (await site.get()).content
    site.emulator.fault(on="asset", bomb=size)

    answer, body, whole = await site.received(Accept_Encoding="identity", Range="bytes=1000-")
    inflated = zlib.decompress(body, zlib.MAX_WBITS | 16)

    assert (answer.status_code, answer.headers["content-encoding"], whole) == (200, "gzip", True)
    assert answer.headers["content-type"] == "image/png"
    assert len(inflated) == size
    assert inflated[:60_000] == file[: min(size, 60_000)]
    assert len(body) < 66_000 + size / 500


async def test_a_bomb_needs_no_file(site: Site) -> None:
    site.emulator.fault(on="asset", bomb=1000)

    answer = await site.get(f"{site.emulator.asset_url}/none")

    assert (answer.status_code, answer.content) == (200, bytes(1000))


async def test_range_can_be_ignored(site: Site) -> None:
    site.emulator.fault(on="asset", unranged=True)

    answer = await site.get(Range="bytes=1000-")

    assert (answer.status_code, len(answer.content)) == (200, 300_000)
    assert "accept-ranges" not in answer.headers


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
@pytest.mark.parametrize("media_type", ["text/html", "image/png"])
async def test_a_page_can_come_instead_of_a_file(site: Site, name: str, media_type: str) -> None:
    page = "<html><title>Sign in</title></html>"
    site.emulator.fault(on="asset", status=200, body=page, headers={name: media_type})

    answer = await site.get(Range="bytes=10-")

    assert (answer.status_code, answer.text) == (200, page)
    assert answer.headers.get_list("content-type") == [media_type]
    assert answer.headers["content-length"] == str(len(page))
    assert "etag" not in answer.headers
    assert site.sent() == [len(page)]


@pytest.mark.no_cover
async def test_so_large_a_share_of_answers_is_cut_at_random_places() -> None:
    async def lengths(seed: int) -> list[int]:
        async with Emulator(cut_share=0.5, seed=seed) as emulator, Caller("", None) as anyone:
            site = await _site(emulator, anyone, "a cat [bytes 20000]")
            bodies = [await site.received() for _ in range(80)]
            assert site.sent() == [len(body) for _, body, _ in bodies]
            assert all(whole == (len(body) == 20_000) for _, body, whole in bodies)
            return [len(body) for _, body, _ in bodies]

    first, again, other = await lengths(1), await lengths(1), await lengths(2)

    cuts = [length for length in first if length < 20_000]
    assert 25 <= len(cuts) <= 55
    assert min(cuts) < 4000 < 16_000 < max(cuts)
    assert first == again != other


async def test_random_cuts_begin_anew_after_a_reset_and_spare_what_has_no_file() -> None:
    async with Emulator(cut_share=1.0) as emulator, Caller("", None) as anyone:
        sizes = []
        for _ in range(2):
            site = await _site(emulator, anyone, "a cat [bytes 20000]")
            refused = await site.get(site.url.replace("Signature=", "Signature=0"))
            head = await anyone.head(site.url)
            sizes.append([len((await site.received())[1]) for _ in range(3)])
            emulator.reset()

    assert (refused.status_code, head.headers["content-length"]) == (403, "20000")
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("status", [204, 304, 403, 410, 503])
async def test_any_status_can_come_instead_of_a_file(site: Site, status: int) -> None:
    site.emulator.fault(on="asset", status=status)
    answers = [await site.get() for _ in range(2)]

    assert [answer.status_code for answer in answers] == [status, 200]
    assert site.sent() == [len(answers[0].content), 300_000]


def test_an_emulator_that_never_ran_can_be_reset() -> None:
    emulator = Emulator()
    emulator.fault(on="asset", unranged=True)

    emulator.reset()

    assert emulator.requests() == []


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="cut_share must be from 0 to 1"):
        Emulator(cut_share=share)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("length", 0, -1),
        ("changed", True, 1),
        ("validator", "weak", "strong"),
        ("drip", 0.5, 0),
        ("redirect", "https://host/", ""),
        ("redirect", "/", "https://host/\r\nX: 1"),
        ("bomb", 1, 0),
        ("bomb", 4_000_000_000, 4_000_000_001),
        ("unranged", True, "yes"),
    ],
)
async def test_orders_for_assets_alone_are_checked(site: Site, field: str, good: Any, bad: Any) -> None:
    orders = [
        {"on": "asset", field: bad},
        {"on": "create", field: good},
        {"on": "asset", field: good},
    ]
    async with Caller(site.emulator.dieyuyun_url, None) as caller:
        answers = [await caller.post("/_emulator/faults", json=order) for order in orders]
    for order in orders[:2]:
        with pytest.raises(ValueError, match=field):
            site.emulator.fault(**order)

    assert [answer.status_code for answer in answers] == [400, 400, 200]


@pytest.mark.parametrize(
    "order",
    [
        {"redirect": "/", "bomb": 5},
        {"redirect": "/", "body": "x"},
        {"bomb": 5, "body": "x"},
        {"redirect": "/", "status": 200},
    ],
)
def test_orders_that_contradict_each_other_are_refused(order: Any) -> None:
    with pytest.raises(ValueError, match="not a fault"):
        Emulator().fault(on="asset", **order)


async def test_only_asset_calls_tell_what_was_sent(site: Site) -> None:
    await site.get()

    told = {record.on: record.sent for record in site.emulator.requests()}

    assert told == {"create": None, "query": None, "asset": 300_000}


def _date(answer: httpx.Response) -> float:
    return parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
