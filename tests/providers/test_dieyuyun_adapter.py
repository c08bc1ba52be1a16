"""Dieyuyun's adapter: its documented answers, and each shape that the documents leave open."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from bide._wire import Call, Reply
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
    Denied,
    Dieyuyun,
    Gone,
    NotNow,
    Profile,
    Refused,
    Stopped,
    TooLate,
    TryAgain,
    Unclear,
)
from support.provider_replies import reply

ID = "task_abc123xyz"
IMAGE = ImageRequest("a cat", model="gpt-image-2")
URL = "https://cdn.dieyuyun.com/images/xxx.png"
CREATED = "2026-06-05T10:30:00Z"
STARTED = datetime(2026, 6, 5, 10, 30, tzinfo=UTC)
A, B = "https://example.com/a.png", "https://example.com/b.png"


@pytest.fixture
def provider() -> Dieyuyun:
    return Dieyuyun("https://open.dieyuyun.com")


# Requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "path", "body"),
    [
        (IMAGE, "/v1/images/generations", {"model": "gpt-image-2", "prompt": "a cat", "n": 1, "async": True}),
        (
            ImageRequest(
                "p", model="m", size="1024*768", n=3, seed=5, images=[A, B], extra={"quality": "high"}
            ),
            "/v1/images/generations",
            {
                "model": "m",
                "prompt": "p",
                "n": 3,
                "async": True,
                "size": "1024x768",
                "seed": 5,
                "images": [A, B],
                "quality": "high",
            },
        ),
        (
            VideoRequest("p", model="v"),
            "/v1/videos/generations",
            {"model": "v", "prompt": "p", "async": True},
        ),
        (
            VideoRequest(
                "p",
                model="v",
                image=A,
                last_image=B,
                size="1280x720",
                resolution="720P",
                duration=5.0,
                seed=1,
                extra={"n": 1},
            ),
            "/v1/videos/generations",
            {
                "model": "v",
                "prompt": "p",
                "async": True,
                "image": A,
                "last_image": B,
                "size": "1280x720",
                "resolution": "720P",
                "duration": 5,
                "seed": 1,
                "n": 1,
            },
        ),
        (RawRequest("/v1/x", {"model": "m", "a": [1]}), "/v1/x", {"async": True, "model": "m", "a": [1]}),
        (RawRequest("/v1/x", {"async": False}), "/v1/x", {"async": False}),
    ],
)
def test_a_request_becomes_one_flat_body(
    provider: Dieyuyun, request_: ImageRequest | VideoRequest | RawRequest, path: str, body: dict[str, Any]
) -> None:
    assert provider.create_call(request_, "ticket") == Call("POST", path, body=body)


@pytest.mark.parametrize("name", ["n", "prompt", "model", "size", "seed", "async"])
def test_extra_must_not_say_what_the_request_says(provider: Dieyuyun, name: str) -> None:
    with pytest.raises(ValueError, match=f"extra must not hold {name}: use the request's own field"):
        provider.create_call(ImageRequest("p", model="m", extra={name: "x"}), "ticket")


def test_undocumented_names_and_paths_are_settings() -> None:
    provider = Dieyuyun(
        "http://h",
        image_path="/images",
        video_path="/videos",
        query_path="/t?id={id}&full=",
        cancel_path="/t/{id}",
        images_field="image",
        first_frame_field="start",
        last_frame_field="end",
    )

    image = provider.create_call(ImageRequest("p", model="m", images=A), "ticket")
    video = provider.create_call(VideoRequest("p", model="m", image=A, last_image=B), "ticket")

    assert (image.path, image.body and image.body["image"]) == ("/images", [A])
    assert video.body is not None
    assert (video.path, video.body["start"], video.body["end"]) == ("/videos", A, B)
    assert provider.query_call(ID) == Call("GET", "/t", query={"id": ID, "full": ""})
    assert provider.cancel_call(ID) == Call("POST", f"/t/{ID}")


def test_queries_and_cancels_name_the_task_in_the_path(provider: Dieyuyun) -> None:
    assert provider.query_call(ID) == Call("GET", f"/v1/tasks/{ID}")
    assert provider.cancel_call(ID) == Call("POST", f"/v1/tasks/{ID}/cancel")


@pytest.mark.parametrize("task_id", ["../admin", "a/b", "", "a\nb", "%2e%2e"])
def test_no_id_leads_to_another_path(provider: Dieyuyun, task_id: str) -> None:
    for call in (provider.query_call, provider.cancel_call):
        with pytest.raises(ValueError, match="not a task id"):
            call(task_id)


def test_there_is_no_list(provider: Dieyuyun) -> None:
    assert (provider.lists, provider.page_size) == (False, 0)
    assert isinstance(provider.read_list(reply({"data": []})), Denied)
    with pytest.raises(NotImplementedError, match="no list"):
        provider.list_call(STARTED, STARTED, 1)


# Creates ---------------------------------------------------------------------------------------------------


def test_an_accepted_create_gives_the_task(provider: Dieyuyun) -> None:
    body = {"id": ID, "status": "queued", "progress": 0, "created_at": CREATED, "request_id": "req_def456"}

    assert provider.read_created(reply(body), IMAGE) == Accepted(
        Task(
            task_id=ID,
            request_id="req_def456",
            status=TaskStatus.QUEUED,
            raw_status="queued",
            progress=0.0,
            model="gpt-image-2",
            created_at=STARTED,
            raw=body,
        )
    )


@pytest.mark.parametrize(
    ("body", "status", "task_id"),
    [
        ({"id": ID, "status": "processing"}, TaskStatus.RUNNING, ID),
        ({"id": ID}, TaskStatus.QUEUED, ID),
        ({"id": 12345, "status": "queued"}, TaskStatus.QUEUED, "12345"),
        ({"task_id": ID, "status": "warming_up"}, TaskStatus.RUNNING, ID),
        ({"id": ID, "status": "completed", "result": {"data": [{"url": URL}]}}, TaskStatus.SUCCEEDED, ID),
        ({"id": ID, "status": "failed", "error_code": "upstream_error"}, TaskStatus.FAILED, ID),
        ({"status": "completed", "result": {"data": [{"url": URL}]}}, TaskStatus.SUCCEEDED, None),
        ({"status": "failed", "error": {"code": "upstream_error"}}, TaskStatus.FAILED, None),
        ({"created": 1749116400, "data": [{"url": URL}]}, TaskStatus.SUCCEEDED, None),
        ({"id": ID, "created": 1749116400, "data": [{"url": URL}]}, TaskStatus.SUCCEEDED, ID),
    ],
)
def test_a_create_may_answer_in_several_shapes(
    provider: Dieyuyun, body: dict[str, Any], status: TaskStatus, task_id: str | None
) -> None:
    outcome = provider.read_created(reply(body), IMAGE)

    assert isinstance(outcome, Accepted)
    assert (outcome.task.status, outcome.task.task_id, outcome.task.raw) == (status, task_id, body)
    assert outcome.task.model == "gpt-image-2"


def test_a_synchronous_answer_brings_the_result(provider: Dieyuyun) -> None:
    data = [{"b64_json": "iVBORw0KGgo=", "revised_prompt": "a fluffy cat"}]
    body = {"created": 1780655400, "data": data, "usage": {"output_tokens": 1}}

    outcome = provider.read_created(reply(body), IMAGE)

    assert isinstance(outcome, Accepted)
    task = outcome.task
    assert task.outputs == (Output(data="iVBORw0KGgo=", kind="image", revised_prompt="a fluffy cat"),)
    assert (task.raw_status, task.created_at, task.finished_at) == (None, STARTED, STARTED)
    assert task.usage == {"output_tokens": 1}


def openai(code: str | None, type_: str | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": "No way.", "type": type_}}


def flat(code: str) -> dict[str, Any]:
    return {"error_code": code, "error_message": "No way."}


CREATE_FAULTS: list[tuple[int, Any, type, str | None, type[Exception]]] = [
    (400, openai("invalid_request"), Refused, None, InvalidRequestError),
    (400, flat("invalid_request"), Refused, None, InvalidRequestError),
    (400, openai("content_policy_violation"), Refused, None, InvalidRequestError),
    (401, openai("invalid_api_key"), Refused, None, AuthenticationError),
    (402, openai(None), Refused, None, BillingError),
    (402, flat("insufficient_credit"), Refused, None, BillingError),
    (403, openai("insufficient_user_quota"), Refused, None, BillingError),
    (403, openai(None), Refused, None, AuthenticationError),
    (403, None, Unclear, None, UnexpectedReplyError),
    (403, b"<html>", Unclear, None, UnexpectedReplyError),
    (404, openai("model_not_found"), Refused, None, NotFoundError),
    (422, openai(None), Refused, None, InvalidRequestError),
    (429, openai("insufficient_quota"), Refused, None, BillingError),
    (429, openai(None, "insufficient_quota"), Refused, None, BillingError),
    (429, openai("monthly_cap", "insufficient_quota"), Refused, None, BillingError),
    (429, flat("insufficient_balance"), Refused, None, BillingError),
    (429, flat("billing_hard_limit_reached"), Refused, None, BillingError),
    (429, flat("arrears"), Refused, None, BillingError),
    (429, openai("rate_limit_exceeded"), NotNow, "rate", RateLimitError),
    (429, openai("concurrency_limit_exceeded"), NotNow, "slots", RateLimitError),
    (429, openai("overloaded"), NotNow, "capacity", RateLimitError),
    (503, openai("service_unavailable"), NotNow, "capacity", ServerError),
    (503, openai("rate_limit_exceeded"), NotNow, "capacity", ServerError),
    (503, None, Unclear, None, ServerError),
    (408, None, Unclear, None, InvalidRequestError),
    (425, None, NotNow, "capacity", InvalidRequestError),
    (500, flat("internal_error"), Unclear, None, ServerError),
    (502, flat("upstream_error"), Unclear, None, ServerError),
    (504, b"<html>", Unclear, None, ServerError),
    (308, None, Refused, None, InvalidRequestError),
    (200, openai("invalid_api_key"), Refused, None, AuthenticationError),
    (200, flat("insufficient_balance"), Refused, None, BillingError),
    (200, flat("rate_limit_exceeded"), NotNow, "rate", RateLimitError),
    (200, {"error": "something broke"}, Unclear, None, ServerError),
    (200, {"id": "req_1", **openai("invalid_size")}, Refused, None, InvalidRequestError),
]


@pytest.mark.parametrize(("status", "body", "outcome", "reason", "error"), CREATE_FAULTS)
def test_a_create_that_is_not_accepted_means_what_its_code_says(
    provider: Dieyuyun, status: int, body: Any, outcome: type, reason: str | None, error: type[Exception]
) -> None:
    read = provider.read_created(reply(body, status), IMAGE)

    assert type(read) is outcome
    assert isinstance(read, Refused | NotNow | Unclear)
    assert type(read.error) is error
    if isinstance(read, NotNow):
        assert read.reason == reason
    if isinstance(body, dict) and "error" not in body and "id" not in body:
        assert isinstance(read.error, APIError)
        assert (read.error.code, read.error.message) == (body["error_code"], "No way.")


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"slow down",
        {"message": "Too many requests"},
        openai("quota"),
        openai("busy", "rate_limit_error"),
        openai("busy", "overloaded_error"),
    ],
)
def test_a_429_without_a_known_code_is_taken_for_full_slots(provider: Dieyuyun, body: Any) -> None:
    read = provider.read_created(reply(body, 429, retry_after="1.5"), IMAGE)

    assert isinstance(read, NotNow)
    assert (read.reason, read.error.retry_after) == ("slots", 1.5)


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"<html>",
        [],
        7,
        {},
        {"status": "queued"},
        {"id": "../admin", "status": "queued"},
        {"id": "x" * 10_000, "status": "queued"},
        {"id": {"a": 1}, "status": "queued"},
        {"data": []},
        {"created": 1749116400, "data": "text"},
    ],
)
def test_a_2xx_without_a_readable_id_may_have_made_a_task(provider: Dieyuyun, body: Any) -> None:
    read = provider.read_created(reply(body), IMAGE)

    assert isinstance(read, Unclear)
    assert isinstance(read.error, UnexpectedReplyError)


def test_the_request_id_may_stand_in_a_header(provider: Dieyuyun) -> None:
    read = provider.read_created(reply(flat("invalid_request"), 400, x_request_id="req_9"), IMAGE)

    assert isinstance(read, Refused)
    assert read.error.request_id == "req_9"


# Queries ---------------------------------------------------------------------------------------------------


def read_task(provider: Dieyuyun, body: dict[str, Any]) -> Task:
    task = provider.read_task(reply(body), ID)
    assert isinstance(task, Task)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    return task


def test_a_task_in_progress(provider: Dieyuyun) -> None:
    body = {"id": ID, "status": "processing", "progress": 60, "model_code": "m", "created_at": CREATED}

    assert read_task(provider, body) == Task(
        task_id=ID,
        status=TaskStatus.RUNNING,
        raw_status="processing",
        progress=60.0,
        model="m",
        created_at=STARTED,
        raw=body,
    )


def test_a_completed_task(provider: Dieyuyun) -> None:
    body = {
        "id": ID,
        "status": "completed",
        "progress": 100,
        "model_code": "m",
        "result": {"created": 1780655424, "data": [{"url": URL, "revised_prompt": "fluffy"}]},
        "usage": {"input_tokens": 0, "output_tokens": 1},
        "created_at": CREATED,
        "completed_at": "2026-06-05T10:30:25Z",
    }

    assert read_task(provider, body) == Task(
        task_id=ID,
        status=TaskStatus.SUCCEEDED,
        raw_status="completed",
        progress=100.0,
        model="m",
        created_at=STARTED,
        finished_at=datetime(2026, 6, 5, 10, 30, 25, tzinfo=UTC),
        outputs=(Output(url=URL, kind="image", revised_prompt="fluffy"),),
        usage={"input_tokens": 0, "output_tokens": 1},
        billing=Billing.UNKNOWN,
        raw=body,
    )


def test_a_failed_task(provider: Dieyuyun) -> None:
    task = read_task(
        provider,
        {
            "id": ID,
            "status": "failed",
            "error_code": "upstream_error",
            "error_message": "The upstream provider returned an error",
            "created_at": CREATED,
            "failed_at": "2026-06-05T10:30:10Z",
        },
    )

    assert (task.status, task.progress) == (TaskStatus.FAILED, None)
    assert task.error is not None
    assert (task.error.code, task.error.retryable) == ("upstream_error", True)
    assert task.error.message == "The upstream provider returned an error"
    assert task.finished_at == datetime(2026, 6, 5, 10, 30, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("error", "code", "message", "retryable"),
    [
        ({}, None, None, None),
        (
            {"error": {"code": "content_policy_violation", "message": "m"}},
            "content_policy_violation",
            "m",
            False,
        ),
        ({"error": "it broke"}, None, "it broke", None),
        ({"error_code": "model_timeout"}, "model_timeout", None, True),
        ({"error_code": 1234, "error_message": "m"}, "1234", "m", None),
        ({"error_code": "insufficient_balance"}, "insufficient_balance", None, False),
    ],
)
def test_a_failure_keeps_the_services_code_and_message(
    provider: Dieyuyun,
    error: dict[str, Any],
    code: str | None,
    message: str | None,
    retryable: bool | None,
) -> None:
    task = read_task(provider, {"id": ID, "status": "failed", **error})

    assert task.error is not None
    assert (task.error.code, task.error.message, task.error.retryable) == (code, message, retryable)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("queued", TaskStatus.QUEUED),
        ("processing", TaskStatus.RUNNING),
        ("completed", TaskStatus.SUCCEEDED),
        ("failed", TaskStatus.FAILED),
        ("cancelled", TaskStatus.CANCELLED),
        ("canceled", TaskStatus.CANCELLED),
        ("expired", TaskStatus.EXPIRED),
        ("Upscaling", TaskStatus.RUNNING),
    ],
)
def test_a_status_word_gives_the_status(provider: Dieyuyun, word: str, status: TaskStatus) -> None:
    task = read_task(provider, {"id": ID, "status": word, "cancelled_at": CREATED})

    assert (task.status, task.raw_status, task.billing) == (status, word, Billing.UNKNOWN)
    assert task.finished_at == (STARTED if status.is_final else None)
    assert provider.knows(word) is (word != "Upscaling")


@pytest.mark.parametrize(
    ("reported", "progress"),
    [
        (60, 60.0),
        ("60%", 60.0),
        ("7.5", 7.5),
        (-5, 0.0),
        (250, 100.0),
        ("soon", None),
        (None, None),
        (True, None),
    ],
)
def test_progress_is_a_percentage_or_none(provider: Dieyuyun, reported: Any, progress: float | None) -> None:
    assert read_task(provider, {"id": ID, "status": "processing", "progress": reported}).progress == progress


@pytest.mark.parametrize(
    ("part", "output"),
    [
        ({"url": URL}, Output(url=URL, kind="image")),
        (URL, Output(url=URL, kind="image")),
        (
            {"url": "https://h/a.mp4", "mime_type": "video/mp4", "expires_at": CREATED},
            Output(url="https://h/a.mp4", kind="video", media_type="video/mp4", expires_at=STARTED),
        ),
        ({"b64_json": "QUJD"}, Output(data="QUJD", kind="image")),
        (
            {"b64_json": "data:image/webp;base64,QUJD"},
            Output(data="QUJD", kind="image", media_type="image/webp"),
        ),
        ({"url": URL, "b64_json": "QUJD"}, Output(url=URL, kind="image")),
        (
            {"url": "https://h/a?X-Oss-Date=20260605T100000Z&x-oss-expires=1800"},
            Output(
                url="https://h/a?X-Oss-Date=20260605T100000Z&x-oss-expires=1800",
                kind="image",
                expires_at=STARTED,
            ),
        ),
        ({"url": "https://h/a?X-Amz-Expires=60"}, Output(url="https://h/a?X-Amz-Expires=60", kind="image")),
        ({"url": "https://h/a?Expires=soon"}, Output(url="https://h/a?Expires=soon", kind="image")),
    ],
)
def test_a_result_is_a_url_or_the_file(provider: Dieyuyun, part: Any, output: Output) -> None:
    task = read_task(provider, {"id": ID, "status": "completed", "result": {"data": [part]}})

    assert task.outputs == (output,)


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"error": {"code": "upstream_error", "message": "m"}}, "upstream_error"),
        ({"error_code": "upstream_error"}, "upstream_error"),
        ({}, None),
        ({"b64_json": ""}, None),
        ({"b64_json": 7}, None),
        ({"url": "javascript:alert(1)"}, None),
        ({"url": "https://h/\u202e\n"}, None),
        ({"url": "https://h:99999/"}, None),
        ({"url": "https://h/" + "a" * 20_000}, None),
        (None, None),
        (7, None),
    ],
)
def test_a_part_without_a_file_has_an_error(provider: Dieyuyun, part: Any, code: str | None) -> None:
    task = read_task(provider, {"id": ID, "status": "completed", "result": {"data": [{"url": URL}, part]}})

    made, failed = task.outputs
    assert made.url == URL
    assert (failed.url, failed.data) == (None, None)
    assert failed.error is not None
    assert failed.error.code == code


@pytest.mark.parametrize(
    "when",
    ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", 1e300, -5, "20260605", "soon", "", None, [], True],
)
def test_an_impossible_time_is_none(provider: Dieyuyun, when: Any) -> None:
    task = read_task(provider, {"id": ID, "status": "completed", "created_at": when, "completed_at": when})

    assert (task.created_at, task.finished_at) == (None, None)


@pytest.mark.parametrize(
    "when", [CREATED, "2026-06-05 10:30", "2026-06-05T18:30:00+08:00", 1780655400, "1780655400"]
)
def test_a_time_may_be_written_in_several_ways(provider: Dieyuyun, when: Any) -> None:
    assert read_task(provider, {"id": ID, "status": "queued", "created_at": when}).created_at == STARTED


@pytest.mark.parametrize(
    ("status", "body", "outcome", "error"),
    [
        (404, openai("task_not_found"), Gone, NotFoundError),
        (410, flat("task_expired"), Gone, NotFoundError),
        (200, openai("task_not_found"), Gone, NotFoundError),
        (401, openai("invalid_api_key"), Denied, AuthenticationError),
        (402, flat("insufficient_credit"), Denied, BillingError),
        (403, openai(None), Denied, AuthenticationError),
        (400, {"message": "No way."}, Denied, InvalidRequestError),
        (401, b"<html>", TryAgain, UnexpectedReplyError),
        (403, b"<html>", TryAgain, UnexpectedReplyError),
        (404, b"<html>", TryAgain, UnexpectedReplyError),
        (404, None, TryAgain, UnexpectedReplyError),
        (404, {"status": 404, "error": "Not Found"}, TryAgain, UnexpectedReplyError),
        (408, None, TryAgain, InvalidRequestError),
        (425, None, TryAgain, InvalidRequestError),
        (429, openai("rate_limit_exceeded"), TryAgain, RateLimitError),
        (500, None, TryAgain, ServerError),
        (503, b"<html>", TryAgain, ServerError),
        (200, flat("internal_error"), TryAgain, ServerError),
        (200, None, TryAgain, UnexpectedReplyError),
        (200, {"id": ID}, TryAgain, UnexpectedReplyError),
        (200, {"id": ID, "status": 1.5}, TryAgain, UnexpectedReplyError),
        (200, {"id": "task_other", "status": "completed"}, TryAgain, UnexpectedReplyError),
    ],
)
def test_a_poll_that_shows_no_task_means_what_its_reply_says(
    provider: Dieyuyun, status: int, body: Any, outcome: type, error: type[Exception]
) -> None:
    read = provider.read_task(reply(body, status), ID)

    assert type(read) is outcome
    assert isinstance(read, Gone | TryAgain | Denied)
    assert type(read.error) is error


# Cancels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {"id": ID, "status": "cancelled"}, Stopped),
        (200, {"id": ID, "status": "processing"}, Stopped),
        (200, {"id": ID, "status": "completed"}, TooLate),
        (200, {"id": ID, "status": "failed", "error_code": "upstream_error"}, TooLate),
        (200, {"id": ID, "status": "expired"}, TooLate),
        (200, None, Stopped),
        (200, {}, Stopped),
        (200, b"OK", Stopped),
        (204, None, Stopped),
        (200, flat("internal_error"), TryAgain),
        (409, openai("invalid_task_status"), TooLate),
        (409, {"message": "already completed"}, TooLate),
        (409, None, TryAgain),
        (200, b"<html>Log in to the network</html>", TryAgain),
        (400, flat("task_already_completed"), TooLate),
        (422, {"message": "Task cannot be cancelled"}, TooLate),
        (400, openai("invalid_request"), Denied),
        (401, openai("invalid_api_key"), Denied),
        (404, openai("task_not_found"), Gone),
        (410, flat("task_expired"), Gone),
        (401, None, TryAgain),
        (404, None, TryAgain),
        (404, b"<html>", TryAgain),
        (429, None, TryAgain),
        (408, None, TryAgain),
        (500, None, TryAgain),
    ],
)
def test_a_cancel_means_what_its_answer_says(
    provider: Dieyuyun, status: int, body: Any, outcome: type
) -> None:
    assert type(provider.read_cancelled(reply(body, status), ID)) is outcome


# What is known beforehand ----------------------------------------------------------------------------------


def test_what_the_documents_say_is_known(provider: Dieyuyun) -> None:
    assert provider.profile("image") == Profile(3.0, (10.0, 30.0), 3600.0, 120.0, Limits())
    assert provider.profile("video") == Profile(3.0, (60.0, 300.0), 10_800.0, 600.0, Limits())
    assert provider.profile("speech") == Profile(3.0, (10.0, 300.0), 10_800.0, 600.0, Limits())
    assert (provider.name, provider.key_variables) == ("dieyuyun", ("DIEYUYUN_API_KEY",))
    assert (provider.queries_per_second, provider.idempotent) == (None, False)


@pytest.mark.parametrize("code", [0, "0", 200, "ok", "Success"])
def test_a_code_that_says_all_is_well_does_not_lose_the_id(code: object) -> None:
    body = json.dumps({"id": "task_1", "code": code, "message": "ok"}).encode()

    outcome = Dieyuyun().read_created(Reply(200, {}, body), ImageRequest("a cat", model="m"))

    assert isinstance(outcome, Accepted)
    assert outcome.task.task_id == "task_1"
