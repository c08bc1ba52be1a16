"""The values that users hold: requests, tasks, outputs, limits, deadlines. All are frozen and hold plain JSON data."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import attrs
from attrs import evolve, field, frozen

from bide._validators import (
    json_copy,
    optional_text,
    path_below_base,
    positive,
    source,
    sources,
    text,
    tuple_of_texts,
    unlimited_or,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Billing",
    "Deadlines",
    "ErrorDetail",
    "ImageRequest",
    "Limits",
    "Output",
    "RawRequest",
    "Request",
    "SavedFile",
    "Task",
    "TaskStatus",
    "VideoRequest",
    "request_from_dict",
]


class TaskStatus(StrEnum):
    """The status of a submission. The last six are final.

    A status of the service that bide does not know counts as `running`; `Task.raw_status` keeps the service's word.
    """

    WAITING = "waiting"
    """In our queue: its create has not been sent."""
    SUBMITTING = "submitting"
    """The create call is being sent, or bide is finding out its outcome."""
    QUEUED = "queued"
    """In the service's queue."""
    RUNNING = "running"
    """The service is working on it."""
    SUCCEEDED = "succeeded"
    """It has ended with a result."""
    FAILED = "failed"
    """The service reports that it failed."""
    CANCELLED = "cancelled"
    """It was withdrawn before its create was sent, or cancelled at the service."""
    EXPIRED = "expired"
    """The service no longer knows the task, or has removed its result."""
    REJECTED = "rejected"
    """The service refused the create and made no task."""
    UNKNOWN = "unknown"
    """The service may have received the create, and bide cannot find out whether it did."""

    @property
    def is_final(self) -> bool:
        """Whether no other status can follow this one."""
        return self in _FINAL

    @property
    def is_accepted(self) -> bool:
        """Whether the service has accepted the task, which has not ended (`queued` or `running`)."""
        return self in (TaskStatus.QUEUED, TaskStatus.RUNNING)


_FINAL = frozenset(
    {
        TaskStatus.SUCCEEDED,
        TaskStatus.FAILED,
        TaskStatus.CANCELLED,
        TaskStatus.EXPIRED,
        TaskStatus.REJECTED,
        TaskStatus.UNKNOWN,
    }
)


class Billing(StrEnum):
    """What the service's documents say about the cost of a task in its present status.

    Source: the DashScope table "Task lifecycle states". Dieyuyun publishes no such table: `unknown`.
    """

    NOT_YET = "not_yet"
    """The task costs nothing so far."""
    ON_SUCCESS = "on_success"
    """The task costs its price if it succeeds."""
    FULL = "full"
    """The task costs its full price."""
    NONE = "none"
    """The task costs nothing."""
    PARTIAL = "partial"
    """The task may cost a part of its price."""
    UNKNOWN = "unknown"
    """The documents do not say."""


@frozen
class ErrorDetail:
    """Why a task, or one output of it, has no result, as plain data.

    Attributes:
        code: the service's code, or None if it gives none.
        message: the service's message, or bide's if the error does not come from the service; or None.
        type: the name of the error class that a wait for this submission raises, or None if the task itself failed.
        text: the text of that error, with advice; None if `code` and `message` say everything.
        status_code: the HTTP status, if the service refused the create.
        retryable: True for an outage, False for a bad or refused prompt, None if the code does not say.
    """

    code: str | None = None
    message: str | None = None
    type: str | None = None
    text: str | None = None
    status_code: int | None = None
    retryable: bool | None = None


@frozen
class Output:
    """One result of a task: a file at a URL, a file inside the reply, or the error of a part that failed.

    Attributes:
        url: where to fetch the file. It is signed and works for a short time: fetch it soon and never log it.
        data: the file itself as base64 text, if the reply held it.
        kind: "image", "video", "audio" or "file".
        media_type: such as "image/png", if the service names it.
        expires_at: when the URL stops working, UTC, if known.
        revised_prompt: the prompt that the service made from yours.
        error: why this part failed. `url` and `data` are None then.
    """

    url: str | None = field(default=None, repr=lambda url: repr(_without_query(url)))
    data: str | None = field(
        default=None, repr=lambda data: "None" if data is None else f"<{len(data)} chars>"
    )
    kind: str = "file"
    media_type: str | None = None
    expires_at: datetime | None = None
    revised_prompt: str | None = None
    error: ErrorDetail | None = None


