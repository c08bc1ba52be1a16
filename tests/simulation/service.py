"""The service and the network to it. The service knows the truth: what it has made, for whom, and what it billed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httpx

from bide.emulator import Emulator, ServiceLimits, _dashscope, _dieyuyun, fingerprint
from bide.emulator._answers import Call, RefusalError
from bide.emulator._tasks import EmulatedTask, Work

if TYPE_CHECKING:
    from simulation.world import HostLoop, World

LATENCY = 0.02
"""Seconds that a connection, a request and an answer take each."""
HTML = b"<html><body><h1>Gateway</h1></body></html>"
KEYS = ("sk-canary-first-000", "sk-canary-second-00")
"""The keys of the one account, before and after it changes them."""

ALL_OPS = frozenset({"create", "query", "list", "cancel"})

BEFORE = ("refused", "unroutable", "cut before", "status before", "page before")
"""What may befall an exchange so that it has no effect at the service."""
AFTER = ("cut after", "lost reply", "slow reply", "slow arrival", "status after", "garbled")
"""What may befall it although it has its effect."""


@dataclass
class Fate:
    """What befalls the next exchanges of some kinds.

    Attributes:
        kind: one of `BEFORE` or `AFTER`.
        ops: "create", "query", "list", "cancel".
        host: only of this host.
        times: so many exchanges at most.
        until: no exchange that begins later.
        seconds: how long, where the kind says that something is slow.
        status: of an answer in place of the service's own.
        retry_after: its `Retry-After`.
        code: the code in its JSON.
    """

    kind: str
    ops: frozenset[str]
    host: str | None = None
    times: int = 1_000_000
    until: float = float("inf")
    seconds: float = 0.0
    status: int = 503
    retry_after: str | None = None
    code: str = ""


@dataclass
class Exchange:
    """One call, as the service and the network have seen it."""

    number: int
    op: str
    host: str
    key: str
    began: float
    prompt: str | None = None
    task_id: str | None = None
    sent: float | None = None
    arrived: float | None = None
    ended: float | None = None
    status: int | None = None
    retry_after: float | None = None
    fate: str | None = None
    made: str | None = None
    answered: float | None = None


class _Clock:
    """The service's clock, which no misfortune of ours moves."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def now(self) -> float:
        return self._world.now

    def wall(self, moment: float | None = None) -> float:
        return self._world.true_time(moment)

    def date(self, moment: float | None = None) -> str:
        return formatdate(self.wall(moment), usegmt=True)


