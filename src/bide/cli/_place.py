"""Where the commands keep their records: the ledger's file, and the records that a command line names."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bide import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bide import SQLiteLedger
    from bide.ledgers import OwnerView, Record


@dataclass(frozen=True)
class Place:
    """The file of the ledger.

    Attributes:
        options: the words that name it on the command line; none if the environment or the default names it.
        is_default: whether it is the default file, whose folder `ledger` creates if it is missing.
    """

    path: Path
    options: tuple[str, ...] = ()
    is_default: bool = False

    @classmethod
    def from_option(cls, path: Path | None) -> Place:
        """The file at *path*; None is $BIDE_LEDGER, or else the file in the user's state folder.

        Raises:
            ValueError: there is no state folder, since the user has no home.
        """
        if path is not None:
            return cls(path.expanduser().absolute(), ("--ledger", str(path)))
        variable = os.environ.get("BIDE_LEDGER")
        if variable:
            return cls(Path(variable).expanduser().absolute())
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        try:
            # The XDG Base Directory Specification says to ignore a relative path.
            folder = state if state.is_absolute() else Path.home() / ".local" / "state"
        except RuntimeError:
            raise ValueError(
                "there is no home folder for the ledger: name a file with --ledger or $BIDE_LEDGER"
            ) from None
        return cls(folder / "bide" / "ledger.db", is_default=True)

    @property
    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.exists()

    def ledger(self) -> SQLiteLedger:
        """The ledger, not opened yet. Creates the folder of the default file.

        Raises:
            LedgerError: the folder cannot be created.
            ImportError: this system does not support the SQLite ledger.
        """
        from bide import SQLiteLedger

        try:
            if self.is_default:
                _make_private_folder(self.path.parent)
            return SQLiteLedger(self.path)
        except OSError as fault:
            raise LedgerError(
                f"the ledger's folder {self.path.parent} cannot be created ({fault.strerror}): name another file with "
                f"--ledger or $BIDE_LEDGER"
            ) from fault

    def command(self, *words: str) -> str:
        """A `bide` command on this ledger, for the user to type."""
        return shlex.join(["bide", *words[:1], *self.options, *words[1:]])


def _make_private_folder(folder: Path) -> None:
    """Create *folder*, and its missing parents, readable by this user alone."""
    if not folder.is_dir():
        _make_private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


async def find_records(
    ledger: SQLiteLedger, words: Sequence[str], *, ended: bool = False
) -> dict[str, Record]:
    """The records that *words* name: each word is a ticket, or the id of a task that is still open.

    Args:
        ended: also find tasks that have ended by their ids.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    async with ledger:
        by_task = {record.task.task_id: record for record in await ledger.records(all=ended)}
        found = {word: await ledger.get(word) or by_task.get(word) for word in words}
    return {word: record for word, record in found.items() if record is not None}


def driver_of(record: Record, owners: Iterable[OwnerView]) -> OwnerView | None:
    """The live process that drives *record*; None if there is none."""
    instance = (record.owner or "").partition(".")[0]
    return next((each for each in owners if each.is_alive and each.instance == instance), None)


def prompt_of(record: Record) -> str | None:
    """The prompt of its request, if the ledger stores it."""
    prompt = getattr(record.request, "prompt", None)
    return prompt if isinstance(prompt, str) else None
