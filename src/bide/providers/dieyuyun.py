"""Dieyuyun: image and video tasks, by an API in OpenAI's style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from bide._text import excerpt
from bide._wire import Call, is_task_id
from bide.errors import APIError, InvalidRequestError
from bide.models import Billing, ErrorDetail, ImageRequest, Output, RawRequest, Task, TaskStatus, VideoRequest
from bide.providers import _calls as calls
from bide.providers import _replies as read
from bide.providers._base import Accepted, Denied, Profile, Stopped, TooLate, TryAgain, Unclear
from bide.providers._refusals import FaultReader, has_error, is_acknowledgement, object_in

if TYPE_CHECKING:
    from datetime import datetime

    from bide._wire import Reply
    from bide.models import Request
    from bide.providers._base import CancelOutcome, CreateOutcome, ListOutcome, QueryOutcome
    from bide.providers._refusals import Codes

_STATUSES = {
    "queued": TaskStatus.QUEUED,
    "processing": TaskStatus.RUNNING,
    "completed": TaskStatus.SUCCEEDED,
    "failed": TaskStatus.FAILED,
    "cancelled": TaskStatus.CANCELLED,
    "canceled": TaskStatus.CANCELLED,
    "expired": TaskStatus.EXPIRED,
}

# The service publishes no table of codes. These are its one documented code and the usual codes of OpenAI's style.
_CODES: Codes = {
    "upstreamerror": ("outage", 502),
    "internalerror": ("outage", 500),
    "internalservererror": ("outage", 500),
    "servererror": ("outage", 500),
    "timeout": ("outage", 504),
    "serviceunavailable": ("capacity", 503),
    "overloaded": ("capacity", 503),
    "overloadederror": ("capacity", 503),
    "serverbusy": ("capacity", 503),
    "ratelimitexceeded": ("rate", 429),
    "ratelimiterror": ("rate", 429),
    "ratelimitreached": ("rate", 429),
    "concurrencylimitexceeded": ("slots", 429),
    "concurrencylimitreached": ("slots", 429),
    "toomanytasks": ("slots", 429),
    "insufficientquota": ("billing", 429),
    "insufficientuserquota": ("billing", 403),
    "insufficientbalance": ("billing", 402),
    "insufficientcredit": ("billing", 402),
    "insufficientcredits": ("billing", 402),
    "paymentrequired": ("billing", 402),
    "billinghardlimitreached": ("billing", 429),
    "billingnotactive": ("billing", 429),
    "arrears": ("billing", 402),
    "arrearage": ("billing", 402),
    "invalidapikey": ("refused", 401),
    "missingapikey": ("refused", 401),
    "authenticationerror": ("refused", 401),
    "permissiondenied": ("refused", 403),
    "invalidrequest": ("refused", 400),
    "invalidrequesterror": ("refused", 400),
    "invalidparameter": ("refused", 400),
    "invalidprompt": ("refused", 400),
    "invalidsize": ("refused", 400),
    "contentpolicyviolation": ("refused", 400),
    "contentfilter": ("refused", 400),
    "moderationblocked": ("refused", 400),
    "modelnotfound": ("refused", 404),
    "tasknotfound": ("refused", 404),
}
_FAULTS = FaultReader(title="Dieyuyun", key_variable="DIEYUYUN_API_KEY", codes=_CODES)

_TOO_LATE_WORDS = ("cancel", "status", "state", "complet", "finish", "final")
"""Parts of the messages with which a service says that a cancel is too late. No document lists these messages."""


@frozen(init=False)
class Dieyuyun:
    """Dieyuyun, at its own address or at any other.

    Each point that the service's documents leave open is an argument. The base URL is *base_url*, else
    `$DIEYUYUN_BASE_URL`, else "https://open.dieyuyun.com". A request's `extra` is merged into the body unchanged.

    Args:
        base_url: address of the API, without "/v1".
        image_path: path of a create for images below the base URL; *video_path*: the same for videos.
        query_path: path of a query below the base URL, with "{id}" once; *cancel_path*: the same for a cancel.
        images_field: the field of the body for `ImageRequest.images`.
        first_frame_field: the field of the body for `VideoRequest.image`; *last_frame_field*: for `last_image`.
        image_floor: shortest time between two polls of an image task, in seconds; *video_floor*: the same for a video
            task. The documents advise 3 to 5.
        image_longest: seconds after which an image task's slot counts as free; *video_longest*: the same for a video
            task. The documents name no such time.
        image_unknown_hold: seconds for which an image create with an unknown outcome occupies a slot;
            *video_unknown_hold*: the same for a video create.

    Raises:
        TypeError: the base URL is not a str.
        ValueError: the base URL or a path is invalid.
    """

    base_url: str
    image_path: str = field(validator=calls.check_path)
    video_path: str = field(validator=calls.check_path)
    query_path: str = field(validator=calls.check_path)
    cancel_path: str = field(validator=calls.check_path)
    images_field: str
    first_frame_field: str
    last_frame_field: str
    image_floor: float
    video_floor: float
    image_longest: float
    video_longest: float
    image_unknown_hold: float
    video_unknown_hold: float

    def __init__(
        self,
        base_url: str | None = None,
        *,
        image_path: str = "/v1/images/generations",
        video_path: str = "/v1/videos/generations",
        query_path: str = "/v1/tasks/{id}",
        cancel_path: str = "/v1/tasks/{id}/cancel",
        images_field: str = "images",
        first_frame_field: str = "image",
        last_frame_field: str = "last_image",
        image_floor: float = 3.0,
        video_floor: float = 3.0,
        image_longest: float = 3600.0,
        video_longest: float = 3 * 3600.0,
        image_unknown_hold: float = 120.0,
        video_unknown_hold: float = 600.0,
    ) -> None:
        self.__attrs_init__(
            base_url=calls.choose_base_url(base_url, ("DIEYUYUN_BASE_URL",), "https://open.dieyuyun.com"),
            image_path=image_path,
            video_path=video_path,
            query_path=query_path,
            cancel_path=cancel_path,
            images_field=images_field,
            first_frame_field=first_frame_field,
            last_frame_field=last_frame_field,
            image_floor=image_floor,
            video_floor=video_floor,
            image_longest=image_longest,
            video_longest=video_longest,
            image_unknown_hold=image_unknown_hold,
            video_unknown_hold=video_unknown_hold,
        )

    # Properties, since not every type checker accepts a ClassVar as a property of `Provider`.

    @property
    def name(self) -> str:
        return "dieyuyun"

    @property
    def key_variables(self) -> tuple[str, ...]:
        return ("DIEYUYUN_API_KEY",)

    @property
    def queries_per_second(self) -> float | None:
        return None

    @property
    def idempotent(self) -> bool:
        return False

    @property
    def lists(self) -> bool:
        return False

    @property
    def page_size(self) -> int:
        return 0

    def profile(self, kind: str) -> Profile:
        """Images take 10 to 30 s, videos 1 to 5 minutes, other kinds 10 s to 5 minutes.

        Other kinds have the floor, the longest time and the hold of videos.
        """
        if kind == "image":
            return Profile(
                floor=self.image_floor,
                typical=(10.0, 30.0),
                longest=self.image_longest,
                unknown_hold=self.image_unknown_hold,
            )
        return Profile(
            floor=self.video_floor,
            typical=(60.0, 300.0) if kind == "video" else (10.0, 300.0),
            longest=self.video_longest,
            unknown_hold=self.video_unknown_hold,
        )

    def knows(self, word: str) -> bool:
        """Whether the documents name *word* as a task status."""
        return word.lower() in _STATUSES

    # Calls -------------------------------------------------------------------------------------------------

    def create_call(self, request: Request, ticket: str) -> Call:  # noqa: ARG002 - Dieyuyun accepts no idempotency key
        """The call that makes the task. The body of a `RawRequest` may set `"async"` itself."""
        if isinstance(request, RawRequest):
            return Call("POST", request.path, body={"async": True, **request.body})
        own = self._video(request) if isinstance(request, VideoRequest) else self._image(request)
        path = self.video_path if isinstance(request, VideoRequest) else self.image_path
        return Call("POST", path, body=calls.merge(own, request.extra, "extra", calls.field_names(request)))

    def _image(self, request: ImageRequest) -> dict[str, Any]:
        # The body always has `n`: no document says how many images a model makes and bills without it.
        own = {"model": request.model, "prompt": request.prompt, "n": request.n, "async": True}
        more = calls.without_none(size=calls.format_size(request.size, "x"), seed=request.seed)
        return own | more | ({self.images_field: list(request.images)} if request.images else {})

    def _video(self, request: VideoRequest) -> dict[str, Any]:
        own = {"model": request.model, "prompt": request.prompt, "async": True}
        frames = {self.first_frame_field: request.image, self.last_frame_field: request.last_image}
        more = calls.without_none(
            **frames,
            size=calls.format_size(request.size, "x"),
            resolution=request.resolution,
            duration=calls.int_if_whole(request.duration),
            seed=request.seed,
        )
        return own | more

    def query_call(self, task_id: str) -> Call:
        """The call that polls a task."""
        return calls.task_call("GET", self.query_path, task_id)

    def contradicts(self, task: Task, request: Request) -> bool:  # noqa: ARG002 - no answer shows the prompt
        """Whether *task* shows another prompt than that of *request*: the service shows none."""
        return False

    def cancel_call(self, task_id: str) -> Call:
        """The call that cancels a task. The service accepts it while the task is `queued` or `processing`."""
        return calls.task_call("POST", self.cancel_path, task_id)

    def list_call(self, since: datetime, until: datetime, page: int, model: str | None = None) -> Call:
        """Dieyuyun has no list of tasks: `lists` is False.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Dieyuyun documents no list of tasks")

    # Replies -----------------------------------------------------------------------------------------------

    def read_created(self, reply: Reply, request: Request) -> CreateOutcome:
        """What the reply to `create_call` means. The task may be final, or the reply may be the result itself."""
        data = object_in(reply)
        if 200 <= reply.status < 300:
            if data is None:
                return Unclear(reply.unexpected("not a JSON object"))
            task = _created_task(data, request)
            if task is not None:
                return Accepted(task)
            if not has_error(data):
                return Unclear(reply.unexpected("neither a usable id nor a result"))
        return _FAULTS.read_refused_create(reply, data)

    def read_task(self, reply: Reply, task_id: str) -> QueryOutcome:
        """What the reply to `query_call` means."""
        data = object_in(reply)
        if not 200 <= reply.status < 300:
            return _FAULTS.read_failure(reply, data, "query")
        if data is None:
            return TryAgain(reply.unexpected("not a JSON object"))
        if read.text(data, "status") is None:
            if has_error(data):
                return _FAULTS.read_failure(reply, data, "query")
            return TryAgain(reply.unexpected("no status"))
        if read.text(data, "id", "task_id") not in (None, task_id):
            return TryAgain(reply.unexpected(f"it is about another task than {task_id}"))
        return _task(data, task_id)

    def read_cancelled(self, reply: Reply, task_id: str) -> CancelOutcome:  # noqa: ARG002 - the reply may name no task
        """What the reply to `cancel_call` means. The service may answer with a task or with an empty body."""
        data = object_in(reply)
        if 200 <= reply.status < 300:
            status = _STATUSES.get((read.text(data, "status") or "").lower())
            if status is not None and status.is_final and status is not TaskStatus.CANCELLED:
                return TooLate()
            if status is not None or not (data and has_error(data)):
                is_answer = is_acknowledgement(reply)
                return Stopped() if is_answer else TryAgain(reply.unexpected("neither a task nor empty"))
        outcome = _FAULTS.read_failure(reply, data, "cancel")
        return TooLate() if isinstance(outcome, Denied) and _is_too_late(outcome.error) else outcome

    def read_list(self, reply: Reply) -> ListOutcome:
        """Always `Denied`: Dieyuyun has no list of tasks."""
        return Denied(InvalidRequestError("Dieyuyun documents no list of tasks", status_code=reply.status))