class Service:
    """One account at one service.

    Args:
        name: "dashscope" or "dieyuyun".
        slots: tasks of a key that may be in flight, by the service; None is no limit.
        on_phase: called with the prompt of a create and the phase of its call.
    """

    def __init__(
        self,
        world: World,
        name: str,
        *,
        slots: int | None,
        seconds: tuple[float, float],
        seed: int,
        retry_after: float | None,
        on_phase: Callable[[str, str], object],
    ) -> None:
        self.world = world
        self.name = name
        self._on_phase = on_phase
        limits = ServiceLimits(concurrency=slots, queries_per_second=20)
        self._emulator = Emulator(
            image_seconds=seconds,
            video_seconds=seconds,
            queue_seconds=(0.0, 2.0),
            seed=seed,
            retry_after=retry_after,
            dashscope_limits=limits,
            dieyuyun_limits=limits,
        )
        ids = itertools.count(1)
        for module in (_dashscope, _dieyuyun):
            module.new_id = lambda: f"{next(ids):08}-0000-4000-8000-000000000000"  # type: ignore[attr-defined]
        self._emulator._clock = _Clock(world)  # type: ignore[assignment]
        self._emulator._build()
        self._emulator._assets._secret = b"simulated secret"
        self._emulator._assets.origin = "http://files.sim.test"
        self.fates: list[Fate] = []
        self.exchanges: list[Exchange] = []
        self.open: set[int] = set()
        self.thrown_away: list[Exchange] = []
        self.accepted_keys = {KEYS[0]}
        self._cuts: dict[int, Callable[[], object]] = {}
        self._foreign = itertools.count(1)

    @property
    def base_url(self) -> str:
        return "http://api.sim.test/api/v1" if self.name == "dashscope" else "http://api.sim.test"

    @property
    def state(self) -> Any:
        return self._emulator._states[self.name]

    def made_for(self, prompt: str) -> list[EmulatedTask]:
        """The tasks that were made for a prompt, in order."""
        return [task for task in self.state.tasks() if task.prompt == prompt]

    def find(self, task_id: str) -> EmulatedTask | None:
        found: EmulatedTask | None = self.state.find(task_id)
        return found

    def in_flight(self, *, foreign: bool = False) -> int:
        """Tasks in flight now, ours or those of the other user of the key."""
        now = self.world.now
        return sum(
            task.phase(now).is_open and task.prompt.startswith("foreign") is foreign
            for task in self.state._tasks.values()
        )

    # The other user of the key -----------------------------------------------------------------------------

    def take_slots(self, count: int, seconds: float) -> int:
        """The other user of the key takes so many slots, as far as they are free. Returns how many."""
        account, taken = self.state.account(fingerprint(KEYS[0])), 0
        for _ in range(count):
            if account.has_slot("video", self.world.now):
                number = next(self._foreign)
                prompt = f"foreign {number} [seconds {seconds:g}]"
                work = Work("video", "wan2.6-t2v", prompt, 1, (64, 64), "video", {})
                self.state.open(account, work, f"foreign-{number}")
                taken += 1
        return taken

    # The network -------------------------------------------------------------------------------------------

    def restart(self, seconds: float) -> None:
        """The service restarts: what is under way is cut, and no connection is made for so many seconds."""
        self.fates.insert(0, Fate("refused", ALL_OPS, until=self.world.now + seconds))
        for cut in list(self._cuts.values()):
            cut()

    def fate_of(self, op: str, host: str) -> Fate | None:
        """What befalls an exchange that begins now."""
        now = self.world.now
        self.fates = [fate for fate in self.fates if fate.times > 0 and fate.until > now]
        for fate in self.fates:
            if op in fate.ops and fate.host in (None, host):
                fate.times -= 1
                return fate
        return None

    def transport(self, loop: HostLoop, host: str) -> Wire:
        """What a client of *host* sends its calls over."""
        return Wire(self, loop, host)

    def operation(self, call: Call) -> str:
        """The operation of *call*."""
        route = self._emulator._services[self.name].route(call)
        return "other" if route is None else route.on

    def act(self, call: Call) -> tuple[int, dict[str, str], bytes]:
        """Carry *call* out."""
        key = call.key or ""
        if key in KEYS:  # all keys of the account see the same
            if key not in self.accepted_keys:
                service = self._emulator._services[self.name]
                answer = service.refusal(RefusalError(401, "InvalidApiKey", "Invalid API-key provided."))
                return answer.status, dict(answer.headers), answer.body
            call = replace(call, headers={**call.headers, "authorization": f"Bearer {KEYS[0]}"})
        answer = self._emulator._decide_api(call).answer
        assert answer is not None
        return answer.status, {"Date": self._emulator._clock.date(), **answer.headers}, answer.body


