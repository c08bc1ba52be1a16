"""What a client was made with, checked once and frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from bide.models import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bide._downloads.settings import Downloads
    from bide._events import Announcer
    from bide._polling.pace import Pace
    from bide.models import Deadlines
    from bide.providers import Provider

    LimitsByKind: TypeAlias = Limits | Mapping[str, Limits] | None


@frozen
class ClientSettings:
    """The settings of one client. The keys are not among them: they stay with the transport and the account.

    Attributes:
        limits: what each key may do, for every kind of work or by kind; None is what the service documents.
        query_rate: status queries of the account in any second; None is no limit.
        save_to: the directory to which each result is saved automatically, or None.
        adopts: whether the client takes over all that other clients leave, or only what it must.
    """

    provider: Provider
    limits: LimitsByKind
    query_rate: float | None
    deadlines: Deadlines
    pace: Pace
    downloads: Downloads
    save_to: Path | None
    adopts: bool
    announcer: Announcer

    def limits_of(self, kind: str) -> Limits:
        """The limits of each key for a *kind* of work."""
        documented = self.provider.profile(kind).limits
        given = (
            self.limits if self.limits is None or isinstance(self.limits, Limits) else self.limits.get(kind)
        )
        return documented if given is None else given.over(documented)
