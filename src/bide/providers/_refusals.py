"""What an error reply means: one table of codes for each service, and one set of rules for all.

A code has a *meaning*. The meaning and the HTTP status together give the outcome. The rules are cautious: a create
that the service may have carried out is `Unclear`, since sending it again could buy the task twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from attrs import field, frozen

from bide._text import excerpt
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
from bide.providers._base import Denied, Gone, NotNow, Refused, TryAgain, Unclear
from bide.providers._replies import excerpt_or_none, mapping, text

if TYPE_CHECKING:
    from bide._wire import Reply

Meaning: TypeAlias = Literal["refused", "billing", "slots", "rate", "capacity", "outage"]
"""What a code says about the request.

"refused": the request or the key is wrong; "billing": the account must pay first; "slots": too many tasks at once;
"rate": too many calls in a short time; "capacity": the service is busy; "outage": the service has failed.
"""

Codes: TypeAlias = Mapping[str, tuple[Meaning, int]]
"""A service's codes, as `normalize_code` returns them, with their meaning and their usual HTTP status.

The usual status is used if a service sends an error with HTTP 200.
"""

# These prove that the service did nothing. 303 means that it did the work; 300 and 304 make no sense for a create.
_REDIRECTS = frozenset({301, 302, 307, 308})
_PASSING = frozenset({408, 425, 429})
# A proxy, a gateway or a captive portal answers with these itself. From the service they come with its code.
_OF_PROXIES = frozenset({401, 403, 404, 407, 410})
# A proxy refuses the form of the request with these, before it passes anything on.
_NOT_PASSED_ON = frozenset({407, 411, 413, 414, 431})


def normalize_code(code: str) -> str:
    """*code* in the spelling of the tables: `LimitRequests` and `limit_requests` are the same code."""
    return re.sub(r"[_\s-]", "", code[:200]).lower()


@frozen
class Fault:
    """The error part of a reply.

    Attributes:
        standard: the HTTP status; for an error with HTTP 200 the usual status of its code.
        meaning: what the code means, or None for an unknown code.
    """

    status: int
    standard: int
    code: str | None
    message: str | None
    request_id: str | None
    retry_after: float | None
    meaning: Meaning | None


@frozen
class FaultReader:
    """Reads the error replies of one service.

    Attributes:
        title: the service's name in messages.
        key_variable: the environment variable of its key, for messages.
        codes: what its codes mean. "invalidurl" includes longer codes such as "InvalidURL.ConnectionRefused".
        exact: codes of the table that do not include longer codes.
        billing_words: parts of messages, in lower case, that mean "pay first", whatever the code is.
    """

    title: str
    key_variable: str
    codes: Codes = field(hash=False)
    exact: frozenset[str] = frozenset()
    billing_words: tuple[str, ...] = ()

    def read(self, reply: Reply, data: object) -> Fault:
        """The error in *reply*. *data* is its JSON object, or None if it has none.

        Services put the error at the top level, below "error" or below "output", and its fields have several names.
        """
        places = (mapping(data, "error"), data, mapping(data, "output"))
        code = _first_text(places, "code", "error_code", "errorCode", "type")
        message = _first_text(places, "message", "error_message", "errorMessage", "msg", "error", "detail")
        if data is None and reply.content:
            message = excerpt(reply.content, 200)
        meaning, usual = self._meaning(code, message)
        if meaning is None and self._meaning(_first_text(places, "type"), None)[0] == "billing":
            # OpenAI's format has a code and a general type. If the code is new, the type still shows a billing error.
            meaning, usual = "billing", 402
        return Fault(
            status=reply.status,
            standard=(usual or reply.status) if reply.status < 300 else reply.status,
            code=excerpt_or_none(code, 100),
            message=excerpt_or_none(message),
            request_id=excerpt_or_none(
                _first_text(places, "request_id", "requestId") or reply.headers.get("x-request-id"), 100
            ),
            retry_after=reply.retry_after,
            meaning=meaning,
        )

    def _meaning(self, code: str | None, message: str | None) -> tuple[Meaning | None, int | None]:
        if message is not None and any(words in message.lower() for words in self.billing_words):
            return "billing", 429
        whole = name = normalize_code(code or "")
        while name:
            if name in self.codes and (name == whole or name not in self.exact):
                return self.codes[name]
            name = name.rpartition(".")[0]
        return None, None

    def is_retryable(self, code: str | None) -> bool | None:
        """Whether a task that failed with *code* may succeed if it is made again; None if the code does not say."""
        meaning, _ = self._meaning(code, None)
        if meaning is None:
            return True if code is not None and normalize_code(code).endswith("timeout") else None
        return meaning not in ("refused", "billing")

    # Outcomes ----------------------------------------------------------------------------------------------

    def read_refused_create(self, reply: Reply, data: object) -> Refused | NotNow | Unclear:
        """What the reply to a create means, if it names no created task."""
        fault = self.read(reply, data)
        error = self._build_error(fault, reply, "create")
        if fault.status in _REDIRECTS:
            return Refused(error)
        is_page = not _is_of_service(fault, data) and fault.status not in _PASSING | _NOT_PASSED_ON
        if 400 <= fault.status < 500 and is_page:
            return Unclear(_unattributed(reply))
        # A proxy may send 408 although the service has read the whole request.
        if fault.status < 300 or (400 <= fault.status < 500 and fault.status != 408):
            return _outcome_of_answer(fault, error)
        # With 503, only a code of the service, or a `Retry-After`, shows that the service was busy and did nothing.
        busy = fault.status == 503 and (
            fault.meaning in ("slots", "rate") or (fault.retry_after is not None and fault.meaning is None)
        )
        if busy or (fault.status in (500, 503) and fault.meaning == "capacity"):
            return NotNow(error, "capacity")
        return Unclear(error)

    def read_failure(self, reply: Reply, data: object, action: str) -> Gone | TryAgain | Denied:
        """What an error reply to a call means; *action* is "query", "cancel" or "list".

        `Gone` and `Denied` are verdicts of the service itself. The page of a proxy, an empty body and a redirect say
        nothing about the task.
        """
        fault = self.read(reply, data)
        if 400 <= fault.status < 500 and fault.status not in _PASSING and not _is_of_service(fault, data):
            return TryAgain(_unattributed(reply))
        error = self._build_error(fault, reply, action)
        passing = fault.meaning in ("slots", "rate", "capacity", "outage")
        if passing or fault.standard in _PASSING or not 400 <= fault.standard < 500:
            return TryAgain(error)
        return Gone(error) if fault.standard in (404, 410) else Denied(error)

    def read_failed_list(self, reply: Reply, data: object) -> TryAgain | Denied:
        """What an error reply to a list means. "Not found" is permanent here: the service has no such list."""
        outcome = self.read_failure(reply, data, "list")
        return Denied(outcome.error) if isinstance(outcome, Gone) else outcome

    def unknown_task(self, action: str, words: str, status: int) -> Gone:
        """The outcome if the service answers that it does not know the task."""
        return Gone(NotFoundError(f"{self.title} answered the {action}: {words}", status_code=status))

    # Errors ------------------------------------------------------------------------------------------------

    def _build_error(self, fault: Fault, reply: Reply, action: str) -> APIError:
        cls = _error_class(fault)
        words = " ".join(filter(None, (f"HTTP {fault.status}", fault.code)))
        if fault.message:
            words += f": {excerpt(fault.message, 400)}"
        if fault.request_id:
            words += f" (request id {fault.request_id})"
        verb = "failed at" if cls is ServerError else "refused"
        return cls(
            f"{self.title} {verb} the {action}: {words}{self._advice(cls, fault, reply)}{reply.retry_after_note}",
            status_code=fault.status,
            code=fault.code,
            message=fault.message,
            request_id=fault.request_id,
            retry_after=fault.retry_after,
        )

    def _advice(self, cls: type[APIError], fault: Fault, reply: Reply) -> str:
        if 300 <= fault.status < 400:
            return f"; it redirects to {_redirect_host(reply)}: set base_url to the API's own address"
        if cls is AuthenticationError:
            return f"; check that the key (${self.key_variable} or api_key=) is valid and belongs to this base_url"
        if cls is BillingError:
            return "; pay the bill or buy the product in the service's console: waiting does not help"
        if cls is NotFoundError:
            return "; check the id, the model's name and base_url"
        if cls is RateLimitError and fault.retry_after is not None:
            return f"; the service allows the next call after {fault.retry_after:g} s"
        return ""


def _outcome_of_answer(fault: Fault, error: APIError) -> Refused | NotNow | Unclear:
    """The outcome of a create that the service has read and answered with its own error."""
    match fault.meaning:
        case "slots" | "rate" | "capacity":
            return NotNow(error, fault.meaning)
        case "billing" | "refused":
            return Refused(error)
    if fault.status == 429:
        # Both services answer 429 when too many tasks are in flight, and document no certain code for it.
        return NotNow(error, "slots")
    if fault.meaning == "outage" or fault.status < 300:
        return Unclear(error)
    # 425: the service did not process the request (RFC 8470).
    return NotNow(error, "capacity") if fault.status == 425 else Refused(error)


def _is_of_service(fault: Fault, data: object) -> bool:
    """Whether the service itself has sent the error: it has the form of its errors."""
    if not isinstance(data, Mapping):
        return False
    return fault.code is not None or bool(mapping(data, "error")) or fault.status not in _OF_PROXIES


def _unattributed(reply: Reply) -> UnexpectedReplyError:
    return reply.unexpected("it is no error of the service; a proxy on the way may have sent it")


def _error_class(fault: Fault) -> type[APIError]:
    status = fault.standard
    if status >= 500 or (status < 300 and fault.meaning is None):
        return ServerError
    if fault.meaning == "billing" or status == 402:
        return BillingError
    by_status: dict[int, type[APIError]] = {
        401: AuthenticationError,
        403: AuthenticationError,
        404: NotFoundError,
        410: NotFoundError,
        429: RateLimitError,
    }
    return by_status.get(status, InvalidRequestError)


def _first_text(places: tuple[object, ...], *names: str) -> str | None:
    return next((found for place in places if (found := text(place, *names)) is not None), None)


def _redirect_host(reply: Reply) -> str:
    try:
        host = urlsplit(reply.headers.get("location", "")).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return excerpt(host, 100) or "no other host"


def object_in(reply: Reply) -> dict[str, Any] | None:
    """The JSON object in the body of *reply*, or None."""
    try:
        return reply.object()
    except UnexpectedReplyError:
        return None


def is_acknowledgement(reply: Reply) -> bool:
    """Whether a 2xx *reply* whose content does not matter comes from the service, and is not a page."""
    is_page = "html" in reply.headers.get("content-type", "") or reply.content.lstrip().startswith(b"<")
    return object_in(reply) is not None or not is_page


_SUCCESS_CODES = frozenset({"", "0", "200", "ok", "success"})
"""Gateways report success with these codes. Such a reply is not an error, so its task id is not lost."""


def has_error(data: Mapping[str, Any]) -> bool:
    """Whether *data* holds an error. Services send errors with HTTP 200, too."""
    code = _first_text((mapping(data, "error"), data), "code", "error_code", "errorCode", "error")
    return code is not None and str(code).lower() not in _SUCCESS_CODES
