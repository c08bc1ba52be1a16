"""DashScope's adapter: one row for each shape and code of the documents."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bide._wire import Call
from bide.errors import (
    APIError,
    AuthenticationError,
    BillingError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    ServerError,
    UnexpectedReplyError,
)
from bide.models import Billing, ImageRequest, Limits, Output, RawRequest, Task, TaskStatus, VideoRequest
from bide.providers import (
    Accepted,
    DashScope,
    Denied,
    Gone,
    NotNow,
    Page,
    Profile,
    Refused,
    Stopped,
    TooLate,
    TryAgain,
    Unclear,
    is_other_prompt,
)
from support.provider_replies import ID, IMAGE, VIDEO, reply

URL = "https://dashscope-result.oss-cn-beijing.aliyuncs.com/1d/a.png?Expires=1784716800&Signature=s%3D"
VIDEO_URL = "https://dashscope-result.oss-cn-beijing.aliyuncs.com/1d/a.mp4?Expires=1784716800&Signature=s%3D"
ENDS = datetime.fromtimestamp(1784716800, UTC)
DONE = "2026-06-05 18:31:00.000"
SIX = "/services/aigc/image-generation/generation"
TEXT_TO_IMAGE = "/services/aigc/text2image/image-synthesis"
IMAGE_TO_IMAGE = "/services/aigc/image2image/image-synthesis"
TO_VIDEO = "/services/aigc/video-generation/video-synthesis"
FRAMES_TO_VIDEO = "/services/aigc/image2video/video-synthesis"


@pytest.fixture
def provider() -> DashScope:
    return DashScope(base_url="https://dashscope.aliyuncs.com/api/v1")


# Requests --------------------------------------------------------------------------------------------------

A, B = "https://example.com/a.png", "https://example.com/b.png"


@pytest.mark.parametrize(
    ("request_", "path", "given", "parameters"),
    [
        (VIDEO, TO_VIDEO, {"prompt": "a kitten runs"}, {}),
        (
            VideoRequest("p", model="wan2.6-t2v", size="1280x720", duration=5.0, seed=7),
            TO_VIDEO,
            {"prompt": "p"},
            {"size": "1280*720", "duration": 5, "seed": 7},
        ),
        (
            VideoRequest("p", model="wan2.6-i2v", image=A, resolution="720P", duration=2.5),
            TO_VIDEO,
            {"prompt": "p", "img_url": A},
            {"resolution": "720P", "duration": 2.5},
        ),
        (
            VideoRequest("p", model="wan2.6-i2v", image=A, last_image=B),
            TO_VIDEO,
            {"prompt": "p", "first_frame_url": A, "last_frame_url": B},
            {},
        ),
        (
            VideoRequest("p", model="wan2.2-kf2v-flash", image=A, last_image=B),
            FRAMES_TO_VIDEO,
            {"prompt": "p", "first_frame_url": A, "last_frame_url": B},
            {},
        ),
        (
            VideoRequest("p", model="wanx-kf2v", image=A),
            FRAMES_TO_VIDEO,
            {"prompt": "p", "first_frame_url": A},
            {},
        ),
        (
            VideoRequest("p", model="wan2.2-s2v", image=A),
            FRAMES_TO_VIDEO,
            {"prompt": "p", "image_url": A},
            {},
        ),
        (
            VideoRequest("p", model="wan2.7-i2v", image=A, last_image=B),
            TO_VIDEO,
            {"prompt": "p", "media": [{"type": "first_frame", "url": A}, {"type": "last_frame", "url": B}]},
            {},
        ),
        (
            VideoRequest("p", model="happyhorse-1.0-i2v", image=A),
            TO_VIDEO,
            {"prompt": "p", "media": [{"type": "first_frame", "url": A}]},
            {},
        ),
        (VideoRequest("p", model="wan3-t2v"), TO_VIDEO, {"prompt": "p"}, {}),
        (IMAGE, TEXT_TO_IMAGE, {"prompt": "a kitten"}, {"n": 1}),
        (
            ImageRequest("p", model="wanx-v1", size="1024×768", n=4, seed=0),
            TEXT_TO_IMAGE,
            {"prompt": "p"},
            {"n": 4, "size": "1024*768", "seed": 0},
        ),
        (ImageRequest("p", model="qwen-image"), TEXT_TO_IMAGE, {"prompt": "p"}, {"n": 1}),
        (
            ImageRequest("p", model="wan2.5-i2i-preview", images=[A, B]),
            IMAGE_TO_IMAGE,
            {"prompt": "p", "images": [A, B]},
            {"n": 1},
        ),
        (
            ImageRequest("p", model="wanx2.1-imageedit", images=[A], extra={"input": {"function": "expand"}}),
            IMAGE_TO_IMAGE,
            {"prompt": "p", "base_image_url": A, "function": "expand"},
            {"n": 1},
        ),
        (ImageRequest("p", model="wanx2.1-imageedit"), IMAGE_TO_IMAGE, {"prompt": "p"}, {"n": 1}),
        (
            ImageRequest("p", model="wan2.6-image", images=[A, B], size="1K"),
            SIX,
            {"messages": [{"role": "user", "content": [{"text": "p"}, {"image": A}, {"image": B}]}]},
            {"n": 1, "size": "1K"},
        ),
        (
            ImageRequest("p", model="wan2.10-t2i"),
            SIX,
            {"messages": [{"role": "user", "content": [{"text": "p"}]}]},
            {"n": 1},
        ),
        (
            ImageRequest(
                "p",
                model="wan2.2-t2i-flash",
                extra={
                    "watermark": False,
                    "parameters": {"prompt_extend": True},
                    "input": {"negative_prompt": "x"},
                },
            ),
            TEXT_TO_IMAGE,
            {"prompt": "p", "negative_prompt": "x"},
            {"n": 1, "prompt_extend": True, "watermark": False},
        ),
    ],
)
def test_a_request_becomes_the_call_that_its_model_wants(
    provider: DashScope,
    request_: ImageRequest | VideoRequest,
    path: str,
    given: dict[str, Any],
    parameters: dict[str, Any],
) -> None:
    call = provider.create_call(request_, "ticket")

    assert call == Call(
        "POST",
        path,
        headers={"X-DashScope-Async": "enable"},
        body={"model": request_.model, "input": given, "parameters": parameters},
    )


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ImageRequest("p", model="m", extra={"n": 4}), "extra must not hold n: use the request's own field"),
        (ImageRequest("p", model="m", extra={"parameters": {"size": "1*1"}}), "hold size"),
        (ImageRequest("p", model="m", extra={"model": "other"}), "hold model"),
        (ImageRequest("p", model="m", extra={"input": {"prompt": "other"}}), "hold prompt"),
        (ImageRequest("p", model="wan2.6-image", extra={"input": {"messages": []}}), "hold messages"),
        (VideoRequest("p", model="wan2.6-i2v", image=A, extra={"input": {"img_url": B}}), "hold img_url"),
        (VideoRequest("p", model="m", extra={"duration": 5}), "hold duration"),
        (VideoRequest("p", model="m", extra={"x": 1, "parameters": {"x": 2}}), "one place only"),
        (VideoRequest("p", model="m", extra={"input": "text"}), "must be objects"),
        (VideoRequest("p", model="m", extra={"parameters": [1]}), "must be objects"),
        (VideoRequest("p", model="wan2.2-s2v", image=A, last_image=B), "accepts no last_image"),
        (ImageRequest("p", model="wanx2.1-imageedit", images=[A, B]), "accepts one image, not 2"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_sent(
    provider: DashScope, request_: ImageRequest | VideoRequest, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        provider.create_call(request_, "ticket")


def test_a_raw_request_goes_as_it_is_and_asynchronously(provider: DashScope) -> None:
    body = {"model": "emo-v1", "input": {"image_url": A}, "stream": None}

    call = provider.create_call(RawRequest("/services/aigc/image2video/x", body, "video"), "ticket")

    assert call == Call(
        "POST", "/services/aigc/image2video/x", headers={"X-DashScope-Async": "enable"}, body=body
    )


@pytest.mark.parametrize(
    "request_",
    [
        ImageRequest("p", model="wan2.6-image", images=["oss://bucket/a.png"]),
        VideoRequest("p", model="wan2.6-i2v", image="oss://bucket/a.png"),
        RawRequest("/x", {"input": {"media": [{"url": "oss://bucket/a.png"}]}}),
    ],
)
def test_an_input_in_the_services_own_store_is_announced(
    provider: DashScope, request_: ImageRequest | VideoRequest | RawRequest
) -> None:
    assert provider.create_call(request_, "ticket").headers["X-DashScope-OssResourceResolve"] == "enable"


def test_a_workspace_is_named_with_every_call() -> None:
    provider = DashScope(workspace="ws-1")
    moment = datetime(2026, 6, 5, tzinfo=UTC)

    calls = [
        provider.create_call(IMAGE, "ticket"),
        provider.query_call(ID),
        provider.cancel_call(ID),
        provider.list_call(moment, moment, 1),
    ]

    assert [call.headers["X-DashScope-WorkSpace"] for call in calls] == ["ws-1"] * 4


def test_queries_and_cancels_name_the_task_in_the_path(provider: DashScope) -> None:
    assert provider.query_call(ID) == Call("GET", f"/tasks/{ID}")
    assert provider.cancel_call("a+b@c") == Call("POST", "/tasks/a%2Bb%40c/cancel")


@pytest.mark.parametrize("task_id", ["../admin", "a/b", "a?b", "", "a b", "é", ".hidden", "x" * 257])
def test_no_id_leads_to_another_path(provider: DashScope, task_id: str) -> None:
    for call in (provider.query_call, provider.cancel_call, DashScope.gateway("http://gateway").query_call):
        with pytest.raises(ValueError, match="not a task id"):
            call(task_id)


def test_the_gateway_has_its_own_path_for_queries() -> None:
    provider = DashScope.gateway("https://gateway.example/", workspace="w", image_floor=9.0)

    assert provider.base_url == "https://gateway.example/apis/v1"
    assert provider == DashScope.gateway("https://gateway.example/apis/v1", workspace="w", image_floor=9.0)
    call = provider.query_call("a+b")
    assert (call.path, call.query) == ("/services/aigc/tasks", {"task_id": "a+b"})
    assert provider.create_call(VIDEO, "ticket").path == TO_VIDEO
    assert (provider.lists, provider.page_size) == (False, 0)


def test_a_list_call_uses_the_services_own_time(provider: DashScope) -> None:
    since = datetime(2026, 6, 5, 15, 59, 59, 900_000, tzinfo=UTC)
    until = datetime(2026, 6, 5, 16, 0, 0, 1, tzinfo=UTC)

    call = provider.list_call(since, until, 2, "wan2.6-t2v")

    assert call == Call(
        "GET",
        "/tasks",
        query={
            "start_time": "20260605235959",
            "end_time": "20260606000001",
            "page_no": "2",
            "page_size": "100",
            "model_name": "wan2.6-t2v",
        },
    )


def test_a_list_call_never_spans_more_than_a_day(provider: DashScope) -> None:
    until = datetime(2026, 6, 5, 12, 0, 0, 5, tzinfo=UTC)

    query = provider.list_call(until - timedelta(days=3), until, 0).query

    assert (query["start_time"], query["end_time"]) == ("20260604200001", "20260605200001")
    assert query["page_no"] == "1"
    assert "model_name" not in query


# Creates ---------------------------------------------------------------------------------------------------


def test_an_accepted_create_gives_the_task(provider: DashScope) -> None:
    body = {"output": {"task_status": "PENDING", "task_id": ID}, "request_id": "r-1"}

    outcome = provider.read_created(reply(body), VIDEO)

    assert outcome == Accepted(
        Task(
            task_id=ID,
            request_id="r-1",
            status=TaskStatus.QUEUED,
            raw_status="PENDING",
            model="wan2.6-t2v",
            billing=Billing.NOT_YET,
            raw=body,
        )
    )


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ({"task_status": "RUNNING"}, TaskStatus.RUNNING),
        ({"task_status": "UNKNOWN"}, TaskStatus.RUNNING),
        ({}, TaskStatus.QUEUED),
        ({"task_status": "FAILED", "code": "InternalError"}, TaskStatus.FAILED),
        ({"task_status": "SUCCEEDED", "results": [{"url": URL}]}, TaskStatus.SUCCEEDED),
    ],
)
def test_a_create_may_answer_any_status(
    provider: DashScope, output: dict[str, Any], status: TaskStatus
) -> None:
    outcome = provider.read_created(reply({"output": {"task_id": ID, **output}, "code": ""}, 201), VIDEO)

    assert isinstance(outcome, Accepted)
    assert outcome.task.status is status


def test_the_reply_to_a_create_may_hold_the_result(provider: DashScope) -> None:
    content = [{"image": URL, "type": "image"}]
    body = {
        "output": {"choices": [{"message": {"content": content}}], "finished": True},
        "usage": {"image_count": 1},
    }

    outcome = provider.read_created(reply(body), IMAGE)

    assert isinstance(outcome, Accepted)
    task = outcome.task
    assert (task.task_id, task.status, task.raw_status) == (None, TaskStatus.SUCCEEDED, None)
    assert task.outputs == (Output(url=URL, kind="image", expires_at=ENDS),)
    assert (task.raw, task.usage, task.model) == (body, {"image_count": 1}, IMAGE.model)


CREATE_FAULTS: list[tuple[int, str, type, str | None, type[APIError]]] = [
    # HTTP, code, outcome, reason, error
    (400, "InvalidParameter", Refused, None, InvalidRequestError),
    (400, "InvalidParameter.DataInspection", Refused, None, InvalidRequestError),
    (400, "BadRequest.TooLarge", Refused, None, InvalidRequestError),
    (400, "InvalidURL", Refused, None, InvalidRequestError),
    (400, "InvalidURL.ConnectionRefused", Refused, None, InvalidRequestError),
    (400, "DataInspectionFailed", Refused, None, InvalidRequestError),
    (400, "IPInfringementSuspect", Refused, None, InvalidRequestError),
    (400, "Arrearage", Refused, None, BillingError),
    (400, "UnsupportedOperation", Refused, None, InvalidRequestError),
    (400, "SomethingNew", Refused, None, InvalidRequestError),
    (401, "InvalidApiKey", Refused, None, AuthenticationError),
    (402, "", Refused, None, BillingError),
    (403, "AccessDenied", Refused, None, AuthenticationError),
    (403, "AccessDenied.Unpurchased", Refused, None, AuthenticationError),
    (403, "Model.AccessDenied", Refused, None, AuthenticationError),
    (403, "AllocationQuota.FreeTierOnly", Refused, None, BillingError),
    (404, "ModelNotFound", Refused, None, NotFoundError),
    (409, "Conflict", Refused, None, InvalidRequestError),
    (413, "", Refused, None, InvalidRequestError),
    (408, "RequestTimeOut", Unclear, None, InvalidRequestError),
    (425, "", NotNow, "capacity", InvalidRequestError),
    (429, "Throttling", NotNow, "rate", RateLimitError),
    (429, "Throttling.RateQuota", NotNow, "rate", RateLimitError),
    (429, "LimitRequests", NotNow, "rate", RateLimitError),
    (429, "limit_requests", NotNow, "rate", RateLimitError),
    (429, "Throttling.BurstRate", NotNow, "rate", RateLimitError),
    (429, "Throttling.AllocationQuota", NotNow, "rate", RateLimitError),
    (429, "insufficient_quota", NotNow, "rate", RateLimitError),
    (429, "Throttling.Concurrency", NotNow, "slots", RateLimitError),
    (429, "ServiceUnavailable", NotNow, "capacity", RateLimitError),
    (429, "CommodityNotPurchased", Refused, None, BillingError),
    (429, "PrepaidBillOverdue", Refused, None, BillingError),
    (429, "PostpaidBillOverdue", Refused, None, BillingError),
    (429, "BudgetLimitExceeded", Refused, None, BillingError),
    (500, "InternalError", Unclear, None, ServerError),
    (500, "InternalError.Timeout", Unclear, None, ServerError),
    (500, "SystemError", Unclear, None, ServerError),
    (500, "ModelServiceFailed", Unclear, None, ServerError),
    (500, "RequestTimeOut", Unclear, None, ServerError),
    (500, "Throttling.RateQuota", Unclear, None, ServerError),
    (500, "Arrearage", Unclear, None, ServerError),
    (500, "", Unclear, None, ServerError),
    (500, "ModelServingError", NotNow, "capacity", ServerError),
    (500, "ServiceUnavailable", NotNow, "capacity", ServerError),
    (500, "ModelUnavailable", NotNow, "capacity", ServerError),
    (503, "ModelServingError", NotNow, "capacity", ServerError),
    (503, "Throttling.Concurrency", NotNow, "capacity", ServerError),
    (503, "", Unclear, None, ServerError),
    (502, "", Unclear, None, ServerError),
    (502, "ServiceUnavailable", Unclear, None, ServerError),
    (504, "", Unclear, None, ServerError),
    # A top-level code is an error with HTTP 200 too.
    (200, "InvalidApiKey", Refused, None, AuthenticationError),
    (200, "InvalidParameter", Refused, None, InvalidRequestError),
    (200, "ModelNotFound", Refused, None, NotFoundError),
    (200, "Arrearage", Refused, None, BillingError),
    (200, "Throttling.RateQuota", NotNow, "rate", RateLimitError),
    (200, "InternalError", Unclear, None, ServerError),
    (200, "SomethingNew", Unclear, None, ServerError),
    (100, "", Unclear, None, ServerError),
    (303, "", Unclear, None, InvalidRequestError),
    (307, "", Refused, None, InvalidRequestError),
    (999, "", Unclear, None, ServerError),
]


@pytest.mark.parametrize(("status", "code", "outcome", "reason", "error"), CREATE_FAULTS)
def test_a_create_that_is_not_accepted_means_what_its_code_says(
    provider: DashScope,
    status: int,
    code: str,
    outcome: type,
    reason: str | None,
    error: type[APIError],
) -> None:
    body = {"code": code, "message": "No way.", "request_id": "r-9"}

    read = provider.read_created(reply(body, status), VIDEO)

    assert type(read) is outcome
    assert not isinstance(read, Accepted)
    assert type(read.error) is error
    if isinstance(read, NotNow):
        assert read.reason == reason
    if isinstance(read.error, APIError):
        assert (read.error.status_code, read.error.code, read.error.message, read.error.request_id) == (
            status,
            code or None,
            "No way.",
            "r-9",
        )


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
@pytest.mark.parametrize("body", [b"<html><h1>Forbidden</h1></html>", None])
def test_the_page_of_a_proxy_says_nothing_about_a_create(provider: DashScope, status: int, body: Any) -> None:
    read = provider.read_created(reply(body, status), VIDEO)

    assert isinstance(read, Unclear)
    assert isinstance(read.error, UnexpectedReplyError)


@pytest.mark.parametrize("status", [407, 411, 413, 414, 431])
def test_what_a_proxy_does_not_pass_on_for_its_form_has_made_no_task(
    provider: DashScope, status: int
) -> None:
    assert isinstance(provider.read_created(reply(b"<html>", status), VIDEO), Refused)


@pytest.mark.parametrize("code", [None, "SomethingNew", "Throttling.SomethingNew"])
def test_a_429_without_a_known_code_is_taken_for_full_slots(provider: DashScope, code: str | None) -> None:
    read = provider.read_created(reply({"code": code}, 429, retry_after="5"), VIDEO)

    assert isinstance(read, NotNow)
    assert (read.reason, read.error.retry_after) == ("slots", 5.0)


@pytest.mark.parametrize("status", [403, 429])
def test_a_used_up_free_quota_is_known_by_its_message(provider: DashScope, status: int) -> None:
    body = {"code": "Throttling.AllocationQuota", "message": "Free allocated quota exceeded."}

    read = provider.read_created(reply(body, status), VIDEO)

    assert isinstance(read, Refused)
    assert isinstance(read.error, BillingError)


def test_a_503_that_says_when_to_come_back_has_not_taken_the_create(provider: DashScope) -> None:
    busy = provider.read_created(reply(b"<html>", 503, retry_after="7"), VIDEO)
    broken = provider.read_created(reply({"code": "InternalError"}, 503, retry_after="7"), VIDEO)

    assert isinstance(busy, NotNow)
    assert (busy.reason, busy.error.retry_after) == ("capacity", 7.0)
    assert isinstance(broken, Unclear)


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"<html>OK</html>",
        b"\xff\xfe\x00",
        [],
        "text",
        {},
        {"output": None},
        {"output": {"task_status": "PENDING"}},
        {"output": {"task_id": None, "task_status": "PENDING"}},
        {"output": {"task_id": "../admin", "task_status": "PENDING"}},
        {"output": {"task_id": "x" * 10_000}},
        {"output": {"task_id": {"id": ID}}},
        {"output": {"results": [{"url": "file:///etc/passwd"}]}},
    ],
)
def test_a_2xx_without_a_readable_id_may_have_made_a_task(provider: DashScope, body: Any) -> None:
    read = provider.read_created(reply(body), VIDEO)

    assert isinstance(read, Unclear)
    assert isinstance(read.error, UnexpectedReplyError)


def test_an_error_says_what_happened_and_what_to_do(provider: DashScope) -> None:
    def text(body: Any, status: int, **headers: str) -> str:
        read = provider.read_created(reply(body, status, **headers), VIDEO)
        assert not isinstance(read, Accepted)
        return str(read.error)

    assert text({"code": "InvalidParameter", "message": "size\nbad", "request_id": "r-1"}, 400) == (
        "DashScope refused the create: HTTP 400 InvalidParameter: size\\nbad (request id r-1)"
    )
    assert "$DASHSCOPE_API_KEY" in text({"code": "InvalidApiKey"}, 401)
    assert "console" in text({"code": "Arrearage"}, 400)
    assert "base_url" in text({"code": "ModelNotFound"}, 404)
    assert "the service allows the next call after 5 s" in text({"code": "Throttling"}, 429, retry_after="5")
    assert text(b"<h1>Bad \x1b[31mGateway", 502) == (
        "DashScope failed at the create: HTTP 502: <h1>Bad \\x1b[31mGateway"
    )
    moved = text(None, 301, location="https://user:pw@other.example/login?token=1")
    assert "it redirects to other.example: set base_url" in moved
    assert "pw" not in moved
    assert "no other host" in text(None, 302, location="https://[broken")


# Queries ---------------------------------------------------------------------------------------------------


def read_task(provider: DashScope, output: dict[str, Any], **more: Any) -> Task:
    body = {"request_id": "r-2", "output": {"task_id": ID, **output}, **more}
    task = provider.read_task(reply(body), ID)
    assert isinstance(task, Task)
    assert task.raw == body
    return task


@pytest.mark.parametrize(
    ("word", "status", "billing"),
    [
        ("PENDING", TaskStatus.QUEUED, Billing.NOT_YET),
        ("RUNNING", TaskStatus.RUNNING, Billing.ON_SUCCESS),
        ("SUCCEEDED", TaskStatus.SUCCEEDED, Billing.FULL),
        ("FAILED", TaskStatus.FAILED, Billing.NONE),
        ("CANCELED", TaskStatus.CANCELLED, Billing.PARTIAL),
        ("SUSPENDED", TaskStatus.RUNNING, Billing.UNKNOWN),
        ("THROTTLED", TaskStatus.RUNNING, Billing.UNKNOWN),
    ],
)
def test_a_status_word_gives_status_and_billing(
    provider: DashScope, word: str, status: TaskStatus, billing: Billing
) -> None:
    task = read_task(provider, {"task_status": word})

    assert (task.status, task.raw_status, task.billing) == (status, word, billing)
    assert task.task_id == ID


def test_documented_words_are_known_and_others_are_not(provider: DashScope) -> None:
    documented = ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN")

    assert all(map(provider.knows, documented))
    assert not provider.knows("THROTTLED")


def test_written_times_are_beijings(provider: DashScope) -> None:
    output = {
        "task_status": "SUCCEEDED",
        "submit_time": "2026-06-05 18:30:00.123",
        "scheduled_time": "2026-06-05 18:30:01",
        "end_time": DONE,
        "video_url": "https://example.com/a",
    }

    task = read_task(provider, output)

    assert task.created_at == datetime(2026, 6, 5, 10, 30, 0, 123_000, tzinfo=UTC)
    assert task.started_at == datetime(2026, 6, 5, 10, 30, 1, tzinfo=UTC)
    assert task.finished_at == datetime(2026, 6, 5, 10, 31, tzinfo=UTC)
    assert task.outputs[0].expires_at == datetime(2026, 6, 6, 10, 31, tzinfo=UTC)


def test_another_clock_can_be_set(provider: DashScope) -> None:
    task = read_task(DashScope(utc_offset=-5), {"task_status": "RUNNING", "submit_time": DONE})

    assert task.created_at == datetime(2026, 6, 5, 23, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("output", "outputs"),
    [
        ({"video_url": VIDEO_URL}, [Output(url=VIDEO_URL, kind="video", expires_at=ENDS)]),
        (
            {"video_url": VIDEO_URL, "watermark_video_url": "https://example.com/w"},
            [
                Output(url=VIDEO_URL, kind="video", expires_at=ENDS),
                Output(url="https://example.com/w", kind="video"),
            ],
        ),
        (
            {"video_url": VIDEO_URL, "actual_prompt": "a better one"},
            [Output(url=VIDEO_URL, kind="video", expires_at=ENDS, revised_prompt="a better one")],
        ),
        (
            {"results": [{"orig_prompt": "p", "actual_prompt": "better", "url": URL}]},
            [Output(url=URL, kind="image", expires_at=ENDS, revised_prompt="better")],
        ),
        ({"results": {"video_url": VIDEO_URL}}, [Output(url=VIDEO_URL, kind="video", expires_at=ENDS)]),
        (
            {"results": [{"transcription_url": "https://example.com/t.json"}]},
            [Output(url="https://example.com/t.json", kind="file")],
        ),
        (
            {"choices": [{"message": {"content": [{"image": URL, "type": "image"}, {"text": "words"}]}}]},
            [Output(url=URL, kind="image", expires_at=ENDS)],
        ),
        (
            {"choices": [{"message": {"content": [{"video": VIDEO_URL}]}}, {"message": {"content": [7]}}]},
            [Output(url=VIDEO_URL, kind="video", expires_at=ENDS)],
        ),
        ({"results": [{"url": URL}, {"url": URL}]}, [Output(url=URL, kind="image", expires_at=ENDS)]),
        (
            {"results": [{"url": "https://example.com/speech.MP3"}]},
            [Output(url="https://example.com/speech.MP3", kind="audio")],
        ),
        ({}, []),
        ({"results": [None, "text", 7, {}, []]}, []),
        ({"results": "text", "choices": {"a": 1}}, []),
    ],
)
def test_results_are_found_in_every_place(
    provider: DashScope, output: dict[str, Any], outputs: list[Output]
) -> None:
    task = read_task(provider, {"task_status": "SUCCEEDED", **output}, usage={"image_count": 1})

    assert list(task.outputs) == outputs
    assert task.usage == {"image_count": 1}
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


@pytest.mark.parametrize("url", ["javascript:alert(1)", "file:///etc/passwd", "ftp://h/a", "//h/a", 7, ["u"]])
def test_what_cannot_be_fetched_becomes_an_output_with_an_error(provider: DashScope, url: Any) -> None:
    task = read_task(provider, {"task_status": "SUCCEEDED", "results": [{"url": url}]})

    (output,) = task.outputs
    assert (output.url, output.data) == (None, None)
    assert output.error is not None
    assert "no usable URL" in str(output.error.message)


def test_a_part_that_failed_stands_beside_the_results(provider: DashScope) -> None:
    parts = [{"url": URL}, {"code": "InternalError.Timeout", "message": "took too long"}]

    task = read_task(
        provider,
        {
            "task_status": "SUCCEEDED",
            "results": parts,
            "task_metrics": {"TOTAL": 2, "SUCCEEDED": 1, "FAILED": 1},
        },
    )

    made, failed = task.outputs
    assert task.status is TaskStatus.SUCCEEDED
    assert made.url == URL
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("InternalError.Timeout", "took too long")
    assert failed.error.retryable is True


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        ("InternalError", True),
        ("InternalError.Timeout", True),
        ("SystemError", True),
        ("ModelServiceFailed", True),
        ("RequestTimeOut", True),
        ("Image.Timeout", True),
        ("Throttling", True),
        ("Throttling.RateQuota", True),
        ("ServiceUnavailable", True),
        ("DataInspectionFailed", False),
        ("InvalidParameter", False),
        ("InvalidParameter.FileFormat", False),
        ("IPInfringementSuspect", False),
        ("InvalidURL.Timeout", False),
        ("Arrearage", False),
        ("SomethingNew", None),
        (None, None),
    ],
)
def test_a_failed_task_says_if_another_try_may_help(
    provider: DashScope, code: str | None, retryable: bool | None
) -> None:
    given = {} if code is None else {"code": code, "message": "why"}

    task = read_task(provider, {"task_status": "FAILED", **given})

    assert task.error is not None
    assert (task.error.code, task.error.retryable) == (code, retryable)
    assert task.error.message == given.get("message")
    assert task.outputs == ()


def test_a_failure_may_be_described_at_the_top_level(provider: DashScope) -> None:
    task = read_task(provider, {"task_status": "FAILED"}, code="SystemError", message="why")

    assert task.error is not None
    assert (task.error.code, task.error.message) == ("SystemError", "why")


QUERY_FAULTS: list[tuple[int, Any, type, type[Exception]]] = [
    (200, {"output": {"task_id": ID, "task_status": "UNKNOWN"}}, Gone, NotFoundError),
    (404, {"code": "NotFound"}, Gone, NotFoundError),
    (410, {"code": "NotFound"}, Gone, NotFoundError),
    # What the service has not said itself is no verdict.
    (401, b"<html>", TryAgain, UnexpectedReplyError),
    (403, b"<html>", TryAgain, UnexpectedReplyError),
    (404, b"<html>", TryAgain, UnexpectedReplyError),
    (404, None, TryAgain, UnexpectedReplyError),
    (404, {}, TryAgain, UnexpectedReplyError),
    (404, {"detail": "Not Found"}, TryAgain, UnexpectedReplyError),
    (403, {"message": "Missing Authentication Token"}, TryAgain, UnexpectedReplyError),
    (405, b"<html>", TryAgain, UnexpectedReplyError),
    (400, None, TryAgain, UnexpectedReplyError),
    (400, {"code": "InvalidParameter"}, Denied, InvalidRequestError),
    (401, {"code": "InvalidApiKey"}, Denied, AuthenticationError),
    (403, {"code": "AccessDenied"}, Denied, AuthenticationError),
    (200, {"code": "InvalidApiKey"}, Denied, AuthenticationError),
    (302, None, TryAgain, InvalidRequestError),
    (400, {"code": "Throttling.RateQuota"}, TryAgain, InvalidRequestError),
    (408, None, TryAgain, InvalidRequestError),
    (425, None, TryAgain, InvalidRequestError),
    (429, None, TryAgain, RateLimitError),
    (429, {"code": "Throttling.RateQuota"}, TryAgain, RateLimitError),
    (500, {"code": "InternalError"}, TryAgain, ServerError),
    (502, b"<html>", TryAgain, ServerError),
    (503, None, TryAgain, ServerError),
    (504, None, TryAgain, ServerError),
    (599, None, TryAgain, ServerError),
    (200, {"code": "InternalError"}, TryAgain, ServerError),
    (200, {"code": "SomethingNew"}, TryAgain, ServerError),
    (101, None, TryAgain, ServerError),
    (200, None, TryAgain, UnexpectedReplyError),
    (200, b"<html>", TryAgain, UnexpectedReplyError),
    (200, [], TryAgain, UnexpectedReplyError),
    (200, {}, TryAgain, UnexpectedReplyError),
    (200, {"output": {"task_id": ID}}, TryAgain, UnexpectedReplyError),
    (200, {"output": {"task_id": ID, "task_status": ["RUNNING"]}}, TryAgain, UnexpectedReplyError),
    (200, {"output": {"task_id": "another", "task_status": "SUCCEEDED"}}, TryAgain, UnexpectedReplyError),
    (200, {"output": {"task_id": "../admin", "task_status": "FAILED"}}, TryAgain, UnexpectedReplyError),
]


@pytest.mark.parametrize(("status", "body", "outcome", "error"), QUERY_FAULTS)
def test_a_poll_that_shows_no_task_means_what_its_reply_says(
    provider: DashScope, status: int, body: Any, outcome: type, error: type[Exception]
) -> None:
    read = provider.read_task(reply(body, status), ID)

    assert type(read) is outcome
    assert isinstance(read, Gone | TryAgain | Denied)
    assert type(read.error) is error


def test_a_reply_without_an_id_is_about_the_polled_task(provider: DashScope) -> None:
    task = provider.read_task(reply({"output": {"task_status": "RUNNING"}}), ID)

    assert isinstance(task, Task)
    assert task.task_id == ID


# Cancels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {"request_id": "r"}, Stopped),
        (200, None, Stopped),
        (204, None, Stopped),
        (400, {"code": "UnsupportedOperation", "message": "Failed to cancel the task"}, TooLate),
        (200, {"code": "UnsupportedOperation"}, TooLate),
        (400, {"code": "InvalidParameter"}, Denied),
        (200, b"<html>Log in to the network</html>", TryAgain),
        (404, {"code": "NotFound"}, Gone),
        (404, None, TryAgain),
        (404, b"<html>", TryAgain),
        (401, {"code": "InvalidApiKey"}, Denied),
        (403, {"code": "AccessDenied"}, Denied),
        (403, b"<html>", TryAgain),
        (200, {"code": "InternalError"}, TryAgain),
        (408, None, TryAgain),
        (425, None, TryAgain),
        (429, None, TryAgain),
        (500, {"code": "UnsupportedOperation"}, TryAgain),
        (503, None, TryAgain),
    ],
)
def test_a_cancel_means_what_its_answer_says(
    provider: DashScope, status: int, body: Any, outcome: type
) -> None:
    assert type(provider.read_cancelled(reply(body, status), ID)) is outcome


# Lists -----------------------------------------------------------------------------------------------------


def test_a_list_shows_tasks_without_results(provider: DashScope) -> None:
    rows: list[Any] = [
        {
            "task_id": ID,
            "status": "SUCCEEDED",
            "model_name": "wan2.6-t2v",
            "gmt_create": 1780655400123,
            "start_time": 1780655401000,
            "end_time": 1780655460000,
            "request_id": "r-1",
            "prompt": "a kitten",
        },
        {
            "task_id": "b",
            "status": "FAILED",
            "code": "SystemError",
            "gmt_create": "2026-06-05 18:30:00",
            "end_time": None,
        },
        {"task_id": "c", "status": "PAUSED"},
        {"task_id": "d"},
        {"task_id": "e", "status": "UNKNOWN"},
        {"task_id": "../admin", "status": "RUNNING"},
        {"status": "RUNNING"},
        "text",
        None,
        [],
    ]
    body = {"request_id": "r", "data": rows, "page_no": 2, "page_size": 10, "total_page": 3, "total": 25}

    page = provider.read_list(reply(body))

    assert isinstance(page, Page)
    assert (page.number, page.pages) == (2, 3)
    first, second, third, fourth = page.tasks
    assert first.prompt == "a kitten"
    assert first.task == Task(
        task_id=ID,
        request_id="r-1",
        status=TaskStatus.SUCCEEDED,
        raw_status="SUCCEEDED",
        model="wan2.6-t2v",
        created_at=datetime(2026, 6, 5, 10, 30, 0, 123_000, tzinfo=UTC),
        started_at=datetime(2026, 6, 5, 10, 30, 1, tzinfo=UTC),
        finished_at=datetime(2026, 6, 5, 10, 31, tzinfo=UTC),
        billing=Billing.FULL,
        raw=rows[0],
    )
    assert second.task.status is TaskStatus.FAILED
    assert second.task.error is not None
    assert second.task.created_at == datetime(2026, 6, 5, 10, 30, tzinfo=UTC)
    assert (third.task.status, third.task.raw_status) == (TaskStatus.RUNNING, "PAUSED")
    assert (fourth.task.task_id, fourth.task.status) == ("d", TaskStatus.RUNNING)


@pytest.mark.parametrize(
    ("more", "number", "pages"),
    [
        ({"page_no": 1, "total_page": 0}, 1, 1),
        ({"total": 25, "page_size": 10}, 1, 3),
        ({"page_no": 4}, 4, 4),
        ({"page_no": "2", "total_page": "7"}, 2, 7),
        ({"page_no": -1, "total_page": 10**300}, 1, 1_000_000),
        ({"page_no": [], "total_page": {}}, 1, 1),
        ({"total": 5, "page_size": 0}, 1, 1),
    ],
)
def test_a_list_states_its_pages(provider: DashScope, more: dict[str, Any], number: int, pages: int) -> None:
    assert provider.read_list(reply({"data": [], **more})) == Page((), number, pages)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, None, TryAgain),
        (200, {}, TryAgain),
        (200, {"data": {}}, TryAgain),
        (200, {"code": "InternalError"}, TryAgain),
        (200, {"code": "InvalidApiKey"}, Denied),
        (400, {"code": "InvalidParameter"}, Denied),
        (401, {"code": "InvalidApiKey"}, Denied),
        (404, {"code": "NotFound"}, Denied),
        (401, None, TryAgain),
        (403, b"<html>", TryAgain),
        (404, b"<html>", TryAgain),
        (200, b"<html>", TryAgain),
        (429, None, TryAgain),
        (500, None, TryAgain),
    ],
)
def test_a_reply_without_a_list_means_what_it_says(
    provider: DashScope, status: int, body: Any, outcome: type
) -> None:
    assert type(provider.read_list(reply(body, status))) is outcome


# Whose task it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ({"orig_prompt": "theirs"}, True),
        ({"results": [{"url": URL}, {"orig_prompt": "theirs", "actual_prompt": "mine"}]}, True),
        ({"results": {"orig_prompt": "theirs"}}, True),
        ({"orig_prompt": "mine", "actual_prompt": "theirs"}, False),
        ({"orig_prompt": " mine,\nall  mine\t"}, False),
        ({"orig_prompt": "mine, al"}, False),
        ({"orig_prompt": "mine, al..."}, False),
        ({"orig_prompt": "mine, all mine and more"}, True),
        ({"orig_prompt": ""}, False),
        ({"orig_prompt": None, "results": None}, False),
        ({"orig_prompt": [], "results": [7, None]}, False),
        ({"actual_prompt": "theirs"}, False),
        ({}, False),
    ],
)
def test_only_the_prompt_as_it_was_given_shows_whose_task_it_is(
    provider: DashScope, output: dict[str, Any], shown: bool
) -> None:
    mine = "mine, all mine"
    body = {"output": {"task_id": ID, "task_status": "SUCCEEDED", **output}}
    task = provider.read_task(reply(body), ID)
    assert isinstance(task, Task)

    for request in (
        ImageRequest(mine, model="m"),
        VideoRequest(mine, model="m"),
        RawRequest(TO_VIDEO, {"model": "m", "input": {"prompt": mine}}),
    ):
        assert provider.contradicts(task, request) is shown


@pytest.mark.parametrize("body", [{}, {"input": "theirs"}, {"input": {"messages": []}}])
def test_a_request_without_a_prompt_is_contradicted_by_none(
    provider: DashScope, body: dict[str, Any]
) -> None:
    task = Task(task_id=ID, raw={"output": {"orig_prompt": "theirs"}})

    assert not provider.contradicts(task, RawRequest(TO_VIDEO, body))
    assert not provider.contradicts(Task(task_id=ID), ImageRequest("mine", model="m"))


@given(prompt=st.text(max_size=30), cut=st.integers(0, 30), spaces=st.sampled_from([" ", "\n", "\t  "]))
def test_a_prompt_is_the_same_with_other_spaces_and_cut(prompt: str, cut: int, spaces: str) -> None:
    shown = spaces.join(prompt.split())

    assert not is_other_prompt(shown, prompt)
    assert not is_other_prompt(" ".join(prompt.split())[:cut], prompt)


# What is known beforehand ----------------------------------------------------------------------------------


def test_the_documented_limits_are_known(provider: DashScope) -> None:
    assert provider.profile("image") == Profile(
        2.0, (10.0, 30.0), 11_400.0, 120.0, Limits(None, 30), 86_400.0
    )
    assert provider.profile("video") == Profile(2.0, (60.0, 300.0), 11_400.0, 600.0, Limits(3), 86_400.0)
    assert provider.profile("speech") == Profile(2.0, (10.0, 300.0), 11_400.0, 600.0, Limits(3), 86_400.0)
    assert (provider.name, provider.key_variables) == ("dashscope", ("DASHSCOPE_API_KEY",))
    assert (provider.queries_per_second, provider.idempotent) == (20.0, False)
    assert (provider.lists, provider.page_size) == (True, 100)


def test_documented_figures_can_be_replaced() -> None:
    provider = DashScope(image_floor=1, longest=60, image_unknown_hold=2, video_floor=4, video_unknown_hold=3)

    assert (provider.profile("image").floor, provider.profile("image").longest) == (1, 60)
    assert provider.profile("image").unknown_hold == 2
    assert (provider.profile("video").floor, provider.profile("video").unknown_hold) == (4, 3)