def _without_query(url: str | None) -> str | None:
    if url is None or "?" not in url:
        return url
    return url.partition("?")[0] + "?…"


NO_OUTPUT = "NoOutput"
"""The code of the error of a task that has succeeded without any output."""


@frozen
class Task:
    """A snapshot of a submission at one moment. It never changes; a newer state is a new snapshot.

    Attributes:
        ticket: our id of the submission, known from the start.
        task_id: the service's id of the task, or None until the create is accepted.
        request_id: the service's id of the exchange that made the task; its support team needs it.
        status: the status of the submission.
        raw_status: the service's own word for the status, or None.
        progress: percent from 0 to 100, or None if the service reports none. It never decreases.
        eta: seconds from this snapshot until half of such tasks have ended. It is learned from earlier tasks, or taken
            from the documented range while no task has ended. A new eta causes no event: read `handle.task.eta`.
            None if the task has ended, has not been polled yet, or is followed by another process.
        model: the name of the model, or None if it is not known.
        created_at: when the service says that it made the task, UTC; likewise `started_at` and `finished_at`.
        outputs: the results of a `succeeded` task; a part that failed has an `error`.
        usage: what the service counted, unchanged.
        error: why there is no result, or why a `succeeded` task has no outputs.
        billing: what the service's documents say about the cost at this status.
        raw: the service's last answer, unchanged.
    """

    ticket: str = ""
    task_id: str | None = None
    request_id: str | None = None
    status: TaskStatus = TaskStatus.WAITING
    raw_status: str | None = None
    progress: float | None = None
    eta: float | None = None
    model: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outputs: tuple[Output, ...] = ()
    usage: Mapping[str, Any] | None = None
    error: ErrorDetail | None = None
    billing: Billing = Billing.UNKNOWN
    raw: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def awaits_outputs(self) -> bool:
        """Whether the service has reported success, but no output yet. The status is `running` then, and the slot is
        free. bide polls the task for up to 60 s more, and then it is `succeeded` without outputs, as `error` says."""
        code = None if self.error is None else self.error.code
        return self.status is TaskStatus.RUNNING and code == NO_OUTPUT

    def to_dict(self) -> dict[str, Any]:
        """This snapshot as plain JSON data; `Task.from_dict` reads it back."""
        # Not by `attrs.asdict`, which takes six times as long: a durable ledger needs this at each step.
        plain = _plain_fields(self, "created_at", "started_at", "finished_at")
        plain["status"], plain["billing"] = self.status.value, self.billing.value
        plain["outputs"] = [_plain_fields(each, "expires_at") for each in self.outputs]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The snapshot from which `to_dict` made *plain*. Keys that this version does not know are ignored.

        Raises:
            ValueError: *plain* is not such a snapshot.
        """
        try:
            values = _known_fields(cls, plain)
            values["status"] = TaskStatus(values["status"])
            values["billing"] = Billing(values.get("billing", Billing.UNKNOWN))
            for name in ("created_at", "started_at", "finished_at"):
                values[name] = _parse_time(values.get(name))
            values["error"] = _read_error(values.get("error"))
            values["outputs"] = tuple(_read_output(each) for each in values.get("outputs") or ())
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"not a task's plain form: {type(fault).__name__}: {fault}") from fault

    def merge(self, newer: Task) -> Task:
        """The next snapshot, with what the service's answer *newer* shows.

        A value that *newer* lacks is kept, progress never decreases, and a final snapshot never changes.
        """
        if self.status.is_final:
            return self
        progress = newer.progress
        if progress is None or (self.progress is not None and self.progress > progress):
            progress = self.progress
        return evolve(
            newer,
            ticket=self.ticket,
            task_id=self.task_id or newer.task_id,
            request_id=self.request_id or newer.request_id,
            progress=progress,
            eta=None if newer.status.is_final else newer.eta,
            model=newer.model or self.model,
            created_at=newer.created_at or self.created_at,
            started_at=newer.started_at or self.started_at,
        )

    def differs(self, other: Task) -> bool:
        """Whether the step from this snapshot to *other* is an event: status, progress, outputs or error differ."""
        return (
            self.status is not other.status
            or self.progress != other.progress
            or self.outputs != other.outputs
            or self.error != other.error
        )


def _plain_fields(value: Task | Output | ErrorDetail, *moments: str) -> dict[str, Any]:
    """The fields of *value* by their names, with the times named in *moments* as text."""
    plain = {name: getattr(value, name) for name in _FIELD_NAMES[type(value)]}
    for name in moments:
        if plain[name] is not None:
            plain[name] = plain[name].isoformat()
    if plain.get("error") is not None:
        plain["error"] = _plain_fields(plain["error"])
    return plain


_FIELD_NAMES = {cls: tuple(each.name for each in attrs.fields(cls)) for cls in (Task, Output, ErrorDetail)}


def _parse_time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def _known_fields(cls: type[attrs.AttrsInstance], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of *plain* that *cls* has. A later version of bide may have written more."""
    names = {each.name for each in attrs.fields(cls)}
    return {name: value for name, value in plain.items() if name in names}


