"""`Downloads`: the settings for fetching result files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from bide._http.addresses import check_hosts
from bide._validators import positive, whole_number

if TYPE_CHECKING:
    from collections.abc import Collection


def _hosts(hosts: Collection[str] | None) -> tuple[str, ...] | None:
    return None if hosts is None else check_hosts(hosts)


@frozen
class Downloads:
    """How result files are fetched, in `Client(downloads=...)`.

    Args:
        at_once: files that the client fetches at the same time.
        deadline: seconds that one file may take, all tries included, from the moment its download starts.
        largest_image: the most bytes that an image may have. A larger one is not fetched.
        largest_video: the same for any other file.
        hosts: the only hosts that files are fetched from: names, or ".example.com" for all names below it. None allows
            any host with a public address.

    Raises:
        TypeError, ValueError: a field has a wrong type or value.
    """

    at_once: int = field(default=4, validator=whole_number(1, 100, optional=False), kw_only=True)
    deadline: float = field(default=1800.0, validator=positive, kw_only=True)
    largest_image: int = field(
        default=100_000_000, validator=whole_number(1, 2**62, optional=False), kw_only=True
    )
    largest_video: int = field(
        default=2_000_000_000, validator=whole_number(1, 2**62, optional=False), kw_only=True
    )
    hosts: tuple[str, ...] | None = field(default=None, converter=_hosts, kw_only=True)

    def largest(self, kind: str) -> int:
        """The most bytes that a file of this kind may have."""
        return self.largest_image if kind == "image" else self.largest_video
