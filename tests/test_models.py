"""The values that users hold: what they refuse, how they are stored, and what makes an event."""

from __future__ import annotations

import json
import math
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bide._validators import MAX_DEPTH
from bide.models import (
    Billing,
    Deadlines,
    ErrorDetail,
    ImageRequest,
    Limits,
    Output,
    RawRequest,
    Request,
    SavedFile,
    Task,
    TaskStatus,
    VideoRequest,
    request_from_dict,
    request_to_dict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MOMENT = datetime(2026, 6, 5, 10, 30, tzinfo=UTC)

words = st.none() | st.text(max_size=20)
moments = st.none() | st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001 - Hypothesis adds the zone
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001 - here too
    timezones=st.just(UTC),
)
plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=5), plain_json, max_size=4)
errors = st.builds(
    ErrorDetail,
    code=words,
    message=words,
    type=words,
    status_code=st.none() | st.integers(0, 999),
    retryable=st.none() | st.booleans(),
)
outputs = st.builds(
    Output,
    url=words,
    data=words,
    kind=st.text(max_size=9),
    media_type=words,
    expires_at=moments,
    revised_prompt=words,
    error=st.none() | errors,
)
tasks = st.builds(
    Task,
    ticket=st.text(max_size=9),
    task_id=words,
    request_id=words,
    status=st.sampled_from(TaskStatus),
    raw_status=words,
    progress=st.none() | st.floats(0, 100),
    model=words,
    created_at=moments,
    started_at=moments,
    finished_at=moments,
    outputs=st.lists(outputs, max_size=3).map(tuple),
    usage=st.none() | objects,
    error=st.none() | errors,
    billing=st.sampled_from(Billing),
    raw=st.none() | objects,
)


# Tasks as plain data ---------------------------------------------------------------------------------------


@given(task=tasks)
def test_a_task_survives_json_and_pickle(task: Task) -> None:
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert pickle.loads(pickle.dumps(task)) == task


def test_the_plain_form_has_every_field_of_a_task() -> None:
    assert set(Task().to_dict()) == {each.name for each in attrs.fields(Task)}


def test_what_a_later_version_has_added_is_passed_over() -> None:
    task = Task(status=TaskStatus.FAILED, outputs=(Output(error=ErrorDetail("a")),), error=ErrorDetail("b"))
    plain = task.to_dict()
    plain["new"] = plain["error"]["new"] = plain["outputs"][0]["new"] = plain["outputs"][0]["error"][
        "new"
    ] = 1

    assert Task.from_dict(plain) == task


def test_a_stored_time_comes_back_as_utc() -> None:
    east = MOMENT.astimezone(timezone(timedelta(hours=8)))

    task = Task.from_dict(Task(created_at=east).to_dict())

    assert task.created_at == MOMENT
    assert task.created_at is not None
    assert task.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"status": "nonsense"},
        {"status": "queued", "billing": "nonsense"},
        {"status": "queued", "created_at": "yesterday"},
        {"status": "queued", "created_at": 7},
        {"status": "queued", "error": "text"},
        {"status": "queued", "outputs": 7},
        {"status": "queued", "outputs": ["text"]},
        {"status": "queued", "outputs": [{"expires_at": "x"}]},
        [],
        None,
    ],
)
def test_what_is_no_plain_task_is_a_value_error(plain: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are Python's own in part
        Task.from_dict(plain)


# Snapshots -------------------------------------------------------------------------------------------------


def test_a_newer_snapshot_keeps_what_it_leaves_out() -> None:
    first = Task(
        ticket="t",
        task_id="a",
        request_id="r",
        status=TaskStatus.QUEUED,
        progress=40.0,
        model="m",
        created_at=MOMENT,
        started_at=MOMENT,
    )

    second = first.merge(Task(status=TaskStatus.RUNNING, raw_status="RUNNING", task_id="b", request_id="q"))

    assert second == attrs.evolve(first, status=TaskStatus.RUNNING, raw_status="RUNNING")


def test_a_newer_snapshot_takes_what_is_new() -> None:
    later = MOMENT + timedelta(seconds=1)
    seen = Task(
        task_id="a",
        request_id="r",
        status=TaskStatus.SUCCEEDED,
        progress=100.0,
        model="n",
        created_at=later,
        started_at=later,
        finished_at=later,
        outputs=(Output(url="https://h/a"),),
        raw={"x": 1},
    )

    assert Task(ticket="t", status=TaskStatus.RUNNING, model="m").merge(seen) == attrs.evolve(
        seen, ticket="t"
    )


@pytest.mark.parametrize(
    ("before", "seen", "after"),
    [(40.0, 60.0, 60.0), (60.0, 40.0, 60.0), (60.0, None, 60.0), (None, 5.0, 5.0)],
)
def test_progress_never_decreases(before: float | None, seen: float | None, after: float) -> None:
    task = Task(status=TaskStatus.RUNNING, progress=before)

    assert task.merge(Task(status=TaskStatus.RUNNING, progress=seen)).progress == after


@given(first=tasks, second=tasks)
def test_a_final_status_is_never_left(first: Task, second: Task) -> None:
    after = first.merge(second)

    assert after.ticket == first.ticket
    assert (after is first) if first.status.is_final else (after.status is second.status)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"status": TaskStatus.RUNNING}, True),
        ({"progress": 5.0}, True),
        ({"outputs": (Output(url="https://h/a"),)}, True),
        ({"error": ErrorDetail("x")}, True),
        ({"raw": {"a": 1}}, False),
        ({"raw_status": "x"}, False),
        ({"usage": {"a": 1}}, False),
        ({"model": "m"}, False),
        ({"started_at": MOMENT}, False),
        ({}, False),
    ],
)
def test_an_event_is_a_change_of_status_progress_outputs_or_error(
    change: dict[str, Any], differs: bool
) -> None:
    task = Task(status=TaskStatus.QUEUED)

    assert task.differs(attrs.evolve(task, **change)) is differs


