"""No reply makes an adapter raise, and what it reads can be stored and shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide._wire import Reply
from bide.errors import BideError
from bide.models import Task
from bide.providers import Accepted, DashScope, Dieyuyun, Page, Provider, TryAgain, Unclear
from support.provider_replies import ID, IMAGE, VIDEO, reply

pytestmark = pytest.mark.no_cover  # tracing doubles its time, and other tests run the same lines
PROVIDERS: tuple[Provider, ...] = (DashScope(base_url="http://h/api/v1"), Dieyuyun("http://h"))

NAMES = [
    *("id", "task_id", "status", "task_status", "output", "result", "results", "data", "choices", "message"),
    *(
        "content",
        "url",
        "video_url",
        "image",
        "b64_json",
        "error",
        "code",
        "error_code",
        "error_message",
        "usage",
    ),
    *(
        "progress",
        "created",
        "created_at",
        "submit_time",
        "end_time",
        "completed_at",
        "expires_at",
        "gmt_create",
    ),
    *("page_no", "total_page", "total", "page_size", "request_id", "type", "revised_prompt"),
]
WORDS = [
    *(ID, "../admin", "SUCCEEDED", "FAILED", "UNKNOWN", "completed", "failed", "processing", "expired", ""),
    *(
        "https://h/a.png?Expires=1e400",
        "https://[",
        "javascript:x",
        "2026-06-05 18:30:00",
        "0001-01-01",
        "InternalError",
    ),
    *(
        "\ud800",
        "\x1b[31m\x00",
        "9" * 400,
        "data:,",
        "https://h/a?x-oss-date=20260605T100000Z&x-oss-expires=1e18",
    ),
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=20)
)
names = st.sampled_from(NAMES) | st.text(max_size=5)
bodies = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(names, below, max_size=6),
    max_leaves=25,
)
objects = st.dictionaries(names, bodies, max_size=8)
statuses = st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 404, 409, 429, 500, 503]) | st.integers(
    0, 999
)
headers = st.dictionaries(
    st.sampled_from(["retry-after", "date", "location", "content-type", "x-request-id"]),
    st.sampled_from(["3", "-1", "nan", "Wed, 21 Oct 2026 07:28:00 -0000", "https://[", "//h/x"])
    | st.text(max_size=30),
)


def read_all(provider: Provider, answer: Reply) -> list[Any]:
    return [
        provider.read_created(answer, IMAGE),
        provider.read_created(answer, VIDEO),
        provider.read_task(answer, ID),
        provider.read_cancelled(answer, ID),
        provider.read_list(answer),
    ]


def tasks_in(outcomes: list[Any]) -> list[Task]:
    found: list[Task] = []
    for each in outcomes:
        if isinstance(each, Task):
            found.append(each)
        elif isinstance(each, Accepted):
            found.append(each.task)
        elif isinstance(each, Page):
            found.extend(row.task for row in each.tasks)
    return found


def check(provider: Provider, answer: Reply) -> None:
    outcomes = read_all(provider, answer)

    for task in tasks_in(outcomes):
        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
        assert task.task_id is None or provider.query_call(task.task_id).method == "GET"
    for error in (getattr(each, "error", None) for each in outcomes):
        if isinstance(error, BideError):
            assert str(error).isprintable()
            assert len(str(error)) < 6_000


@settings(max_examples=300, deadline=None)
@given(body=bodies | objects, status=statuses, headers=headers)
def test_any_json_is_read(body: Any, status: int, headers: dict[str, str]) -> None:
    for provider in PROVIDERS:
        check(provider, Reply(status, headers, json.dumps(body).encode()))


@settings(max_examples=100, deadline=None)
@given(output=objects, status=st.sampled_from([200, 400, 429, 500]))
def test_any_output_is_read(output: dict[str, Any], status: int) -> None:
    for body in ({"output": output}, {"result": output, **output}, {"data": [output]}, {"error": output}):
        for provider in PROVIDERS:
            check(provider, reply(body, status))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), status=statuses, headers=headers)
def test_any_bytes_are_read(content: bytes, status: int, headers: dict[str, str]) -> None:
    for provider in PROVIDERS:
        check(provider, Reply(status, headers, content))


HOSTILE = {
    "five megabytes of nesting": b"[" * 5_000_000,
    "deep but closed": b"[" * 900 + b"]" * 900,
    "a task with a deep corner": b'{"id":"%s","status":"queued","output":{"task_id":"%s","task_status":"RUNNING",'
    b'"x":%s%s}}' % (ID.encode(), ID.encode(), b"[" * 500, b"]" * 500),
    "a number of 5,000 digits": b'{"output":{"task_id":' + b"9" * 5_000 + b"}}",
    "half of a UTF-16 file": "{}".encode("utf-16")[:3],
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_a_hostile_body_is_no_answer(provider: Provider, content: bytes) -> None:
    answer = Reply(200, {"content-type": "application/json"}, content)

    assert isinstance(provider.read_created(answer, IMAGE), Unclear)
    assert isinstance(provider.read_task(answer, ID), TryAgain)
    check(provider, answer)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_numbers_that_are_none_leave_plain_json_behind(provider: Provider) -> None:
    corner = b'"progress":NaN,"x":[Infinity,-Infinity,1e999,1e3]'
    content = b'{"id":"%s","status":"processing",%s,"output":{"task_id":"%s","task_status":"RUNNING",%s}}' % (
        ID.encode(),
        corner,
        ID.encode(),
        corner,
    )

    task = provider.read_task(Reply(200, {}, content), ID)

    assert isinstance(task, Task)
    assert task.progress is None
    assert json.dumps(task.to_dict(), allow_nan=False)
    assert task.raw is not None
    assert task.raw["x"] == [None, None, None, 1000.0]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_a_service_that_shouts_is_cut_short(provider: Provider) -> None:
    words = "\x1b[2J" + "x" * 100_000
    body = {"code": words, "error_code": words, "message": words, "request_id": words}

    read = provider.read_created(reply(body, 400, x_request_id=words), IMAGE)

    assert not isinstance(read, Accepted)
    assert str(read.error).isprintable()
    assert len(str(read.error)) < 1_000


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_many_results_are_read_in_no_time(provider: Provider) -> None:
    urls = [{"url": f"https://h/{n}.png"} for n in range(20_000)]
    body = {
        "id": ID,
        "status": "completed",
        "result": {"data": urls},
        "output": {"task_id": ID, "task_status": "SUCCEEDED", "results": urls},
    }

    task = provider.read_task(reply(body), ID)

    assert isinstance(task, Task)
    assert len(task.outputs) == 20_000
