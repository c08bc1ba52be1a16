"""The commands over the ledger. Annotations are read at run time here, so this file does not postpone them."""

from typing import Annotated

from cyclopts import Parameter

from bide.cli._ledger import Place
from bide.cli._options import NO_FOLLOWING, Following, JSONOption, LedgerOption, told
from bide.cli._services import provider_named


def ls(
    *,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    json: JSONOption = False,
    ledger: LedgerOption = None,
) -> int:
    """List the tasks on record that are open, or whose create is unknown. Needs no key.

    Args:
        everything: Those that have ended as well, for as long as they are kept.
        json: Print one JSON object for each, a line each.
    """
    from bide.cli import _listing

    return told(lambda: _listing.ls(Place.named(ledger), everything=everything, as_json=json))


def resume(*, concurrency: int | None = None, following: Following = NO_FOLLOWING) -> int:
    """Watch all open tasks of the key on, and take over what nobody drives: what was not sent is sent now.

    Prints what image and video would have printed. With --save, results that are there by now and were never
    saved are fetched first, those that expire first before the others. Ctrl-C leaves the tasks alone.

    Args:
        concurrency: Tasks in flight at most, if there are some to be sent; by default what the service's documents
            allow, if they say.
    """
    from bide.cli import _tasks

    return told(
        lambda: _tasks.resume(
            provider_named(following.provider), following.wishes(concurrency), Place.named(following.ledger)
        )
    )


def settle(ticket: str, task_id: str, /, *, ledger: LedgerOption = None) -> int:
    """Say which task an unknown create has made, so that it is watched on. Needs no key.

    Args:
        ticket: The ticket, as bide ls or bide doctor show it.
        task_id: The task's id, as the service's console shows it.
    """
    from bide.cli import _records

    return told(lambda: _records.settle(Place.named(ledger), ticket, task_id))


def forget(*tickets: str, ledger: LedgerOption = None) -> int:
    """Remove records that have ended, are unknown or overdue, and withdraw what waits. Needs no key.

    Args:
        tickets: The tickets, as bide ls shows them.
    """
    from bide.cli import _records

    return told(lambda: _records.forget(Place.named(ledger), tickets))


def doctor(*, json: JSONOption = False, ledger: LedgerOption = None) -> int:
    """Tell how the ledger is, who uses it, what it has learned, and what needs a decision of yours. Needs no key.

    Exits with 1 if the file is damaged or cannot be used.

    Args:
        json: Print one JSON object.
    """
    from bide.cli import _doctor

    return told(lambda: _doctor.doctor(Place.named(ledger), as_json=json))


COMMANDS = (ls, resume, settle, forget, doctor)