def test_six_statuses_are_final_and_two_are_the_services() -> None:
    final = {each for each in TaskStatus if each.is_final}

    assert final == {"succeeded", "failed", "cancelled", "expired", "rejected", "unknown"}
    assert {each for each in TaskStatus if each.is_accepted} == {"queued", "running"}


def test_the_signature_of_a_url_is_not_shown() -> None:
    signed = Output(url="https://h/a.png?Signature=secret", data="A" * 1000)

    assert "secret" not in repr(signed)
    assert "https://h/a.png?…" in repr(Task(outputs=(signed,)))
    assert "<1000 chars>" in repr(signed)
    assert "url='https://h/a.png'" in repr(Output(url="https://h/a.png"))
    assert "url=None, data=None" in repr(Output())


def test_a_snapshot_does_not_change() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Task().status = TaskStatus.RUNNING  # type: ignore[misc]


def test_a_saved_file_is_a_path() -> None:
    assert SavedFile("/tmp/a.png", 3).__fspath__() == "/tmp/a.png"


# Requests --------------------------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    ("make", "fields", "error", "words"),
    [
        (ImageRequest, {"prompt": ""}, ValueError, "ImageRequest.prompt is empty"),
        (ImageRequest, {"prompt": " \n"}, ValueError, "ImageRequest.prompt is empty"),
        (ImageRequest, {"prompt": "\ud800"}, ValueError, "ImageRequest.prompt is not Unicode text"),
        (ImageRequest, {"prompt": 7}, TypeError, "ImageRequest.prompt must be a str, not int"),
        (ImageRequest, {"model": ""}, ValueError, "ImageRequest.model is empty"),
        (ImageRequest, {"model": None}, TypeError, "ImageRequest.model must be a str"),
        (ImageRequest, {"size": ""}, ValueError, "ImageRequest.size is empty"),
        (ImageRequest, {"size": 7}, TypeError, "ImageRequest.size must be a str"),
        (ImageRequest, {"n": 0}, ValueError, "ImageRequest.n must be from 1 to 100, not 0"),
        (ImageRequest, {"n": 101}, ValueError, "ImageRequest.n must be from 1 to 100, not 101"),
        (ImageRequest, {"n": True}, TypeError, "ImageRequest.n must be an int, not True"),
        (ImageRequest, {"n": 1.0}, TypeError, "ImageRequest.n must be an int, not 1.0"),
        (ImageRequest, {"seed": -1}, ValueError, "ImageRequest.seed must be from 0"),
        (ImageRequest, {"seed": 2**63}, ValueError, "ImageRequest.seed must be from 0"),
        (ImageRequest, {"images": ["a.png"]}, ValueError, "upload a local file first"),
        (ImageRequest, {"images": "file:///a.png"}, ValueError, "must be a URL"),
        (ImageRequest, {"images": [None]}, ValueError, "ImageRequest.images is empty"),
        (ImageRequest, {"images": [7]}, TypeError, "ImageRequest.images must be a str"),
        (ImageRequest, {"images": 7}, TypeError, "not iterable"),
        (ImageRequest, {"extra": 7}, TypeError, "expected a mapping of JSON values, not int"),
        (ImageRequest, {"extra": {"a": object()}}, ValueError, "not plain JSON"),
        (ImageRequest, {"extra": {"a": math.nan}}, ValueError, "not plain JSON"),
        (ImageRequest, {"extra": {"a": "\ud800"}}, ValueError, "not plain JSON"),
        (ImageRequest, {"extra": nested(MAX_DEPTH)}, ValueError, "nested more than 100 levels"),
        (ImageRequest, {"extra": nested(100_000)}, ValueError, "not plain JSON"),
        (VideoRequest, {"prompt": ""}, ValueError, "VideoRequest.prompt is empty"),
        (VideoRequest, {"image": "a.png"}, ValueError, "VideoRequest.image must be a URL"),
        (VideoRequest, {"last_image": ""}, ValueError, "VideoRequest.last_image is empty"),
        (VideoRequest, {"size": ""}, ValueError, "VideoRequest.size is empty"),
        (VideoRequest, {"resolution": 720}, TypeError, "VideoRequest.resolution must be a str"),
        (VideoRequest, {"duration": 0}, ValueError, "VideoRequest.duration must be a finite number above 0"),
        (VideoRequest, {"duration": math.inf}, ValueError, "VideoRequest.duration must be a finite number"),
        (VideoRequest, {"duration": "5"}, TypeError, "VideoRequest.duration must be a number, not '5'"),
        (VideoRequest, {"duration": True}, TypeError, "VideoRequest.duration must be a number"),
        (VideoRequest, {"seed": 1.5}, TypeError, "VideoRequest.seed must be an int"),
        (VideoRequest, {"extra": []}, TypeError, "expected a mapping"),
    ],
)
def test_a_wrong_field_raises_before_anything_is_sent(
    make: Callable[..., object], fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(**{"prompt": "p", "model": "m", **fields})


@pytest.mark.parametrize(
    ("path", "body", "kind", "error", "words"),
    [
        ("", {}, "image", ValueError, "RawRequest.path is empty"),
        ("v1/x", {}, "image", ValueError, "must be a path below the base URL"),
        ("//evil.example/x", {}, "image", ValueError, "must be a path below the base URL"),
        ("/v1/../admin", {}, "image", ValueError, "must be a path below the base URL"),
        ("/v1/é", {}, "image", ValueError, "must be a path below the base URL"),
        ("/v1?x=1", {}, "image", ValueError, "must have no query"),
        ("/v1#x", {}, "image", ValueError, "must have no query"),
        ("/v 1", {}, "image", ValueError, "must have no query"),
        ("/v1\r\nX: y", {}, "image", ValueError, "must have no query"),
        ("https://evil.example/x", {}, "image", ValueError, "must be a path below the base URL"),
        ("/", {}, "", ValueError, "RawRequest.kind is empty"),
        ("/..", {}, "image", ValueError, "must be a path below the base URL"),
        ("/a/./b", {}, "image", ValueError, "must be a path below the base URL"),
        ("/a/%2E%2e/b", {}, "image", ValueError, "must be a path below the base URL"),
        ("/a%2f..%2fb", {}, "image", ValueError, "must be a path below the base URL"),
        ("/%252e%252e/b", {}, "image", ValueError, "must be a path below the base URL"),
        ("/%2Fevil.example/x", {}, "image", ValueError, "must be a path below the base URL"),
        ("/a\\b", {}, "image", ValueError, "must have no query"),
        ("/%5c%5cevil.example", {}, "image", ValueError, "must have no query"),
        ("/a%0d%0aX:y", {}, "image", ValueError, "must have no query"),
        ("/a\x00b", {}, "image", ValueError, "must have no query"),
        ("/a\x7fb", {}, "image", ValueError, "must have no query"),
        (7, {}, "image", TypeError, "RawRequest.path must be a str"),
        ("/v1", [], "image", TypeError, "expected a mapping"),
        ("/v1", {"a": {1, 2}}, "image", ValueError, "not plain JSON"),
        ("/v1", {}, "", ValueError, "RawRequest.kind is empty"),
    ],
)
def test_a_wrong_raw_request_raises_before_anything_is_sent(
    path: Any, body: Any, kind: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        RawRequest(path, body, kind)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/x", "/v1/x/", "/v1/@x:y", "/a..b/.hidden/...", "/%C3%A9;v=1", "/100%", "/a%20b%3Fc%23d"],
)
def test_a_path_below_the_base_url_is_taken(path: str) -> None:
    assert RawRequest(path, {}).path == path


def test_a_request_keeps_a_copy_of_what_it_was_given() -> None:
    extra = {"a": [1]}
    image, raw = ImageRequest("p", model="m", extra=extra), RawRequest("/x", extra)

    extra["a"].append(2)

    assert image.extra == raw.body == {"a": [1]}


def test_extra_may_be_as_deep_as_an_answer() -> None:
    assert ImageRequest("p", model="m", extra=nested(MAX_DEPTH - 1)).extra == nested(MAX_DEPTH - 1)


def test_requests_know_their_kind_and_model() -> None:
    assert (ImageRequest("p", model="m").kind, VideoRequest("p", model="m").kind) == ("image", "video")
    assert (RawRequest("/x", {}).kind, RawRequest("/x", {}, "speech").kind) == ("image", "speech")
    assert (RawRequest("/x", {"model": "m"}).model, RawRequest("/x", {"model": 7}).model) == ("m", None)


prompts = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))
urls = st.sampled_from(["https://h/a", "http://h/a", "oss://b/a", "data:image/png;base64,AA"])
seeds = st.none() | st.integers(0, 2**63 - 1)
requests = (
    st.builds(
        ImageRequest,
        prompts,
        model=prompts,
        size=st.none() | prompts,
        n=st.integers(1, 100),
        images=st.lists(urls, max_size=3),
        seed=seeds,
        extra=objects,
    )
    | st.builds(
        VideoRequest,
        prompts,
        model=prompts,
        image=st.none() | urls,
        last_image=st.none() | urls,
        duration=st.none() | st.floats(0.1, 100),
        seed=seeds,
        extra=objects,
    )
    | st.builds(RawRequest, st.just("/x/y"), objects, prompts)
)


