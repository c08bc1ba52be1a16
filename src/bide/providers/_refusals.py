"""What a refusal means: one table of codes for each service, one set of rules for all.

A code has a *meaning*, and the meaning and the HTTP status together make the outcome. The rules lean one way:
whenever a create may have been carried out, it is `Unclear`, since sending it again could buy the task twice.
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
from bide.providers._replies import brief, mapping, text

if TYPE_CHECKING:
    from bide._wire import Reply

Meaning: TypeAlias = Literal["refused", "billing", "slots", "rate", "capacity", "outage"]
"""What a code says of the request: wrong, unpaid, too many at once, too fast, service busy, service broken."""

Codes: TypeAlias = Mapping[str, tuple[Meaning, int]]
"""A service's codes, in the form of `normalize_code`, with their meaning and the HTTP status they belong to.

The status is used where a service sends an error with HTTP 200.
"""

# 303 says "done, see there", and 300 and 304 make no sense for a create: only these prove that nothing was done.
_REDIRECTS = frozenset({301, 302, 307, 308})
_PASSING = frozenset({408, 425, 429})


def normalize_code(code: str) -> str:
    """*code* as the tables spell it: `LimitRequests` and `limit_requests` are one code."""
    return re.sub(r"[_\s-]", "", code[:200]).lower()


@frozen
class Fault:
    """The error part of a reply.

    Attributes:
        standard: the HTTP status, or the one that the code belongs to where it came with HTTP 200.
        meaning: what the code says, or None for an unknown one.
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
    """How one service says no.

    Attributes:
        title: the service's name in messages.
        key_variable: the environment variable of its key, for messages.
        codes: what its codes mean. "invalidurl" stands for "InvalidURL.ConnectionRefused" too.
        exact: codes of the table that do not stand for longer ones.
        billing_words: parts of messages, in lower case, that mean "pay first" whatever the code.
    """

    title: str
    key_variable: str
    codes: Codes = field(hash=False)
    exact: frozenset[str] = frozenset()
    billing_words: tuple[str, ...] = ()

    def read(self, reply: Reply, data: object) -> Fault:
        """The error in *reply*, whose JSON is *data* (None if it has none).

        Services write it flat, below "error" or below "output", and name its fields in several ways.
        """
        places = (mapping(data, "error"), data, mapping(data, "output"))
        code = _first_text(places, "code", "error_code", "errorCode", "type")
        message = _first_text(places, "message", "error_message", "errorMessage", "msg", "error", "detail")
        if data is None and reply.content:
            message = excerpt(reply.content, 200)
        meaning, usual = self._meaning(code, message)
        if meaning is None and self._meaning(_first_text(places, "type"), None)[0] == "billing":
            # OpenAI's manner has a code and, coarser, a type: money must not be missed behind a new code.
            meaning, usual = "billing", 402
        return Fault(
            status=reply.status,
            standard=(usual or reply.status) if reply.status < 300 else reply.status,
            code=brief(code, 100),
            message=brief(message),
            request_id=brief(
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

    def retryable(self, code: str | None) -> bool | None:
        """Whether a task that failed with *code* may do better another time; None: the code does not tell."""
        meaning, _ = self._meaning(code, None)
        if meaning is None:
            return True if code is not None and normalize_code(code).endswith("timeout") else None
        return meaning not in ("refused", "billing")

    # Outcomes ----------------------------------------------------------------------------------------------

    def read_refused_create(self, reply: Reply, data: object) -> Refused | NotNow | Unclear:
        """What a create's reply means that is no acceptance."""
        fault = self.read(reply, data)
        error = self._error(fault, reply, "create")
        if fault.status in _REDIRECTS:
            return Refused(error)
        # 408 is told by proxies too, when the service behind them may have read it all.
        if fault.status < 300 or (400 <= fault.status < 500 and fault.status != 408):
            return _outcome_of_answer(fault, error)
        # "Busy" with 503 is the service's own word, or that of a proxy that says when to come back.
        busy = fault.status == 503 and (
            fault.meaning in ("slots", "rate") or (fault.retry_after is not None and fault.meaning is None)
        )
        if busy or (fault.status in (500, 503) and fault.meaning == "capacity"):
            return NotNow(error, "capacity")
        return Unclear(error)

    def read_failure(self, reply: Reply, data: object, asked: str) -> Gone | TryAgain | Denied:
        """What the reply to a query, cancel or list (*asked*) means that is no answer to it."""
        fault = self.read(reply, data)
        error = self._error(fault, reply, asked)
        if fault.standard in (404, 410):
            return Gone(error)
        passing = fault.meaning in ("slots", "rate", "capacity", "outage")
        if passing or fault.standard in _PASSING or not 300 <= fault.standard < 500:
            return TryAgain(error)
        return Denied(error)

    def read_failed_list(self, reply: Reply, data: object) -> TryAgain | Denied:
        """What the reply to a list means that is no list. "Not found" is lasting here: there is no such list."""
        outcome = self.read_failure(reply, data, "list")
        return Denied(outcome.error) if isinstance(outcome, Gone) else outcome

    def unknown_task(self, asked: str, words: str, status: int) -> Gone:
        """The service's answer that it does not know the task."""
        return Gone(NotFoundError(f"{self.title} answered the {asked}: {words}", status_code=status))

    # Errors ------------------------------------------------------------------------------------------------

    def _error(self, fault: Fault, reply: Reply, asked: str) -> APIError:
        cls = _error_class(fault)
        told = " ".join(filter(None, (f"HTTP {fault.status}", fault.code)))
        if fault.message:
            told += f": {excerpt(fault.message, 400)}"
        if fault.request_id:
            told += f" (request id {fault.request_id})"
        verb = "failed at" if cls is ServerError else "refused"
        return cls(
            f"{self.title} {verb} the {asked}: {told}{self._advice(cls, fault, reply)}",
            status_code=fault.status,
            code=fault.code,
            message=fault.message,
            request_id=fault.request_id,
            retry_after=fault.retry_after,
        )

    def _advice(self, cls: type[APIError], fault: Fault, reply: Reply) -> str:
        if 300 <= fault.status < 400:
            return f"; it points to {_redirect_host(reply)}: set base_url to the API's own address"
        if cls is AuthenticationError:
            return f"; check the key (${self.key_variable} or api_key=) and that it belongs to this base_url"
        if cls is BillingError:
            return "; pay or buy what is missing in the service's console: waiting does not help"
        if cls is NotFoundError:
            return "; check the id, the model's name and base_url"
        if cls is RateLimitError and fault.retry_after is not None:
            return f"; come back after {fault.retry_after:g} s"
        return ""


def _outcome_of_answer(fault: Fault, error: APIError) -> Refused | NotNow | Unclear:
    """The outcome of a create that the service has read and answered with an error of its own."""
    match fault.meaning:
        case "slots" | "rate" | "capacity":
            return NotNow(error, fault.meaning)
        case "billing" | "refused":
            return Refused(error)
    if fault.status == 429:
        # Both services say 429 when too many tasks are in flight, and neither names a code for it for certain.
        return NotNow(error, "slots", certain=False)
    if fault.meaning == "outage" or fault.status < 300:
        return Unclear(error)
    # 425: the service would not even look at it (RFC 8470).
    return NotNow(error, "capacity") if fault.status == 425 else Refused(error)


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
    """The JSON object that *reply* holds, or None."""
    try:
        return reply.object()
    except UnexpectedReplyError:
        return None


_SUCCESS_CODES = frozenset({"", "0", "200", "ok", "success"})
"""Codes by which gateways say that all is well: an id beside one of them must not be lost."""


def has_error(data: Mapping[str, Any]) -> bool:
    """Whether *data* holds an error of its own, as services send it with HTTP 200 too."""
    code = _first_text((mapping(data, "error"), data), "code", "error_code", "errorCode", "error")
    return code is not None and str(code).lower() not in _SUCCESS_CODES
