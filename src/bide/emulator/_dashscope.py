"""DashScope (Alibaba Model Studio), from its documents: tasks of the kind "create, query, list, cancel"."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from bide.emulator._answers import Answer, RefusalError
from bide.emulator._prompt_orders import orders_in
from bide.emulator._service import Reason, Route, Service, count_of, size_of
from bide.emulator._state import new_id
from bide.emulator._tasks import EmulatedTask, Failure, Phase, Work

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bide.emulator._answers import Call
    from bide.emulator._state import Account

NAME = "dashscope"

_MESSAGES = {
    "DataInspectionFailed": "Output data may contain inappropriate content.",
    "IPInfringementSuspect": "Input data is suspected of being involved in IP infringement.",
    "InternalError": "An internal error has occurred, please try again later.",
    "InternalError.Timeout": "An internal timeout error has occurred during execution.",
    "InvalidParameter": "The request is missing required parameters or in a wrong format.",
    "InvalidURL": "The input url is invalid or cannot be accessed.",
}
FAILURES = (
    Failure("InternalError.Timeout", _MESSAGES["InternalError.Timeout"]),
    Failure("DataInspectionFailed", _MESSAGES["DataInspectionFailed"]),
    Failure("InternalError", _MESSAGES["InternalError"]),
    Failure(None, ""),
)

_BEIJING = timezone(timedelta(hours=8))
_BASE = re.compile(r"/apis?/v1(?=/)")
"""`/api/v1`, and `/apis/v1`, which a reseller's gateway uses."""
_CREATES = {
    "/services/aigc/video-generation/video-synthesis": ("video", "video"),
    "/services/aigc/image2video/video-synthesis": ("video", "video"),
    "/services/aigc/text2image/image-synthesis": ("image", "results"),
    "/services/aigc/image2image/image-synthesis": ("image", "results"),
    "/services/aigc/image-generation/generation": ("image", "choices"),
}
_TASK = re.compile(r"/tasks/([^/]+)")
_CANCEL = re.compile(r"/tasks/([^/]+)/cancel")
_GATEWAY_QUERY = "/services/aigc/tasks"
_WORDS = {
    Phase.QUEUED: "PENDING",
    Phase.RUNNING: "RUNNING",
    Phase.SUCCEEDED: "SUCCEEDED",
    Phase.FAILED: "FAILED",
    Phase.CANCELLED: "CANCELED",
    Phase.EXPIRED: "UNKNOWN",
}
_MOST_FILES = 4
_REFUSAL_STATUS = {
    "InvalidApiKey": 401,
    "AccessDenied": 403,
    "AllocationQuota": 403,
    "Model": 403,
    "ModelNotFound": 404,
    "Conflict": 409,
    "Throttling": 429,
    "LimitRequests": 429,
    "limit_requests": 429,
    "insufficient_quota": 429,
    "CommodityNotPurchased": 429,
    "PrepaidBillOverdue": 429,
    "PostpaidBillOverdue": 429,
    "BudgetLimitExceeded": 429,
    "InternalError": 500,
    "SystemError": 500,
    "ModelServiceFailed": 500,
    "RequestTimeOut": 500,
    "ModelServingError": 503,
    "ServiceUnavailable": 503,
    "ModelUnavailable": 503,
}
"""HTTP status for the first part of an error code; for any other code it is 400."""


def word(task: EmulatedTask, now: float) -> str:
    """DashScope's status word for a task."""
    phase = task.phase(now)
    if phase is Phase.RUNNING and task.status_word:
        return task.status_word
    return _WORDS[phase]


def describe(code: str) -> str:
    """The message for an error code."""
    return _MESSAGES.get(code, f"The request failed: {code}")