def _is_too_late(error: APIError) -> bool:
    if error.status_code == 409:
        return True
    words = f"{error.code} {error.message}".lower()
    return error.status_code in (400, 422) and any(part in words for part in _TOO_LATE_WORDS)


# Tasks -----------------------------------------------------------------------------------------------------


def _created_task(data: Mapping[str, Any], request: Request) -> Task | None:
    """The task in the reply to a create, or None. A task without an id must be final."""
    task_id, word = read.text(data, "id", "task_id"), read.text(data, "status")
    if task_id is not None and not is_task_id(task_id):
        return None
    if word is None and read.sequence(data, "data") and not has_error(data):
        # A synchronous reply is only the result. A reply about a task has the result in its field "result".
        task = _task({**data, "status": "completed", "result": data}, task_id)
        task = evolve(task, raw_status=None, raw=data)
    elif word is None and has_error(data):
        return None
    else:
        task = _task(data, task_id)
    if task_id is None and not task.status.is_final:
        return None
    request_id = read.short_text(data, "request_id", limit=100)
    return evolve(task, model=task.model or request.model, request_id=request_id)


def _task(data: Mapping[str, Any], task_id: str | None) -> Task:
    word = read.text(data, "status") or "queued"
    status = _STATUSES.get(word.lower(), TaskStatus.RUNNING)
    result = read.mapping(data, "result")
    progress, usage = read.number(data, "progress"), data.get("usage")
    ended = read.moment(data, "completed_at", "failed_at", "cancelled_at", "canceled_at", "finished_at")
    return Task(
        task_id=task_id,
        status=status,
        raw_status=excerpt(word, 60),
        progress=None if progress is None else min(100.0, max(0.0, progress)),
        model=read.short_text(data, "model_code", "model", limit=200),
        created_at=read.moment(data, "created_at", "created"),
        started_at=read.moment(data, "started_at"),
        finished_at=(ended or read.moment(result, "created")) if status.is_final else None,
        outputs=_outputs(result) if status is TaskStatus.SUCCEEDED else (),
        usage=usage if isinstance(usage, dict) else None,
        error=_error_of(data) if status is TaskStatus.FAILED else None,
        billing=Billing.UNKNOWN,
        raw=data,
    )