def _read_error(value: Mapping[str, Any] | None) -> ErrorDetail | None:
    return None if value is None else ErrorDetail(**_known_fields(ErrorDetail, value))


def _read_output(value: Mapping[str, Any]) -> Output:
    values = _known_fields(Output, value)
    return Output(
        **{
            **values,
            "expires_at": _parse_time(values.get("expires_at")),
            "error": _read_error(values.get("error")),
        }
    )


@frozen
class SavedFile:
    """A result file on disk. It can be passed wherever Python accepts a path.

    Attributes:
        path: the file's path.
        size: its length in bytes.
        sha256: digest of its bytes, 64 hexadecimal digits; None if a version of bide without digests saved it.
        media_type: from the file's first bytes, else as its server states it, else None.
    """

    path: str
    size: int
    sha256: str | None = None
    media_type: str | None = None

    def __fspath__(self) -> str:
        return self.path


# Requests ------------------------------------------------------------------------------------------------


@frozen
class ImageRequest:
    """A request for images, with the same meaning on every provider.

    Args:
        prompt: what to show.
        model: the service's name of the model. It has no default, since it sets the price.
        size: "1024x1024" or "1024*1024"; the provider writes it as its service expects.
        n: how many images, from 1 to 100. It is always sent, since some models make and bill 4 without it.
        images: URLs of images to start from.
        seed: for results that can be repeated, if the model supports it.
        extra: further fields of the service, sent unchanged.

    Raises:
        TypeError, ValueError: a field is invalid. Nothing has been sent.
    """

    prompt: str = field(validator=text)
    model: str = field(validator=text, kw_only=True)
    size: str | None = field(default=None, validator=optional_text, kw_only=True)
    n: int = field(default=1, validator=whole_number(1, 100, optional=False), kw_only=True)
    images: tuple[str, ...] = field(default=(), converter=tuple_of_texts, validator=sources, kw_only=True)
    seed: int | None = field(default=None, validator=whole_number(0, 2**63 - 1), kw_only=True)
    extra: Mapping[str, Any] = field(factory=dict, converter=json_copy, hash=False, kw_only=True)

    @property
    def kind(self) -> str:
        """The kind of work, for limits and pace: "image"."""
        return "image"


@frozen
class VideoRequest:
    """A request for a video, with the same meaning on every provider.

    Args:
        prompt: what to show.
        model: the service's name of the model. It has no default, since it sets the price.
        image: URL of the first frame.
        last_image: URL of the last frame.
        size: "1280x720" or "1280*720"; the provider writes it as its service expects.
        resolution: such as "720P", for models that take this in place of a size.
        duration: length of the video in seconds.
        seed: for results that can be repeated, if the model supports it.
        extra: further fields of the service, sent unchanged.

    Raises:
        TypeError, ValueError: a field is invalid. Nothing has been sent.
    """

    prompt: str = field(validator=text)
    model: str = field(validator=text, kw_only=True)
    image: str | None = field(default=None, validator=source, kw_only=True)
    last_image: str | None = field(default=None, validator=source, kw_only=True)
    size: str | None = field(default=None, validator=optional_text, kw_only=True)
    resolution: str | None = field(default=None, validator=optional_text, kw_only=True)
    duration: float | None = field(default=None, validator=positive, kw_only=True)
    seed: int | None = field(default=None, validator=whole_number(0, 2**63 - 1), kw_only=True)
    extra: Mapping[str, Any] = field(factory=dict, converter=json_copy, hash=False, kw_only=True)

    @property
    def kind(self) -> str:
        """The kind of work, for limits and pace: "video"."""
        return "video"


