"""`Emulator`: both services, their result files and their faults, on real sockets."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from bide.emulator import _dashscope, _dieyuyun
from bide.emulator._answers import Answer, Call, RefusalError
from bide.emulator._assets import Assets
from bide.emulator._control import Control
from bide.emulator._dashscope import DashScope
from bide.emulator._dieyuyun import Dieyuyun, DieyuyunStyle
from bide.emulator._durations import Duration, sampler
from bide.emulator._faults import Fault, Faults
from bide.emulator._limits import DOCUMENTED_DASHSCOPE, UNLIMITED, ServiceLimits
from bide.emulator._server import Delivery, Handler, Listener, Meter
from bide.emulator._settings import Clock, Keys, Settings
from bide.emulator._state import ServiceState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from bide.emulator._service import Service
    from bide.emulator._tasks import EmulatedTask

_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-api-key")
_LOG_LENGTH = 100_000


@dataclass(frozen=True)
class RequestRecord:
    """One request that reached the emulator.

    Attributes:
        time: when it had arrived completely, in seconds of the loop's clock.
        service: `"dieyuyun"` or `"dashscope"`; None if no service has such a path.
        on: create, query, cancel, list or asset; `"other"` for unknown paths.
        path: with the query string.
        headers: names in lower case; headers that may hold a key are left out.
        has_key: whether the request had such a header.
        status: the status of the answer; None if the connection was cut instead.
        sent: bytes of an asset's body that went into the socket so far, cut or not; None for other calls.
    """

    time: float
    service: str | None
    on: str
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    has_key: bool
    status: int | None
    _meter: Meter | None = field(default=None, repr=False, compare=False)

    @property
    def sent(self) -> int | None:
        """Bytes of an asset's body that went into the socket so far; None for other calls."""
        return self._meter.sent if self._meter else None


