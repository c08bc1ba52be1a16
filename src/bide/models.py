"""The values that users hold: requests, tasks, outputs, limits, deadlines. All frozen, all plain JSON underneath."""

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
    """Where a submission stands. The last six are final.

    A word of the service that nobody knows counts as `running`; `Task.raw_status` keeps it as it came.
    """

    WAITING = "waiting"
    """In our queue: nothing has been sent."""
    SUBMITTING = "submitting"
    """The create call is on its way, or its outcome is being looked up."""
    QUEUED = "queued"
    """In the service's queue."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """The service no longer knows the task, or has removed its result."""
    REJECTED = "rejected"
    """The create was refused: no task was made."""
    UNKNOWN = "unknown"
    """Nobody can say whether the create arrived."""

    @property
    def is_final(self) -> bool:
        """Whether nothing can come after this status."""
        return self in _FINAL

    @property
    def is_accepted(self) -> bool:
        """Whether the service is at work on the task (`queued` or `running`)."""
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
    """What the service's documents say of the cost of a task in its present status.

    Source: the DashScope table "Task lifecycle states". Dieyuyun publishes none: `unknown`.
    """

    NOT_YET = "not_yet"
    ON_SUCCESS = "on_success"
    FULL = "full"
    NONE = "none"
    PARTIAL = "partial"
    """Partial billing is possible."""
    UNKNOWN = "unknown"


@frozen
class ErrorDetail:
    """Why a task, or one output of it, has no result, as plain data.

    Attributes:
        code: the service's code, or None where it gives none.
        message: the service's words (or ours, where no service spoke), or None.
        type: the name of the error class that a wait for this raises, or None for the task's own failure.
        text: the text of that error, with what to do; None where `code` and `message` say it all.
        status_code: the HTTP status, where the create was refused.
        retryable: True for an outage, False for a bad or refused prompt, None if the code does not tell.
    """

    code: str | None = None
    message: str | None = None
    type: str | None = None
    text: str | None = None
    status_code: int | None = None
    retryable: bool | None = None


@frozen
class Output:
    """One result of a task: a file at a URL, a file that came inline, or the error of a part that failed.

    Attributes:
        url: where to fetch it (signed and short-lived: fetch it soon, log it never).
        data: the file itself, as base64 text, where the service sent it inline.
        kind: "image", "video", "audio" or "file".
        media_type: such as "image/png", where the service tells.
        expires_at: when the URL stops working, UTC, as far as known.
        revised_prompt: the prompt that the service made of yours.
        error: why this part failed; `url` and `data` are None then.
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