@frozen
class RawRequest:
    """A create call with your own body, to any endpoint of the service.

    Args:
        path: the path below the provider's base URL, like "/services/aigc/video-generation/video-synthesis".
        body: the JSON object to send. The provider adds what makes the call asynchronous.
        kind: the kind of work, for limits and pace: "image", "video" or a word of your own.

    Raises:
        TypeError, ValueError: a field is invalid. Nothing has been sent.
    """

    path: str = field(validator=path_below_base)
    body: Mapping[str, Any] = field(converter=json_copy, hash=False)
    kind: str = field(default="image", validator=text)

    @property
    def model(self) -> str | None:
        """The model that the body names, or None."""
        model = self.body.get("model")
        return model if isinstance(model, str) else None


Request: TypeAlias = ImageRequest | VideoRequest | RawRequest
"""What `Client.submit` accepts."""

_REQUESTS: Mapping[str, type[ImageRequest | VideoRequest | RawRequest]] = MappingProxyType(
    {"image": ImageRequest, "video": VideoRequest, "raw": RawRequest}
)


def request_to_dict(request: Request) -> dict[str, Any]:
    """*request* as plain JSON data for the ledger; `request_from_dict` reads it back."""
    name = next(name for name, cls in _REQUESTS.items() if isinstance(request, cls))
    plain = attrs.asdict(request, recurse=False)
    if "images" in plain:
        plain["images"] = list(plain["images"])
    return {"type": name, **plain}


def request_from_dict(plain: Mapping[str, Any]) -> Request:
    """The request from which `request_to_dict` made *plain*.

    Raises:
        ValueError: *plain* is not such a request.
    """
    values = dict(plain)
    kind = values.pop("type", None)
    cls = _REQUESTS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(
            f"not a request's plain form: type is {plain.get('type')!r}, expected one of {list(_REQUESTS)}"
        )
    try:
        return cls(**values)
    except TypeError as fault:
        raise ValueError(f"not a request's plain form: {fault}") from fault


# Limits --------------------------------------------------------------------------------------------------


@frozen
class Limits:
    """The limits of one key for one kind of work. None is the limit that the service documents, if it documents one;
    `math.inf` is no limit.

    Args:
        concurrency: how many tasks may be in flight at once, each from its create to its end: a whole number, or
            `math.inf`.
        creates_per_minute: how many create calls may be sent in any 60 seconds.

    Raises:
        TypeError, ValueError: a limit is not a number of this kind, or not above 0.
    """

    concurrency: float | None = field(default=None, validator=unlimited_or(whole_number(1, 1_000_000)))
    creates_per_minute: float | None = field(default=None, validator=unlimited_or(positive))

    def over(self, documented: Limits) -> Limits:
        """These limits, with the *documented* ones where these are None."""
        return Limits(
            documented.concurrency if self.concurrency is None else self.concurrency,
            documented.creates_per_minute if self.creates_per_minute is None else self.creates_per_minute,
        )


@frozen
class Deadlines:
    """How long a submission may stay in each of three phases, in seconds; None is no limit.

    When a deadline passes, the waiters get a `WaitTimeoutError`. The deadline for `waiting` also withdraws the request:
    it has not been sent. The other two change nothing at the service: the task goes on, and bide goes on polling it.

    Args:
        waiting: in our queue, until a slot is free.
        queued: in the service's queue, while the service is busy.
        running: while the service works on it. Such a task may be stuck.

    Raises:
        TypeError, ValueError: a deadline is not a number, or not finite and above 0.
    """

    waiting: float | None = field(default=None, validator=positive)
    queued: float | None = field(default=3600.0, validator=positive)
    running: float | None = field(default=3600.0, validator=positive)
