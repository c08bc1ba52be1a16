"""Dieyuyun, from its page on async tasks. `DieyuyunStyle` has a setting for each point that the page leaves open."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bide.emulator._answers import Answer, RefusalError
from bide.emulator._prompt_orders import orders_in
from bide.emulator._service import Reason, Route, Service, count_of, size_of
from bide.emulator._state import ServiceState, new_id
from bide.emulator._tasks import EmulatedTask, Failure, Phase, Work

if TYPE_CHECKING:
    from bide.emulator._answers import Call
    from bide.emulator._assets import Assets
    from bide.emulator._state import Account

NAME = "dieyuyun"
FAILURES = (Failure("upstream_error", "The upstream provider returned an error"),)

_CREATES = {"/v1/images/generations": "image", "/v1/videos/generations": "video"}
_TASK = re.compile(r"/v1/tasks/([^/]+)")
_CANCEL = re.compile(r"/v1/tasks/([^/]+)/cancel")
_WORDS = {
    Phase.QUEUED: "queued",
    Phase.RUNNING: "processing",
    Phase.SUCCEEDED: "completed",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "cancelled",
    Phase.EXPIRED: "expired",
}
_MOST_FILES = 10


@dataclass(frozen=True)
class DieyuyunStyle:
    """How Dieyuyun behaves at each point that its documents leave open.

    Attributes:
        errors: HTTP errors in OpenAI's shape (`{"error": {"code", "message", "type"}}`) or flat
            (`{"error_code", "error_message"}`).
        cancel: a cancel answers with the task, with 204, or with 200 and no body.
        expired: a task that is too old answers with 200 and status `expired`, or with 404 or 410.
        always_sync: creates answer with the result even if the request has `"async": true`.
    """

    errors: Literal["openai", "flat"] = "openai"
    cancel: Literal["task", "no-content", "empty"] = "task"
    expired: Literal[200, 404, 410] = 200
    always_sync: bool = False


def word(task: EmulatedTask, now: float) -> str:
    """Dieyuyun's status word for a task."""
    phase = task.phase(now)
    if phase is Phase.RUNNING and task.status_word:
        return task.status_word
    return _WORDS[phase]


def describe(code: str) -> str:
    """The message for a failure code."""
    return FAILURES[0].message if code == FAILURES[0].code else f"The task failed: {code}"