def _outputs(result: Mapping[str, Any]) -> tuple[Output, ...]:
    until = read.moment(result, "expires_at")
    return read.without_duplicates(_output(part, until) for part in read.sequence(result, "data"))


def _output(part: object, until: datetime | None) -> Output:
    """One entry of `data`: a URL, a file as base64 text, or the error of its part."""
    prompt = read.text(part, "revised_prompt")
    url, inline = (part.get("url"), part.get("b64_json")) if isinstance(part, Mapping) else (part, None)
    if url is None and isinstance(inline, str) and inline:
        return read.inline_output(inline, "image", revised_prompt=prompt)
    if url is None:
        return Output(kind="image", error=_error_of(part))
    media_type = read.short_text(part, "media_type", "mime_type", "content_type", limit=60)
    until = read.moment(part, "expires_at") or until
    return read.file_output(url, "image", expires_at=until, media_type=media_type, revised_prompt=prompt)


def _error_of(data: object) -> ErrorDetail:
    """Why a task or a part failed, at the top level or in OpenAI's form; code and message may be missing."""
    error = read.mapping(data, "error")
    code = read.text(data, "error_code") or read.text(error, "code", "type") or read.text(data, "code")
    message = read.text(data, "error_message", "error", "message") or read.text(error, "message")
    return read.error_detail(code, message, retryable=_FAULTS.is_retryable(code))