class DashScope(Service):
    """The paths below `/api/v1` (and `/apis/v1`): five kinds of create, query, list, cancel."""

    REFUSALS: ClassVar = {
        Reason.NO_KEY: (401, "InvalidApiKey", "No API-key provided."),
        Reason.BAD_KEY: (401, "InvalidApiKey", "Invalid API-key provided."),
        Reason.NO_SLOT: (429, "Throttling.Concurrency", "Too many concurrent tasks for this API key."),
        Reason.CREATE_RATE: (
            429,
            "Throttling.RateQuota",
            "Requests rate limit exceeded, please try again later.",
        ),
        Reason.QUERY_RATE: (
            429,
            "Throttling.RateQuota",
            "Requests rate limit exceeded, please try again later.",
        ),
    }

    def route(self, call: Call) -> Route | None:
        """The route of *call*."""
        base = _BASE.match(call.path)
        if base is None:
            return None  # the real service has no path without this base either
        path = call.path[base.end() :].rstrip("/")
        if call.method == "POST" and path in _CREATES:
            return Route("create", lambda call, account: self._create(call, account, *_CREATES[path]))
        if call.method == "POST" and (match := _CANCEL.fullmatch(path)):
            cancelled = match[1]
            return Route("cancel", lambda _, account: self._cancel(account, cancelled))
        if call.method == "GET" and path == "/tasks":
            return Route("list", self._list)
        task_id = self._queried_id(call, path)
        if task_id is not None:
            return Route("query", lambda _, account: self._query(account, task_id))
        return None

    def refusal(self, refused: RefusalError) -> Answer:
        """A refusal: code and message at the top level of the body."""
        data = {"code": refused.code, "message": refused.message, "request_id": new_id()}
        return Answer.json(data, status=refused.status, headers=refused.headers)

    @staticmethod
    def _queried_id(call: Call, path: str) -> str | None:
        if call.method != "GET":
            return None
        if path == _GATEWAY_QUERY:
            return call.query.get("task_id", "")
        match = _TASK.fullmatch(path)
        return match[1] if match else None

    def _create(self, call: Call, account: Account, kind: str, form: str) -> Answer:
        if call.headers.get("x-dashscope-async") != "enable":
            message = "current user api does not support synchronous calls."
            raise RefusalError(403, "AccessDenied", message)
        body = call.json()
        if body is None:
            raise _invalid("The request body is not a JSON object.")
        task = self._open(account, _work(body, kind, form), new_id())
        return Answer.json(
            {
                "output": {"task_status": word(task, self.now), "task_id": task.id},
                "request_id": new_id(),
            }
        )

    def _query(self, account: Account, task_id: str) -> Answer:
        task = self.state.find(task_id, account.key)
        if task is None or task.phase(self.now) is Phase.EXPIRED:
            output: dict[str, Any] = {"task_id": task_id, "task_status": "UNKNOWN"}
            return Answer.json({"request_id": new_id(), "output": output})
        return Answer.json({"request_id": new_id(), **self._task_json(task)})

    def _cancel(self, account: Account, task_id: str) -> Answer:
        task = self.state.find(task_id, account.key)
        if task is None or task.phase(self.now) is not Phase.QUEUED:
            message = "Failed to cancel the task, please confirm if the task is in PENDING status."
            raise RefusalError(400, "UnsupportedOperation", message)
        self.state.cancel(task)
        return Answer.json({"request_id": new_id()})

    def _task_json(self, task: EmulatedTask) -> dict[str, Any]:
        phase = task.phase(self.now)
        output = {"task_id": task.id, "task_status": word(task, self.now), **self._times(task, phase)}
        if phase is Phase.FAILED and task.failure and task.failure.code:
            output |= {"code": task.failure.code, "message": task.failure.message}
        if phase is Phase.SUCCEEDED:
            results, usage = self._results(task)
            return {"output": output | results, "usage": usage}
        return {"output": output}

    def _times(self, task: EmulatedTask, phase: Phase) -> dict[str, str]:
        times = {"submit_time": self._time(task.created)}
        if phase is not Phase.QUEUED:
            times["scheduled_time"] = self._time(task.started)
        if not phase.is_open:
            times["end_time"] = self._time(task.ended)
        return times

    def _results(self, task: EmulatedTask) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a finished task adds to `output`, and its `usage`."""
        made = task.work.files - task.failed_parts
        urls = [self.assets.url(task, index) for index in range(made)]
        if task.work.form == "video":
            return {"video_url": urls[0], "orig_prompt": task.prompt}, _video_usage(task.work)
        usage = {"image_count": made}
        if task.work.form == "choices":
            choices = [_choice(url) for url in urls]
            width, height = task.work.size
            return {"choices": choices, "finished": True}, {**usage, "size": f"{width}*{height}"}
        failed = {"code": "InternalError.Timeout", "message": _MESSAGES["InternalError.Timeout"]}
        revised = f"{task.prompt}, in fine detail"
        results: list[dict[str, str]] = [
            *({"orig_prompt": task.prompt, "actual_prompt": revised, "url": url} for url in urls),
            *[failed] * task.failed_parts,
        ]
        metrics = {"TOTAL": task.work.files, "SUCCEEDED": made, "FAILED": task.failed_parts}
        return {"results": results, "task_metrics": metrics}, usage

    def _list(self, call: Call, account: Account) -> Answer:
        page_no, page_size = _whole(call.query, "page_no", 1), _whole(call.query, "page_size", 10)
        chosen = self._chosen(call.query, account)
        start = (page_no - 1) * page_size
        return Answer.json(
            {
                "request_id": new_id(),
                "data": [self._row(task) for task in chosen[start : start + page_size]],
                "page_no": page_no,
                "page_size": page_size,
                "total_page": math.ceil(len(chosen) / page_size),
                "total": len(chosen),
            }
        )

    def _chosen(self, query: Mapping[str, str], account: Account) -> list[EmulatedTask]:
        """The tasks that a list call asks for, newest first."""
        end = _moment(query, "end_time", int(self.state.clock.wall()) + 1)
        start = _moment(query, "start_time", end - 24 * 3600)
        if end - start > 24 * 3600:
            raise _invalid("The time range is more than 24 hours.")
        model, status = query.get("model_name"), query.get("status")
        wall = self.state.clock.wall
        return [
            task
            for task in self.state.newest_first(account.key)
            if start <= int(wall(task.created)) <= end
            and model in (None, "", task.model)
            and status in (None, "", word(task, self.now))
            and task.phase(self.now) is not Phase.EXPIRED
        ]

    def _row(self, task: EmulatedTask) -> dict[str, Any]:
        listed: dict[str, Any] = {
            "task_id": task.id,
            "status": word(task, self.now),
            "model_name": task.model,
            "region": "cn-beijing",
            "gmt_create": self._milliseconds(task.created),
        }
        phase = task.phase(self.now)
        if phase is not Phase.QUEUED:
            listed["start_time"] = self._milliseconds(task.started)
        if not phase.is_open:
            listed["end_time"] = self._milliseconds(task.ended)
        return listed

    def _milliseconds(self, moment: float) -> int:
        return int(self.state.clock.wall(moment) * 1000)

    def _time(self, moment: float) -> str:
        when = datetime.fromtimestamp(self.state.clock.wall(moment), _BEIJING)
        return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03}"


def _work(body: dict[str, Any], kind: str, form: str) -> Work:
    """What a create's body asks for.

    Raises:
        RefusalError: a part of it is missing or out of range, or its prompt orders a refusal.
    """
    model, given, wishes = body.get("model"), body.get("input"), body.get("parameters", {})
    if not isinstance(model, str) or not model:
        raise _invalid("Required parameter(model) is missing or empty.")
    if not isinstance(given, dict) or not isinstance(wishes, dict):
        raise _invalid("Required parameter(input) is missing, or parameters is not an object.")
    prompt = _prompt(given)
    shows_a_picture = any(name.endswith("url") or name in ("media", "images") for name in given)
    if not prompt and not (kind == "video" and shows_a_picture):
        raise _invalid("Required parameter(prompt) is missing or empty.")
    files = 1 if kind == "video" else count_of(wishes.get("n"), _default_files(model), _MOST_FILES)
    size = size_of(wishes.get("size"), (1280, 1280) if form == "choices" else (1024, 1024))
    if files is None or size is None:
        raise _invalid(f"The parameter {'n' if files is None else 'size'} is out of range.")
    if code := orders_in(prompt).refusal_code:
        raise RefusalError(_REFUSAL_STATUS.get(code.partition(".")[0], 400), code, describe(code))
    return Work(kind, model, prompt, files, size, form, body)


def _default_files(model: str) -> int:
    """The first image models make, and bill, four pictures if the body has no `n`."""
    return 4 if model.startswith("wanx") else 1


def _prompt(given: dict[str, Any]) -> str:
    """`input.prompt`, or the texts of `input.messages`."""
    if isinstance(given.get("prompt"), str):
        return str(given["prompt"])
    messages = given.get("messages")
    parts = [
        part.get("text")
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict)
    ]
    return " ".join(text for text in parts if isinstance(text, str))


def _choice(url: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"image": url, "type": "image"}]}
    return {"finish_reason": "stop", "message": message}


def _video_usage(work: Work) -> dict[str, Any]:
    wishes = work.body.get("parameters", {})
    seconds = wishes.get("duration", 5)
    lines = re.match(r"\d+", str(wishes.get("resolution", "720P")))
    return {
        "duration": seconds,
        "output_video_duration": seconds,
        "video_count": 1,
        "SR": int(lines[0]) if lines else 720,
    }


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise _invalid(f"The parameter {name} is not a whole number above 0.")
    return int(text)


def _moment(query: Mapping[str, str], name: str, default: int) -> int:
    """Epoch seconds of a time like 20260605103000, which is Beijing time."""
    text = query.get(name)
    if not text:
        return default
    try:
        when = datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=_BEIJING)
    except ValueError:
        raise _invalid(f"The parameter {name} is not of the form yyyyMMddHHmmss.") from None
    return int(when.astimezone(UTC).timestamp())


def _invalid(message: str) -> RefusalError:
    return RefusalError(400, "InvalidParameter", message)
