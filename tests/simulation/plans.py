"""A history as data: what is wished for, which misfortunes happen when. A seed draws one, and a text names one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

PHASES = (
    "asked",
    "waiting",
    "submitting",
    "connecting",
    "sent",
    "made",
    "submitted",
    "changed",
    "final",
)
"""The phases of a wish: its caller has asked; its record waits; it is admitted; its create connects, is sent, has made
its task; its task id is known; its task has changed; it has ended."""

WAYS = ("run", "run with ticket", "submit", "gather", "as_completed", "cancel")
"""How a caller gets what it wishes."""


@dataclass(frozen=True)
class Wish:
    """One picture that a caller wants, once.

    Attributes:
        name: its prompt.
        host: the number of the host of its caller.
        at: when the caller asks, in seconds.
        way: one of `WAYS`.
        timeout: seconds that the caller waits, or None.
        patience: whether the caller submits anew where nobody can say what was bought.
        group: callers of one group ask together, in one `gather` or `as_completed`.
    """

    name: str
    host: int
    at: float
    way: str
    timeout: float | None = None
    again_if_unknown: bool = False
    group: int = 0


@dataclass(frozen=True)
class Moment:
    """When a misfortune happens: at a time, or when a wish reaches a phase (for the n-th time), some turns or seconds
    later."""

    at: float | None = None
    wish: str = ""
    phase: str = ""
    turns: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.at is not None:
            return f"at {self.at:g} s"
        later = f", {self.turns} turns later" if self.turns else ""
        later += f", {self.seconds:g} s later" if self.seconds else ""
        return f"when {self.wish!r} is {self.phase}{later}"


@dataclass(frozen=True)
class Misfortune:
    """One thing that goes wrong."""

    kind: str
    when: Moment
    details: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.details)[name]

    def __str__(self) -> str:
        details = ", ".join(f"{name} {value}" for name, value in self.details)
        return f"{self.kind}{f' ({details})' if details else ''} {self.when}"


@dataclass(frozen=True)
class Plan:
    """A history before it happens.

    Attributes:
        seed: what chance inside the library and the service is drawn from.
        service: "dashscope" or "dieyuyun".
        durable: whether the hosts share a SQLite ledger; else there is one host with a ledger in memory.
        hosts: how many.
        cap: tasks in flight that the client allows a key.
        slots: what the service allows; None is no limit.
        retry_after: seconds that the service advises with a 429, or None.
        seconds: the shortest and the longest time that a task takes.
        withdraw: what `aclose` is told.
    """

    seed: str
    service: str
    durable: bool
    hosts: int
    cap: int
    slots: int | None
    retry_after: float | None
    seconds: tuple[float, float]
    wishes: tuple[Wish, ...]
    misfortunes: tuple[Misfortune, ...] = field(default=())

    def without(self, part: object) -> Plan:
        """The same without one wish or misfortune."""
        wishes = tuple(each for each in self.wishes if each is not part)
        names = {each.name for each in wishes}
        misfortunes = tuple(
            each
            for each in self.misfortunes
            if each is not part and dict(each.details).get("wish") in (None, *names)
        )
        return replace(self, wishes=wishes, misfortunes=misfortunes)


def draw(seed: str, wishes: int = 8) -> Plan:
    """The plan that *seed* names."""
    chance = Random(f"plan {seed}")
    durable = chance.random() < 0.5
    hosts = chance.choice((1, 2, 2, 3, 4)) if durable else 1
    cap = chance.choice((1, 2, 3, 3))
    plan = Plan(
        seed=seed,
        service=chance.choice(("dashscope", "dashscope", "dieyuyun")),
        durable=durable,
        hosts=hosts,
        cap=cap,
        slots=chance.choice((cap, cap, None)),
        retry_after=chance.choice((None, 1.0, 5.0)),
        seconds=chance.choice(((3.0, 8.0), (5.0, 20.0), (10.0, 40.0))),
        wishes=_draw_wishes(chance, hosts, wishes),
    )
    count = chance.choice((1, 2, 2, 3, 3, 4, 6))
    return replace(plan, misfortunes=tuple(_draw_misfortune(chance, plan) for _ in range(count)))


def _draw_wishes(chance: Random, hosts: int, count: int) -> tuple[Wish, ...]:
    found: list[Wish] = []
    group = 0
    while len(found) < count:
        way, host, at = (
            chance.choice(WAYS),
            chance.randrange(hosts),
            round(chance.choice((0.0, 0.0, chance.uniform(0, 20))), 3),
        )
        size = min(count - len(found), chance.randint(2, 4)) if way in ("gather", "as_completed") else 1
        group += 1
        timeout = round(chance.uniform(1, 40), 2) if chance.random() < 0.3 else None
        again = chance.random() < 0.3
        found += [
            Wish(f"wish {len(found) + place}", host, at, way, timeout, again, group) for place in range(size)
        ]
    return tuple(found)


def _draw_moment(chance: Random, plan: Plan) -> Moment:
    if chance.random() < 0.25:
        return Moment(at=round(chance.uniform(0, 40), 3))
    turns = chance.choice((0, 0, 1, 2, 3, 5, 8, 13))
    seconds = chance.choice((0.0, 0.0, 0.0, 0.01, 0.03, 0.5, 3.0))
    return Moment(
        wish=chance.choice(plan.wishes).name,
        phase=chance.choice(PHASES[:-1]),
        turns=0 if seconds else turns,
        seconds=seconds,
    )


def _draw_misfortune(chance: Random, plan: Plan) -> Misfortune:
    kinds = {
        "exchange": 5,
        "cancel": 4,
        "outage": 2,
        "restart": 1,
        "close": 2,
        "foreign": 1,
        "stop": 1,
        "wall": 1,
        "rotate": 0.6,
        "block": 0.6,
        "ledger": 3 if plan.durable else 0,
        "kill": 1.5 if plan.durable else 0,
    }
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    return Misfortune(kind, _draw_moment(chance, plan), _DETAILS[kind](chance, plan))


Details = tuple[tuple[str, Any], ...]

EXCHANGE_FATES = (
    "refused",
    "unroutable",
    "cut before",
    "status before",
    "page before",
    "cut after",
    "lost reply",
    "slow reply",
    "slow arrival",
    "status after",
    "garbled",
)
LEDGER_FATES = ("locked", "failed after", "slow")


def _exchange(chance: Random, plan: Plan) -> Details:
    fate = chance.choice(EXCHANGE_FATES)
    op = chance.choice(("create", "create", "create", "query", "query", "list", "cancel", "any"))
    details: dict[str, Any] = {"fate": fate, "op": op, "times": chance.choice((1, 1, 1, 2, 3, 8))}
    if fate in ("slow reply", "slow arrival"):
        details["seconds"] = chance.choice((1.0, 8.0, 30.0, 90.0))
    if fate == "unroutable":
        details["lasts"] = chance.choice((2.0, 8.0, 20.0))
    if fate == "status before":
        status, code = chance.choice(
            (
                (429, "Throttling.RateQuota"),
                (429, ""),
                (400, "InvalidParameter"),
                (503, "ServiceUnavailable"),
                (404, "ModelNotFound"),
            )
        )
        details |= {"status": status, "code": code}
        if status == 429:
            details["retry_after"] = chance.choice((None, "2", "10"))
    if fate == "page before":
        details["status"] = chance.choice((403, 404, 502, 503, 200, 401))
    if fate == "status after":
        details |= {"status": chance.choice((500, 502, 504)), "code": chance.choice(("", "InternalError"))}
    return tuple(details.items())


def _seconds(*choices: float) -> Any:
    return lambda chance, plan: (("seconds", chance.choice(choices)),)


_DETAILS: dict[str, Any] = {
    "exchange": _exchange,
    "cancel": lambda chance, plan: (("wish", chance.choice(plan.wishes).name),),
    "outage": lambda chance, plan: (
        ("how", chance.choice(("refused", "unroutable", "page before"))),
        ("host", chance.choice((None, chance.randrange(plan.hosts)))),
        ("seconds", chance.choice((3.0, 12.0, 35.0, 60.0))),
    ),
    "restart": _seconds(1.0, 5.0, 30.0),
    "close": lambda chance, plan: (
        ("host", chance.randrange(plan.hosts)),
        ("withdraw", chance.random() < 0.4),
        ("grace", chance.choice((0.0, 1.0, 10.0))),
        ("seconds", chance.choice((0.0, 2.0, 10.0))),
    ),
    "kill": lambda chance, plan: (
        ("host", chance.randrange(plan.hosts)),
        ("seconds", chance.choice((0.1, 2.0, 20.0))),
    ),
    "foreign": lambda chance, plan: (
        ("slots", chance.randint(1, 3)),
        ("seconds", chance.choice((5.0, 30.0))),
    ),
    "stop": lambda chance, plan: (
        ("host", chance.randrange(plan.hosts)),
        ("seconds", chance.choice((1.0, 4.0, 20.0, 70.0))),
    ),
    "block": lambda chance, plan: (
        ("host", chance.randrange(plan.hosts)),
        ("seconds", chance.choice((1.0, 25.0, 70.0))),
    ),
    "wall": lambda chance, plan: (("seconds", chance.choice((-90000.0, -3600.0, 3600.0, 700000.0))),),
    "rotate": lambda chance, plan: (),
    "ledger": lambda chance, plan: (
        ("fate", chance.choice(LEDGER_FATES)),
        ("host", chance.choice((None, chance.randrange(plan.hosts)))),
        ("times", chance.choice((1, 1, 2, 5, 1000))),
        ("lasts", chance.choice((0.5, 8.0, 20.0))),
        ("seconds", chance.choice((0.0, 0.3, 5.0))),
        ("writes", chance.random() < 0.8),
    ),
}

MISFORTUNES = (
    *(f"exchange: {fate}" for fate in EXCHANGE_FATES),
    *(f"ledger: {fate}" for fate in LEDGER_FATES),
    *(kind for kind in _DETAILS if kind not in ("exchange", "ledger")),
)
"""All kinds of misfortunes, as the table of `make storm` names them."""