@frozen
class Task:
    """A snapshot of a submission at a moment. It never changes; a newer state is a new snapshot.

    Attributes:
        ticket: our id of it, known at once.
        task_id: the service's id, or None until the create is accepted.
        request_id: the service's id of the exchange that made the task, for its support.
        raw_status: the service's own word.
        progress: percent from 0 to 100, or None where the service tells none. It never goes backwards.
        eta: seconds from this snapshot at which half of such tasks have ended, as those before have taught (until any
            has, the documented range does). A new one is no event: read `handle.task.eta`. None where it has ended, was
            not looked at yet, or is driven by another process.
        created_at: when the service says that it made the task; likewise `started_at` and `finished_at`. UTC.
        outputs: the results, once `succeeded`; a part that failed has its `error`.
        usage: what the service counted, as it came.
        error: why there is no result.
        billing: what the service's documents say of the cost at this status.
        raw: the service's last answer, untouched.
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

    def to_dict(self) -> dict[str, Any]:
        """This snapshot as plain JSON data; `Task.from_dict` reads it back."""
        # By hand, since a durable ledger needs it at each step: `attrs.asdict` takes six times as long.
        plain = _plain_fields(self, "created_at", "started_at", "finished_at")
        plain["status"], plain["billing"] = self.status.value, self.billing.value
        plain["outputs"] = [_plain_fields(each, "expires_at") for each in self.outputs]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The snapshot that `to_dict` made *plain* of. Keys that this version does not know are passed over.

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

    def advanced(self, seen: Task) -> Task:
        """The next snapshot, after the service has told *seen*.

        What *seen* leaves out stays, progress never goes backwards, and a final status is never left.
        """
        if self.status.is_final:
            return self
        progress = seen.progress
        if progress is None or (self.progress is not None and self.progress > progress):
            progress = self.progress
        return evolve(
            seen,
            ticket=self.ticket,
            task_id=self.task_id or seen.task_id,
            request_id=self.request_id or seen.request_id,
            progress=progress,
            eta=None if seen.status.is_final else seen.eta,
            model=seen.model or self.model,
            created_at=seen.created_at or self.created_at,
            started_at=seen.started_at or self.started_at,
        )

    def differs(self, other: Task) -> bool:
        """Whether an event lies between this snapshot and *other*: status, progress, outputs or error."""
        return (
            self.status is not other.status
            or self.progress != other.progress
            or self.outputs != other.outputs
            or self.error != other.error
        )


def _plain_fields(value: Task | Output | ErrorDetail, *moments: str) -> dict[str, Any]:
    """The fields of *value* by their names, *moments* among them as text."""
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
    """The fields of *plain* that *cls* has: a later version may have written more."""
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
    """A result on disk.

    Attributes:
        path: where it is.
        size: in bytes.
        sha256: digest of its bytes, 64 hexadecimal digits; None if it was saved before digests were kept.
        media_type: told by the file's first bytes, else by the server, else None.
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
    """One call for images; it means the same on every provider.

    Args:
        prompt: what to show.
        model: the service's name of the model; never guessed, since it sets the price.
        size: "1024x1024" or "1024*1024"; each provider writes it in its own way.
        n: how many images, from 1 to 100. Always sent: some models default to 4, and bill 4.
        images: URLs of images to start from.
        seed: for results that can be had again, where the model knows it.
        extra: further fields of the service, passed through as they are.

    Raises:
        TypeError, ValueError: a field is not what it should be; nothing has been sent.
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
    """One call for a video; it means the same on every provider.

    Args:
        prompt: what to show.
        model: the service's name of the model; never guessed, since it sets the price.
        image: URL of the first frame; `last_image`: of the last.
        size: "1280x720" or "1280*720"; `resolution`: "720P", for models that take that instead.
        duration: seconds of video.
        seed: for results that can be had again, where the model knows it.
        extra: further fields of the service, passed through as they are.

    Raises:
        TypeError, ValueError: a field is not what it should be; nothing has been sent.
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
    """A create call to any endpoint of the service, its body as it is.

    Args:
        path: below the provider's base URL, like "/services/aigc/video-generation/video-synthesis".
        body: the JSON object to send. What makes the call asynchronous is added by the provider.
        kind: the kind of work, for limits and pace: "image", "video" or a word of your own.

    Raises:
        TypeError, ValueError: a field is not what it should be; nothing has been sent.
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
"""What `submit` takes."""

_REQUESTS: Mapping[str, type[ImageRequest | VideoRequest | RawRequest]] = MappingProxyType(
    {"image": ImageRequest, "video": VideoRequest, "raw": RawRequest}
)


def request_to_dict(request: Request) -> dict[str, Any]:
    """*request* as plain JSON data, for the ledger."""
    name = next(name for name, cls in _REQUESTS.items() if isinstance(request, cls))
    plain = attrs.asdict(request, recurse=False)
    if "images" in plain:
        plain["images"] = list(plain["images"])
    return {"type": name, **plain}


def request_from_dict(plain: Mapping[str, Any]) -> Request:
    """The request that `request_to_dict` made *plain* of.

    Raises:
        ValueError: it is no such form.
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
    """What one key may do for one kind of work. None is no limit.

    Args:
        concurrency: tasks in flight at once, from create to end.
        creates_per_minute: create calls in any 60 seconds.
    """

    concurrency: int | None = field(default=None, validator=whole_number(1, 1_000_000))
    creates_per_minute: float | None = field(default=None, validator=positive)


@frozen
class Deadlines:
    """Three clocks, in seconds; None is no limit. "No slot yet", "the service is busy" and "it hangs" differ.

    When one runs out, whoever waits gets a `WaitTimeoutError`. The first also withdraws the request, which has
    not been sent; the other two leave the task alone: it goes on, and so does watching it.

    Args:
        waiting: in our queue, for a slot.
        queued: in the service's queue.
        running: at work.
    """

    waiting: float | None = field(default=None, validator=positive)
    queued: float | None = field(default=3600.0, validator=positive)
    running: float | None = field(default=3600.0, validator=positive)