@given(request=requests)
def test_a_request_survives_json_and_pickle(request: Request) -> None:
    assert request_from_dict(json.loads(json.dumps(request_to_dict(request)))) == request
    assert pickle.loads(pickle.dumps(request)) == request
    assert isinstance(hash(request), int)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"type": "sculpture"},
        {"type": []},
        {"type": "image"},
        {"type": "image", "prompt": "p", "model": "m", "new": 1},
        {"type": "image", "prompt": "", "model": "m"},
        {"type": "raw", "path": "/x", "body": 7},
    ],
)
def test_what_is_no_plain_request_is_a_value_error(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each field has words of its own
        request_from_dict(plain)


# Limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Limits(concurrency=0), ValueError),
        (lambda: Limits(concurrency=2.0), TypeError),
        (lambda: Limits(concurrency=-math.inf), TypeError),
        (lambda: Limits(concurrency=math.nan), TypeError),
        (lambda: Limits(concurrency=True), TypeError),
        (lambda: Limits(creates_per_minute=0), ValueError),
        (lambda: Limits(creates_per_minute=-1), ValueError),
        (lambda: Limits(creates_per_minute=math.nan), ValueError),
        (lambda: Limits(creates_per_minute="30"), TypeError),  # type: ignore[arg-type]
        (lambda: Deadlines(waiting=-1), ValueError),
        (lambda: Deadlines(queued=math.nan), ValueError),
        (lambda: Deadlines(running=True), TypeError),
    ],
)
def test_a_wrong_limit_raises(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        make()


def test_the_error_of_a_wrong_limit_says_how_to_lift_it() -> None:
    with pytest.raises(
        ValueError, match=r"from 1 to 1000000, not 0 \(or math.inf: no limit; None: the documented"
    ):
        Limits(concurrency=0)


def test_a_limit_of_none_is_the_documented_one_and_infinity_lifts_it() -> None:
    documented = Limits(concurrency=3, creates_per_minute=30)

    assert Limits().over(documented) == Limits(None, None).over(documented) == documented
    assert Limits(concurrency=5).over(documented) == Limits(5, 30)
    assert Limits(creates_per_minute=math.inf).over(documented) == Limits(3, math.inf)
    assert Limits(5, math.inf).over(Limits()) == Limits(5, math.inf)


def test_no_deadline_is_none() -> None:
    assert Deadlines(waiting=None, queued=None, running=None).waiting is None