class Dieyuyun(Service):
    """`POST /v1/images/generations`, `/v1/videos/generations`, `GET /v1/tasks/{id}`, `POST .../cancel`."""

    REFUSALS: ClassVar = {
        Reason.NO_KEY: (401, "missing_api_key", "No API key provided."),
        Reason.BAD_KEY: (401, "invalid_api_key", "Incorrect API key provided."),
        Reason.NO_SLOT: (429, "concurrency_limit_exceeded", "Too many tasks in flight for this key."),
        Reason.CREATE_RATE: (429, "rate_limit_exceeded", "Too many requests in a minute."),
        Reason.QUERY_RATE: (429, "rate_limit_exceeded", "Too many queries in a second."),
    }

    def __init__(self, state: ServiceState, assets: Assets, style: DieyuyunStyle) -> None:
        super().__init__(state, assets)
        self._style = style

    def route(self, call: Call) -> Route | None:
        """The route of *call*."""
        path = call.path.rstrip("/")
        if call.method == "POST" and path in _CREATES:
            return Route("create", lambda call, account: self._create(call, account, _CREATES[path]))
        if call.method == "GET" and (match := _TASK.fullmatch(path)):
            task_id = match[1]
            return Route("query", lambda _, account: self._query(account, task_id))
        if call.method == "POST" and (match := _CANCEL.fullmatch(path)):
            task_id = match[1]
            return Route("cancel", lambda _, account: self._cancel(account, task_id))
        return None

    def refusal(self, refused: RefusalError) -> Answer:
        """A refusal in the shape that the style sets."""
        if self._style.errors == "flat":
            data: dict[str, Any] = {"error_code": refused.code, "error_message": refused.message}
        else:
            kind = "rate_limit_error" if refused.status == 429 else "invalid_request_error"
            data = {"error": {"code": refused.code, "message": refused.message, "type": kind}}
        return Answer.json(data, status=refused.status, headers=refused.headers)

    def _create(self, call: Call, account: Account, kind: str) -> Answer:
        body = call.json()
        if body is None:
            raise _invalid("The request body is not a JSON object.")
        task = self._open(account, self._work(body, kind), f"task_{new_id().replace('-', '')[:16]}")
        if body.get("async") is not True or self._style.always_sync:
            return self._synchronous(task)
        if not task.phase(self.now).is_open:
            return Answer.json(self._task_json(task, self.now))
        return Answer.json(
            {
                "id": task.id,
                "status": word(task, self.now),
                "progress": 0,
                "created_at": self._time(task.created),
                "request_id": f"req_{new_id()[:8]}",
            }
        )

    def _work(self, body: dict[str, Any], kind: str) -> Work:
        prompt, model = body.get("prompt"), body.get("model")
        for name, value in (("model", model), ("prompt", prompt)):
            if not isinstance(value, str) or not value.strip():
                raise _invalid(f"'{name}' is required.")
        size = size_of(body.get("size"), (1024, 1024))
        files = count_of(body.get("n"), 1, _MOST_FILES)
        if size is None or files is None:
            raise _invalid(f"'{'n' if files is None else 'size'}' is out of range.")
        if code := orders_in(str(prompt)).refusal_code:
            raise RefusalError(
                402 if code == "insufficient_credit" else 400, code, "The request was refused."
            )
        form = "b64_json" if body.get("response_format") == "b64_json" else "url"
        return Work(kind, str(model), str(prompt), files if kind == "image" else 1, size, form, body)

    def _synchronous(self, task: EmulatedTask) -> Answer:
        """The result itself, once the task has ended."""
        wait = max(0.0, task.ended - self.now)
        if task.failure:
            refused = RefusalError(502, task.failure.code or "error", task.failure.message)
            answer = self.refusal(refused)
            return Answer(answer.status, answer.body, answer.headers, wait)
        answer = Answer.json(self._result(task))
        return Answer(answer.status, answer.body, answer.headers, wait)

    def _query(self, account: Account, task_id: str) -> Answer:
        task = self._task_of(account, task_id)
        if task.phase(self.now) is Phase.EXPIRED and self._style.expired != 200:
            raise RefusalError(self._style.expired, "task_expired", "The task has expired.")
        return Answer.json(self._task_json(task, self.now))

    def _cancel(self, account: Account, task_id: str) -> Answer:
        task = self._task_of(account, task_id)
        if not task.phase(self.now).is_open:
            raise RefusalError(
                409, "invalid_task_status", "Only queued or processing tasks can be cancelled."
            )
        task = self.state.cancel(task)
        if self._style.cancel == "task":
            return Answer.json(self._task_json(task, self.now))
        return Answer(204 if self._style.cancel == "no-content" else 200)

    def _task_of(self, account: Account, task_id: str) -> EmulatedTask:
        task = self.state.find(task_id, account.key)
        if task is None:
            raise RefusalError(404, "task_not_found", "No such task.")
        return task

    def _task_json(self, task: EmulatedTask, now: float) -> dict[str, Any]:
        phase = task.phase(now)
        answer: dict[str, Any] = {"id": task.id, "status": word(task, now)}
        if phase is Phase.FAILED:
            return {**answer, **self._failure(task), "created_at": self._time(task.created)}
        if phase.is_open or phase is Phase.SUCCEEDED:
            answer["progress"] = task.progress(now)
        answer |= {"model_code": task.model, "created_at": self._time(task.created)}
        if phase.is_open:
            return {**answer, "updated_at": self._time(now)}
        if phase is Phase.CANCELLED:
            return {**answer, "cancelled_at": self._time(task.ended)}
        if phase is Phase.EXPIRED:
            return answer
        usage = {"input_tokens": 0, "output_tokens": task.work.files - task.failed_parts}
        return {
            **answer,
            "result": self._result(task),
            "usage": usage,
            "completed_at": self._time(task.ended),
        }

    def _failure(self, task: EmulatedTask) -> dict[str, Any]:
        reason: dict[str, Any] = {"failed_at": self._time(task.ended)}
        if task.failure and task.failure.code:
            reason |= {"error_code": task.failure.code, "error_message": task.failure.message}
        return reason

    def _result(self, task: EmulatedTask) -> dict[str, Any]:
        made = task.work.files - task.failed_parts
        data = [self._file(task, index) for index in range(made)]
        failed = {"error": {"code": "upstream_error", "message": FAILURES[0].message}}
        created = int(self.state.clock.wall(task.ended))
        return {"created": created, "data": [*data, *[failed] * task.failed_parts]}

    def _file(self, task: EmulatedTask, index: int) -> dict[str, str]:
        revised = {"revised_prompt": f"{task.prompt}, in fine detail"}
        if task.work.form == "b64_json":
            return {"b64_json": b64encode(self.assets.content(task, index)).decode(), **revised}
        return {"url": self.assets.url(task, index), **revised}

    def _time(self, moment: float) -> str:
        when = datetime.fromtimestamp(self.state.clock.wall(moment), UTC)
        return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _invalid(message: str) -> RefusalError:
    return RefusalError(400, "invalid_request", message)