class Wire(httpx.AsyncBaseTransport):
    """The network between one host and the service."""

    def __init__(self, service: Service, loop: HostLoop, host: str) -> None:
        self._service = service
        self._world = service.world
        self._loop = loop
        self._host = host

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, body = request.url, request.content
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.method, url.path, url.raw_path.decode(), dict(url.params), headers, body)
        service = self._service
        op = service.operation(call)
        exchange = Exchange(len(service.exchanges), op, self._host, call.key or "", self._world.now)
        if op == "create":
            exchange.prompt = _prompt_of(json.loads(body))
        elif op in ("query", "cancel"):
            exchange.task_id = next((p for p in reversed(url.path.split("/")) if p != "cancel"), None)
        service.exchanges.append(exchange)
        service.open.add(exchange.number)
        try:
            return await self._exchange(call, exchange, request.extensions["timeout"])
        except httpx.HTTPError as error:
            self._tell(exchange, f"{type(error).__name__}")
            raise
        except asyncio.CancelledError:
            self._tell(exchange, "given up")
            if exchange.answered is not None:
                service.thrown_away.append(exchange)
            raise
        finally:
            exchange.ended = self._world.now
            service.open.discard(exchange.number)
            service._cuts.pop(exchange.number, None)

    async def _exchange(self, call: Call, exchange: Exchange, timeouts: dict[str, float]) -> httpx.Response:
        service, world = self._service, self._world
        fate = service.fate_of(exchange.op, self._host)
        kind = fate.kind if fate else ""
        exchange.fate = kind or None
        self._note(exchange, "connecting")
        if fate is not None and kind == "unroutable":
            until = min(world.now + timeouts["connect"], fate.until)
            await self._pass(exchange, until - world.now)
            if until < fate.until:
                raise httpx.ConnectTimeout("the host does not answer")
        else:
            await self._pass(exchange, LATENCY)
        if kind == "refused":
            raise httpx.ConnectError("connection refused")
        exchange.sent = world.now
        self._note(exchange, "sent")
        answered = self._send(call, exchange, fate)
        status, headers, content = await answered
        await asyncio.sleep(0)  # a real connection takes some turns to hand over what has arrived
        await asyncio.sleep(0)
        exchange.status = status
        self._tell(exchange, f"{status}" + (f", made {exchange.made}" if exchange.made else ""))
        return httpx.Response(status, headers=headers, content=content)

    def _send(
        self, call: Call, exchange: Exchange, fate: Fate | None
    ) -> asyncio.Future[tuple[int, dict[str, str], bytes]]:
        """The request is on its way, whatever becomes of the caller. The future is the answer."""
        service, world = self._service, self._world
        future: asyncio.Future[tuple[int, dict[str, str], bytes]] = self._loop.create_future()
        kind = fate.kind if fate else ""
        is_cut = False

        def cut() -> None:
            nonlocal is_cut
            if not is_cut:
                is_cut = True
                self._loop.arrive(lambda: _fail(future, httpx.ReadError("connection reset by peer")))

        def answer(status: int, headers: dict[str, str], content: bytes) -> None:
            if not is_cut:
                exchange.answered = world.now
                self._loop.arrive(lambda: future.done() or future.set_result((status, headers, content)))

        def arrive() -> None:
            if is_cut:
                return
            exchange.arrived = world.now
            if fate is not None and kind in ("status before", "page before"):
                world.after(LATENCY, lambda: answer(*_instead(fate, exchange)))
                return
            if kind == "cut before":
                cut()
                return
            tasks = len(service.state._tasks)
            status, headers, content = service.act(call)
            if exchange.op == "create" and len(service.state._tasks) > tasks:
                exchange.made = next(reversed(service.state._tasks))
                self._note(exchange, "made")
            if status == 429:
                advice = headers.get("Retry-After")
                exchange.retry_after = None if advice is None else float(advice)
            if kind == "cut after":
                world.after(LATENCY, cut)
            elif kind == "lost reply":
                pass
            elif fate is not None and kind == "status after":
                world.after(LATENCY, lambda: answer(*_instead(fate, exchange)))
            elif kind == "garbled":
                world.after(LATENCY, lambda: answer(status, headers, content[: len(content) // 2]))
            else:
                wait = fate.seconds if fate is not None and kind == "slow reply" else 0.0
                world.after(LATENCY + wait, lambda: answer(status, headers, content))

        service._cuts[exchange.number] = cut
        wait = fate.seconds if fate is not None and kind == "slow arrival" else 0.0
        world.after(LATENCY + wait, arrive)
        return future

    async def _pass(self, exchange: Exchange, seconds: float) -> None:
        future = self._loop.create_future()
        self._service._cuts[exchange.number] = lambda: self._loop.arrive(
            lambda: _fail(future, httpx.ConnectError("connection refused"))
        )
        self._world.after(
            max(0.0, seconds), lambda: self._loop.arrive(lambda: future.done() or future.set_result(None))
        )
        await future

    def _note(self, exchange: Exchange, phase: str) -> None:
        if exchange.prompt is not None:
            self._service._on_phase(exchange.prompt, phase)

    def _tell(self, exchange: Exchange, text: str) -> None:
        about = exchange.prompt or exchange.task_id or ""
        fate = f" [{exchange.fate}]" if exchange.fate else ""
        self._world.tell(f"{self._host}: {exchange.op} {about}: {text}{fate}")


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _instead(fate: Fate, exchange: Exchange) -> tuple[int, dict[str, str], bytes]:
    """The answer that comes in place of the service's own."""
    headers = {"Content-Type": "application/json"}
    if fate.retry_after is not None:
        headers["Retry-After"] = fate.retry_after
        exchange.retry_after = float(fate.retry_after)
    if fate.kind == "page before" or not fate.code:
        return fate.status, {**headers, "Content-Type": "text/html"}, HTML
    return fate.status, headers, json.dumps({"code": fate.code, "message": fate.code}).encode()


def _prompt_of(body: dict[str, Any]) -> str:
    given = body.get("input", body)
    return str(given.get("prompt", ""))
