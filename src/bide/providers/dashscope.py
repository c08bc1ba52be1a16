"""DashScope (Alibaba Model Studio, Qwen Cloud): image and video tasks of the Wan family and others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Self

from attrs import evolve, field, frozen

from bide._text import excerpt
from bide._wire import Call, is_task_id
from bide.models import Billing, Limits, Output, RawRequest, Task, TaskStatus
from bide.providers import _calls as calls
from bide.providers import _replies as read
from bide.providers._base import Accepted, ListedTask, Page, Profile, Stopped, TooLate, TryAgain, Unclear
from bide.providers._dashscope_bodies import path_and_body
from bide.providers._dashscope_codes import FAULTS
from bide.providers._refusals import has_error, is_acknowledgement, object_in

if TYPE_CHECKING:
    from bide._wire import Reply
    from bide.models import ErrorDetail, Request
    from bide.providers._base import CancelOutcome, CreateOutcome, ListOutcome, QueryOutcome

_ZONES = {"beijing": "cn-beijing", "singapore": "ap-southeast-1", "virginia": "us-east-1"}
_HOSTS = {
    "beijing": "dashscope.aliyuncs.com",
    "singapore": "dashscope-intl.aliyuncs.com",
    "virginia": "dashscope-us.aliyuncs.com",
}
_ALIASES = {**{zone: region for region, zone in _ZONES.items()}, "intl": "singapore", "us": "virginia"}

_STATUSES = {
    "PENDING": (TaskStatus.QUEUED, Billing.NOT_YET),
    "RUNNING": (TaskStatus.RUNNING, Billing.ON_SUCCESS),
    # Only old SDKs know it, and no document says that it is final.
    "SUSPENDED": (TaskStatus.RUNNING, Billing.UNKNOWN),
    "SUCCEEDED": (TaskStatus.SUCCEEDED, Billing.FULL),
    "FAILED": (TaskStatus.FAILED, Billing.NONE),
    "CANCELED": (TaskStatus.CANCELLED, Billing.PARTIAL),
    # The reply to a query with this word is `Gone`.
    "UNKNOWN": (TaskStatus.RUNNING, Billing.UNKNOWN),
}

_MAX_PAGES = 1_000_000
_LIFETIME_HOURS = 24.0
"""The service keeps tasks and result URLs for this time, and its list shows no older tasks."""


@frozen(init=False)
class DashScope:
    """DashScope, in one of its regions, at a workspace's own host, or at any other address.

    A key and a model belong to one region; choose the region or the address that fits them. The base URL is
    *base_url*, else `$DASHSCOPE_BASE_URL`, else `$DASHSCOPE_HTTP_BASE_URL`, else the host of *region* (with
    *workspace_host*, the host of *workspace*).

    A request's `extra`: the objects "input" and "parameters" are merged into those of the body; any other field goes
    into "parameters". Use `RawRequest` for endpoints that `ImageRequest` and `VideoRequest` do not reach.

    Args:
        region: "beijing" (cn-beijing), "singapore" (intl, ap-southeast-1) or "virginia" (us, us-east-1).
        workspace: id of a workspace; sent with each call.
        workspace_host: whether to call the workspace's own host, `{workspace}.{zone}.maas.aliyuncs.com`.
        base_url: address of the API, such as "https://dashscope.aliyuncs.com/api/v1".
        utc_offset: hours from UTC to the service's clock, 8 unless given. The times in the service's replies name no
            zone. In the region Beijing they are Beijing time; for other regions the documents do not say.
        query_path: path of a query below the base URL, with "{id}" once; *cancel_path*: the same for a cancel.
        list_path: path of the list of tasks below the base URL.
        lists: whether the service has a list of recent tasks.
        page_size: tasks to request in one page of the list.
        image_floor: shortest time between two polls of an image task, in seconds; *video_floor*: the same for a video
            task. The documents say "every few seconds" and allow 20 queries a second.
        longest: seconds after which a task's slot counts as free. The service ends a task as failed after 3 h.
        image_unknown_hold: seconds for which an image create with an unknown outcome occupies a slot;
            *video_unknown_hold*: the same for a video create.

    Raises:
        TypeError: the base URL is not a str.
        ValueError: the region is unknown, the workspace is missing or invalid, or the base URL or a path is invalid.
    """

    region: str
    workspace: str | None
    workspace_host: bool
    base_url: str
    utc_offset: float
    query_path: str = field(validator=calls.check_path)
    cancel_path: str = field(validator=calls.check_path)
    list_path: str = field(validator=calls.check_path)
    lists: bool
    page_size: int
    image_floor: float
    video_floor: float
    longest: float
    image_unknown_hold: float
    video_unknown_hold: float

    def __init__(
        self,
        region: str = "beijing",
        *,
        workspace: str | None = None,
        workspace_host: bool = False,
        base_url: str | None = None,
        utc_offset: float | None = None,
        query_path: str = "/tasks/{id}",
        cancel_path: str = "/tasks/{id}/cancel",
        list_path: str = "/tasks",
        lists: bool = True,
        page_size: int = 100,
        image_floor: float = 2.0,
        video_floor: float = 2.0,
        longest: float = 3 * 3600.0 + 600.0,
        image_unknown_hold: float = 120.0,
        video_unknown_hold: float = 600.0,
    ) -> None:
        region = _find_region(region)
        default = f"https://{_host(region, workspace, workspace_host)}/api/v1"
        self.__attrs_init__(
            region=region,
            workspace=workspace,
            workspace_host=workspace_host,
            base_url=calls.choose_base_url(
                base_url, ("DASHSCOPE_BASE_URL", "DASHSCOPE_HTTP_BASE_URL"), default
            ),
            utc_offset=8.0 if utc_offset is None else utc_offset,
            query_path=query_path,
            cancel_path=cancel_path,
            list_path=list_path,
            lists=lists,
            page_size=page_size if lists else 0,
            image_floor=image_floor,
            video_floor=video_floor,
            longest=longest,
            image_unknown_hold=image_unknown_hold,
            video_unknown_hold=video_unknown_hold,
        )

    # Properties, since not every type checker accepts a ClassVar as a property of `Provider`.

    @property
    def name(self) -> str:
        return "dashscope"

    @property
    def key_variables(self) -> tuple[str, ...]:
        return ("DASHSCOPE_API_KEY",)

    @property
    def queries_per_second(self) -> float | None:
        return 20.0

    @property
    def idempotent(self) -> bool:
        return False

    @classmethod
    def gateway(cls, base_url: str, **settings: Any) -> Self:
        """DashScope behind a reseller's gateway, which has another path for queries and no list.

        The gateway's documents show `GET /apis/v1/services/aigc/tasks?task_id={id}` and no list. We assume that the
        paths of creates begin with `/apis/v1`, too.

        Args:
            base_url: the gateway's address, with or without "/apis/v1".
            settings: further arguments of `DashScope`.

        Raises:
            TypeError, ValueError: as for `DashScope`.
        """
        root = calls.check_base_url(base_url, "base_url").removesuffix("/apis/v1")
        chosen = {"query_path": "/services/aigc/tasks?task_id={id}", "lists": False, **settings}
        return cls(base_url=f"{root}/apis/v1", **chosen)

    def profile(self, kind: str) -> Profile:
        """Images: 30 creates a minute. Videos, and kinds that the documents do not name: 3 tasks in flight."""
        if kind == "image":
            return Profile(
                floor=self.image_floor,
                typical=(10.0, 30.0),
                longest=self.longest,
                unknown_hold=self.image_unknown_hold,
                limits=Limits(creates_per_minute=30),
                lifetime=_LIFETIME_HOURS * 3600.0,
            )
        return Profile(
            floor=self.video_floor,
            typical=(60.0, 300.0) if kind == "video" else (10.0, 300.0),
            longest=self.longest,
            unknown_hold=self.video_unknown_hold,
            limits=Limits(concurrency=3),
            lifetime=_LIFETIME_HOURS * 3600.0,
        )

    def knows(self, word: str) -> bool:
        """Whether the documents or old SDKs name *word* as a task status."""
        return word.upper() in _STATUSES

    # Calls -------------------------------------------------------------------------------------------------

    def create_call(self, request: Request, ticket: str) -> Call:  # noqa: ARG002 - DashScope accepts no idempotency key
        """The call that makes the task; the model's name decides the endpoint."""
        if isinstance(request, RawRequest):
            path, body = request.path, dict(request.body)
        else:
            path, body = path_and_body(request)
        headers = {**self._headers, "X-DashScope-Async": "enable"}
        if calls.has_oss_url(body):
            headers["X-DashScope-OssResourceResolve"] = "enable"
        return Call("POST", path, headers=headers, body=body)

    def query_call(self, task_id: str) -> Call:
        """The call that polls a task."""
        return calls.task_call("GET", self.query_path, task_id, self._headers)

    def contradicts(self, task: Task, request: Request) -> bool:
        """Whether *task* shows another prompt than that of *request*. A succeeded task shows it as `orig_prompt`."""
        output = read.mapping(task.raw, "output")
        results = output.get("results") if output is not None else None
        places = [output, *results] if isinstance(results, list) else [output, results]
        shown = [prompt for each in places if (prompt := read.text(each, "orig_prompt")) is not None]
        own = {"prompt": request.prompt} if not isinstance(request, RawRequest) else request.body.get("input")
        given = read.text(own, "prompt")
        return given is not None and any(calls.is_other_prompt(each, given) for each in shown)

    def cancel_call(self, task_id: str) -> Call:
        """The call that cancels a task. The service accepts it while the task is `PENDING`."""
        return calls.task_call("POST", self.cancel_path, task_id, self._headers)

    def list_call(self, since: datetime, until: datetime, page: int, model: str | None = None) -> Call:
        """The call for one page of tasks. The service refuses more than 24 h, so the call names the last 24 h."""
        end = until if until.microsecond == 0 else until.replace(microsecond=0) + timedelta(seconds=1)
        start = max(since.replace(microsecond=0), end - timedelta(hours=_LIFETIME_HOURS))
        query = {
            "start_time": self._list_time(start),
            "end_time": self._list_time(end),
            "page_no": str(max(1, page)),
            "page_size": str(self.page_size or 10),
            **calls.without_none(model_name=model),
        }
        return Call("GET", self.list_path, query=query, headers=self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        return {"X-DashScope-WorkSpace": self.workspace} if self.workspace else {}

    @property
    def _zone(self) -> timezone:
        return timezone(timedelta(hours=self.utc_offset))

    def _list_time(self, moment: datetime) -> str:
        return moment.astimezone(self._zone).strftime("%Y%m%d%H%M%S")

    # Replies -----------------------------------------------------------------------------------------------

    def read_created(self, reply: Reply, request: Request) -> CreateOutcome:
        """What the reply to `create_call` means."""
        data = object_in(reply)
        if 200 <= reply.status < 300:
            if data is None:
                return Unclear(reply.unexpected("not a JSON object"))
            if (task := self._created_task(data, request.model)) is not None:
                return Accepted(task)
            if not has_error(data):
                return Unclear(reply.unexpected("no usable output.task_id"))
        return FAULTS.read_refused_create(reply, data)

    def read_task(self, reply: Reply, task_id: str) -> QueryOutcome:
        """What the reply to `query_call` means."""
        data = object_in(reply)
        if not 200 <= reply.status < 300:
            return FAULTS.read_failure(reply, data, "query")
        if data is None:
            return TryAgain(reply.unexpected("not a JSON object"))
        output = read.mapping(data, "output")
        word, answered_id = read.text(output, "task_status"), read.text(output, "task_id")
        if word is None:
            if has_error(data):
                return FAULTS.read_failure(reply, data, "query")
            return TryAgain(reply.unexpected("no output.task_status"))
        if answered_id not in (None, task_id):
            return TryAgain(reply.unexpected(f"it is about another task than {task_id}"))
        if word.upper() == "UNKNOWN":
            return FAULTS.unknown_task("query", "the task is unknown, or older than 24 h", reply.status)
        return self._task(data, task_id)

    def read_cancelled(self, reply: Reply, task_id: str) -> CancelOutcome:  # noqa: ARG002 - the reply names no task
        """What the reply to `cancel_call` means."""
        data = object_in(reply)
        if read.text(data, "code") == "UnsupportedOperation" and reply.status < 500:
            return TooLate()
        if 200 <= reply.status < 300 and not (data and has_error(data)):
            return Stopped() if is_acknowledgement(reply) else TryAgain(reply.unexpected("not a JSON object"))
        return FAULTS.read_failure(reply, data, "cancel")

    def read_list(self, reply: Reply) -> ListOutcome:
        """What the reply to `list_call` means, without the rows that have no readable id."""
        data = object_in(reply)
        if not 200 <= reply.status < 300 or (data is not None and "data" not in data and has_error(data)):
            return FAULTS.read_failed_list(reply, data)
        if data is None or not isinstance(data.get("data"), list):
            return TryAgain(reply.unexpected("no array in data"))
        rows = [self._listed_task(row) for row in data["data"]]
        page = int(min(max(1, read.number(data, "page_no") or 1), _MAX_PAGES))
        return Page(
            tasks=tuple(row for row in rows if row is not None), number=page, pages=_page_count(data, page)
        )

    # Tasks -------------------------------------------------------------------------------------------------

    def _created_task(self, data: Mapping[str, Any], model: str | None) -> Task | None:
        """The task in the reply to a create, or None. A reply without an id must hold the result itself."""
        output = read.mapping(data, "output")
        task_id = read.text(output, "task_id")
        request_id = read.short_text(data, "request_id", limit=100)
        if task_id is not None:
            if not is_task_id(task_id):
                return None
            task = self._task(data, task_id)
            return evolve(task, request_id=request_id, model=task.model or model)
        outputs = () if has_error(data) else self._outputs(output, None)
        if not any(each.url for each in outputs):
            return None
        done = self._task({**data, "output": {**output, "task_status": "SUCCEEDED"}}, None)
        return evolve(done, request_id=request_id, model=done.model or model, raw_status=None, raw=data)

    def _task(self, data: Mapping[str, Any], task_id: str | None) -> Task:
        output = read.mapping(data, "output")
        word = read.text(output, "task_status") or "PENDING"
        status, billing = _STATUSES.get(word.upper(), (TaskStatus.RUNNING, Billing.UNKNOWN))
        finished_at = self._moment(output, "end_time") if status.is_final else None
        usage = data.get("usage")
        return Task(
            task_id=task_id,
            status=status,
            raw_status=excerpt(word, 60),
            model=read.short_text(output, "model", "model_name", limit=200),
            created_at=self._moment(output, "submit_time"),
            started_at=self._moment(output, "scheduled_time"),
            finished_at=finished_at,
            outputs=self._outputs(output, finished_at) if status is TaskStatus.SUCCEEDED else (),
            usage=usage if isinstance(usage, dict) else None,
            error=_error_of(output, data) if status is TaskStatus.FAILED else None,
            billing=billing,
            raw=data,
        )

    def _moment(self, data: Mapping[str, Any], *names: str) -> datetime | None:
        return read.moment(data, *names, zone=self._zone, per_second=1000)

    def _outputs(self, output: Mapping[str, Any], finished_at: datetime | None) -> tuple[Output, ...]:
        """All results in *output*, in its order; a URL that it holds twice counts once."""
        until = read.add_hours(finished_at, _LIFETIME_HOURS)
        revised = read.text(output, "actual_prompt")
        found = [
            read.file_output(output[name], "video", expires_at=until, revised_prompt=revised)
            for name in ("video_url", "watermark_video_url")
            if output.get(name) is not None
        ]
        results = output.get("results")
        for each in results if isinstance(results, list) else [results]:
            found.extend(_outputs_of_entry(each, until, revised))
        for choice in read.sequence(output, "choices"):
            for part in read.sequence(read.mapping(choice, "message"), "content"):
                found.extend(
                    read.file_output(part[kind], kind, expires_at=until)
                    for kind in ("image", "video", "audio")
                    if isinstance(part, Mapping) and part.get(kind) is not None
                )
        return read.without_duplicates(found)

    def _listed_task(self, row: object) -> ListedTask | None:
        """The task in a *row* of the list; None if it has no readable id, or the service does not know the task."""
        task_id = read.text(row, "task_id")
        word = read.text(row, "status", "task_status") or "RUNNING"
        if not isinstance(row, dict) or not is_task_id(task_id) or word.upper() == "UNKNOWN":
            return None
        status, billing = _STATUSES.get(word.upper(), (TaskStatus.RUNNING, Billing.UNKNOWN))
        task = Task(
            task_id=task_id,
            request_id=read.short_text(row, "request_id", limit=100),
            status=status,
            raw_status=excerpt(word, 60),
            model=read.short_text(row, "model_name", "model", limit=200),
            created_at=self._moment(row, "gmt_create", "submit_time"),
            started_at=self._moment(row, "start_time", "scheduled_time"),
            finished_at=self._moment(row, "end_time") if status.is_final else None,
            error=_error_of(row) if status is TaskStatus.FAILED else None,
            billing=billing,
            raw=row,
        )
        return ListedTask(task, prompt=read.text(row, "prompt", "orig_prompt"))


# Regions ---------------------------------------------------------------------------------------------------


def _find_region(region: str) -> str:
    found = _ALIASES.get(region, region)
    if found not in _HOSTS:
        known = ", ".join([*_HOSTS, *_ALIASES])
        raise ValueError(f"unknown region {region!r}; known are {known}; pass base_url= for another address")
    return found


def _host(region: str, workspace: str | None, workspace_host: bool) -> str:
    if not workspace_host:
        return _HOSTS[region]
    if workspace is None or not re.fullmatch(r"[A-Za-z0-9-]{1,63}", workspace):
        raise ValueError(
            f"workspace_host needs workspace= with letters, digits and '-' only, not {workspace!r}"
        )
    return f"{workspace}.{_ZONES[region]}.maas.aliyuncs.com"


# Answers ---------------------------------------------------------------------------------------------------


def _error_of(*places: Mapping[str, Any]) -> ErrorDetail:
    """Why a task or a part failed: the first `code` and `message` in *places*; both may be missing."""
    code = next((found for each in places if (found := read.text(each, "code"))), None)
    message = next((found for each in places if (found := read.text(each, "message"))), None)
    return read.error_detail(code, message, retryable=FAULTS.is_retryable(code))


def _outputs_of_entry(result: object, until: datetime | None, revised: str | None) -> list[Output]:
    """The outputs of one entry of `results`: its files, under several names, or the error of its part."""
    names = {"url": "image", "video_url": "video", "transcription_url": "file"}
    if not isinstance(result, Mapping):
        return []
    prompt = read.text(result, "actual_prompt") or revised
    files = [
        read.file_output(result[name], kind, expires_at=until, revised_prompt=prompt)
        for name, kind in names.items()
        if result.get(name) is not None
    ]
    if not files and (read.text(result, "code") or read.text(result, "message")):
        files.append(Output(kind="image", error=_error_of(result)))
    return files


def _page_count(data: Mapping[str, Any], page: int) -> int:
    pages = read.number(data, "total_page")
    if pages is None:
        total, size = read.number(data, "total") or 0, read.number(data, "page_size") or 0
        pages = math.ceil(total / size) if size >= 1 else page
    return int(min(max(pages, page), _MAX_PAGES))