class Emulator:
    """Dieyuyun and DashScope on one port of this machine, and the files they make on another.

    Use it as an async context manager. It serves in the running loop, by the clock of that loop:

        async with Emulator(video_seconds=(8, 12)) as emulator:
            ...  # a client at emulator.dashscope_url

    Magic words in a prompt order what happens to its task:

    - `[fail]`, `[fail CODE]`: it ends as failed, without or with a code.
    - `[part]`, `[part 2]`: one (two) of its files fail; at least one file is made.
    - `[status SUSPENDED]`: it has this status word while it runs.
    - `[seconds 4]`, `[queue 3]`: seconds from its create to its end, and how many of them it is in the service's queue.
      `speed` does not divide them; `[seconds 0]` ends a task at once.
    - `[expire 60]`: 60 s after its end the service forgets it, and its URLs stop working.
    - `[refuse CODE]`: the create is refused with this code.
    - `[bytes 5000000]`: each of its files has at least this size (up to 4 GB; 100 MB inside JSON).

    Args:
        image_seconds, video_seconds: seconds from a create to the task's end; see `Duration` for ranges and
            distributions.
        queue_seconds: how many of these seconds a task is in the service's queue.
        cancel_seconds: how long a running task continues after its cancel (Dieyuyun).
        speed: divides these four. It does not divide limits, `Retry-After`, delays and expiry: clients depend on them.
        seed: for durations and random failures: with the same seed, the n-th task of a service always ends the same
            way.
        failure_share: the share of tasks, from 0 to 1, that fail at random, with codes from the documents.
        dieyuyun_limits: none by default, as its documents name none.
        dashscope_limits: the documented figures by default.
        retry_after: seconds in the `Retry-After` of a create that a limit refuses; None leaves the header out.
        keep: seconds after a task's end until the service forgets the task.
        url_seconds: seconds from a task's end until its URLs answer 403; None means as long as `keep`.
        fresh_urls: each poll of an ended task (and each create that answers with the result) gives new URLs. They work
            for `url_seconds` from that poll, but never longer than the service keeps the task. An old URL works
            until its own expiry.
        cut_share: the share of asset answers, from 0 to 1, that break off at a random place in the body. `seed` decides
            for each answer with a file, in the order of arrival. With 1 no file is ever complete.
        dieyuyun: how Dieyuyun behaves at each point that its documents leave open.
        api_keys: the keys that are accepted; None accepts every key.
        host, port, asset_port: where to listen; 0 means any free port.

    Raises:
        ValueError: an argument is out of its range.
        OSError: a port is in use (raised on entering the context).
    """

    def __init__(
        self,
        *,
        image_seconds: Duration = (10.0, 30.0),
        video_seconds: Duration = (60.0, 300.0),
        queue_seconds: Duration = 0.5,
        cancel_seconds: float = 0.0,
        speed: float = 1.0,
        seed: int = 0,
        failure_share: float = 0.0,
        dieyuyun_limits: ServiceLimits = UNLIMITED,
        dashscope_limits: ServiceLimits = DOCUMENTED_DASHSCOPE,
        retry_after: float | None = 5.0,
        keep: float = 24 * 3600.0,
        url_seconds: float | None = None,
        fresh_urls: bool = False,
        cut_share: float = 0.0,
        dieyuyun: DieyuyunStyle | None = None,
        api_keys: Iterable[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        asset_port: int = 0,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed!r}")
        for name, share in (("failure_share", failure_share), ("cut_share", cut_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {share!r}")
        self._settings = Settings(
            seconds={"image": sampler(image_seconds), "video": sampler(video_seconds)},
            queue_seconds=sampler(queue_seconds),
            cancel_seconds=cancel_seconds / speed,
            speed=speed,
            seed=seed,
            failure_share=failure_share,
            keep=keep,
            url_seconds=keep if url_seconds is None else url_seconds,
            fresh_urls=fresh_urls,
            cut_share=cut_share,
            retry_after=retry_after,
            keys=Keys(api_keys),
        )
        self._limits = {"dieyuyun": dieyuyun_limits, "dashscope": dashscope_limits}
        self._style = dieyuyun or DieyuyunStyle()
        self._host, self._port, self._asset_port = host, port, asset_port
        self._faults = Faults()
        self._log: deque[RequestRecord] = deque(maxlen=_LOG_LENGTH)
        self._control = Control(
            stats=self.stats, reset=self.reset, add=self._faults.add, rotate=self.rotate_key
        )
        self._states: dict[str, ServiceState] = {}
        self._services: dict[str, Service] = {}
        self._listeners: list[Listener] = []
        self._origin = self._asset_origin = ""

    async def __aenter__(self) -> Self:
        if self._listeners:
            raise RuntimeError("this emulator is running already")
        self._clock = Clock()
        self._build()
        try:
            self._origin = await self._listen(self._decide_api, self._port)
            self._asset_origin = await self._listen(self._decide_asset, self._asset_port)
            self._assets.origin = self._asset_origin
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop serving and cut open connections. The records and counters stay readable."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.aclose()

    @property
    def dieyuyun_url(self) -> str:
        """Base URL for Dieyuyun's clients (`DIEYUYUN_BASE_URL`)."""
        return self._running(self._origin)

    @property
    def dashscope_url(self) -> str:
        """Base URL for DashScope's clients (`DASHSCOPE_BASE_URL`); ends in `/api/v1`."""
        return f"{self._running(self._origin)}/api/v1"

    @property
    def asset_url(self) -> str:
        """Origin of the result files."""
        return self._running(self._asset_origin)

    def wall_time(self) -> float:
        """The present time of the services: epoch seconds that pass with the loop's clock."""
        return self._clock.wall()

    def tasks(self) -> list[EmulatedTask]:
        """The truth about all tasks since the last reset, service by service, in order of creation."""
        return [task for state in self._states.values() for task in state.tasks()]

    def requests(self) -> list[RequestRecord]:
        """The requests since the last reset in order of arrival (the newest 100,000), without control calls."""
        return list(self._log)

    def stats(self) -> dict[str, Any]:
        """The counters, as plain data.

        `creates`, `queries`, `cancels`, `lists` and `asset_gets` count the calls that arrived, answered or not.
        `creates_429` and `queries_429` (queries, lists and cancels) count the calls that a limit or an ordered fault
        has refused with 429. `tasks` is the number of accepted creates; `statuses` counts their present status words.
        `max_in_flight` is the most tasks at once, for each key's fingerprint and kind of work. `services` has the same
        counters for each service.
        """
        services = {name: state.stats() for name, state in self._states.items()}
        return {**_sum(services.values()), "services": services}

    def fault(
        self,
        *,
        on: Literal["create", "query", "cancel", "list", "asset"],
        times: int = 1,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        drop: Literal["before", "after"] | None = None,
        delay: float = 0.0,
        truncate: int | None = None,
        effect: bool = False,
        service: Literal["dieyuyun", "dashscope"] | None = None,
        match: str | None = None,
        length: int | None = None,
        changed: bool = False,
        validator: Literal["last-modified", "weak", "none"] | None = None,
        drip: float | None = None,
        redirect: str | None = None,
        bomb: int | None = None,
        unranged: bool = False,
    ) -> None:
        """Order faults for the next calls of a kind. Several orders apply one after the other.

        Args:
            on: the operation.
            times: how many calls get the fault.
            status, body: they are sent instead of the service's own answer; the call then has no effect (unless
                `effect`). *body* is text, bytes, or a value that is sent as JSON; without it the service's error body
                is sent.
            headers: added to the answer. Headers alone change nothing else.
            drop: the connection is reset `"before"` the call has any effect, or `"after"` it took effect (a create is
                accepted: a task is made and paid for).
            delay: seconds of loop time until the answer or the reset. The call takes effect when it arrives.
            truncate: the body breaks off after this many bytes of the answer (of the range, if one is sent), although
                `Content-Length` names the full length.
            effect: the call takes effect, although `status` or `body` replaces its answer.
            service: only for calls to this service.
            match: only for calls with this text in the path, query string or body.
            length: the value of `Content-Length`, whatever the length of the body is. If it is more, the connection is
                closed after the body; if it is less, the rest is not sent. This argument and the following are for
                assets only.
            changed: from this call on the file is another one of about the same size, with other bytes, another `ETag`
                and another `Last-Modified`.
            validator: `"last-modified"` leaves out the `ETag`, `"weak"` makes it a weak one, `"none"` leaves out
                both; `If-Range` is answered accordingly.
            drip: the body is sent in small pieces, at this many bytes a second of loop time.
            redirect: 302 (or `status`) to this URL, unchanged; `"loop"` means the requested URL.
            bomb: 200 with `Content-Encoding: gzip`, whatever the client accepts, and a small body that decompresses
                to this many bytes (up to 4 GB): the file's first 64 KiB and zeros.
            unranged: `Range` is ignored: the answer is 200 and the whole file.

        Raises:
            ValueError: an argument is out of its range.
        """
        self._faults.add(
            Fault(
                on=on,
                times=times,
                status=status,
                headers=headers or {},
                body=body,
                drop=drop,
                delay=delay,
                truncate=truncate,
                effect=effect,
                service=service,
                match=match,
                length=length,
                changed=changed,
                validator=validator,
                drip=drip,
                redirect=redirect,
                bomb=bomb,
                unranged=unranged,
            )
        )

    def rotate_key(self, old: str, new: str) -> None:
        """Give the account of the key *old* the key *new*, at both services. From now on *old* is refused.

        The account keeps its tasks, its limits, and its name in the counters: the fingerprint of its first key.

        Raises:
            ValueError: *old* is not accepted, or *new* is in use already.
        """
        self._settings.keys.rotate(old, new)

    def reset(self) -> None:
        """Forget all tasks, counters, orders, rotated keys and the request log."""
        for state in self._states.values():
            state.reset()
        if self._services:
            self._assets.reset()
        self._settings.keys.reset()
        self._faults.clear()
        self._log.clear()

    def _build(self) -> None:
        """Make the state and the services, which need the running loop's clock."""
        self._log.clear()
        self._assets: Assets = Assets(self._find, clock=self._clock, settings=self._settings)
        for name, module in (("dieyuyun", _dieyuyun), ("dashscope", _dashscope)):
            self._states[name] = ServiceState(
                name,
                clock=self._clock,
                settings=self._settings,
                limits=self._limits[name],
                failures=module.FAILURES,
                describe=module.describe,
                word=module.word,
            )
        self._services = {
            "dieyuyun": Dieyuyun(self._states["dieyuyun"], self._assets, self._style),
            "dashscope": DashScope(self._states["dashscope"], self._assets),
        }

    @staticmethod
    def _running(origin: str) -> str:
        if not origin:
            raise RuntimeError("the emulator has no URL before it has started: use `async with`")
        return origin

    async def _listen(self, decide: Handler, port: int) -> str:
        listener = Listener(decide, self._clock)
        self._listeners.append(listener)
        return await listener.start(self._host, port)

    def _find(self, service: str, task_id: str) -> EmulatedTask | None:
        state = self._states.get(service)
        return state.find(task_id) if state else None

    def _decide_api(self, call: Call) -> Delivery:
        if call.path.startswith("/_emulator/"):
            return Delivery(self._control.answer(call))
        name = "dieyuyun" if call.path.startswith("/v1/") else "dashscope"
        service = self._services[name]
        route = service.route(call)
        if route is None:
            answer = service.refusal(
                RefusalError(404, "NotFound", f"No such path: {call.method} {call.path}")
            )
            self._record(call, None, "other", answer.status)
            return Delivery(answer)
        return self._deliver(
            call,
            name,
            route.on,
            act=lambda _: service.perform(route, call),
            refuse=lambda status: service.refusal(
                RefusalError(status, "Fault", "Ordered from the emulator.")
            ),
        )

    def _decide_asset(self, call: Call) -> Delivery:
        delivery = self._deliver(
            call,
            self._assets.service_of(call),
            "asset",
            act=lambda fault: self._assets.answer(call, fault),
            refuse=lambda status: Answer.json({"code": "Fault"}, status=status),
            meter=Meter(),
        )
        place = self._assets.random_cut(call, delivery.answer)
        if delivery.truncate is None:
            delivery.truncate = place
        return delivery

    def _deliver(
        self,
        call: Call,
        service: str | None,
        on: str,
        *,
        act: Callable[[Fault | None], Answer],
        refuse: Callable[[int], Answer],
        meter: Meter | None = None,
    ) -> Delivery:
        """Carry a call out (or not, as ordered), count it, and return what is sent."""
        text = f"{call.target}\n{call.body.decode('utf-8', 'replace')}" if len(self._faults) else ""
        fault = self._faults.take(on, service, text)
        if fault is not None and fault.changed:
            self._assets.change(call)
        answer = act(fault) if fault is None or fault.takes_effect else None
        if fault is not None and fault.replaces and not fault.effect:
            answer = refuse(fault.status or 200)
        if fault is not None and answer is not None:
            answer = fault.apply_to(answer)
        delivery = Delivery(answer, fault, meter=meter)
        status = None if delivery.cut or answer is None else answer.status
        if state := self._states.get(service or ""):
            state.count(on, status)
        self._record(call, service, on, status, meter)
        return delivery

    def _record(
        self, call: Call, service: str | None, on: str, status: int | None, meter: Meter | None = None
    ) -> None:
        headers = {name: value for name, value in call.headers.items() if name not in _SECRET_HEADERS}
        has_key = len(headers) < len(call.headers)
        self._log.append(
            RequestRecord(
                self._clock.now, service, on, call.method, call.target, headers, has_key, status, meter
            )
        )


def _sum(services: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The counters of all services together. For a key used at two services, `services` shows them separately."""
    merged: dict[str, Any] = {}
    most: dict[str, dict[str, int]] = {}
    statuses: Counter[str] = Counter()
    for stats in services:
        for name, value in stats.items():
            if isinstance(value, int):
                merged[name] = merged.get(name, 0) + value
        statuses.update(stats["statuses"])
        for key, kinds in stats["max_in_flight"].items():
            known = most.setdefault(key, {})
            known.update({kind: max(count, known.get(kind, 0)) for kind, count in kinds.items()})
    return {**merged, "max_in_flight": most, "statuses": dict(statuses)}
