"""Options that several commands take. cyclopts reads the annotations at run time: this file does not postpone them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from bide import LedgerError
from bide.cli import _messages
from bide.cli._follow import Goal
from bide.cli._services import NoKeyError, ServiceName

LedgerOption: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name="--ledger",
        help="The file of the records; by default $BIDE_LEDGER, else ~/.local/state/bide/ledger.db.",
    ),
]
ServiceOption: TypeAlias = Annotated[
    ServiceName | None,
    Parameter(name="--provider", help="The service; by default the one whose key is set."),
]
JSONOption: TypeAlias = Annotated[bool, Parameter(name="--json", negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class FollowingOptions:
    """The options of every command that follows tasks."""

    provider: ServiceOption = None
    ledger: LedgerOption = None
    save: Annotated[
        Path | None,
        Parameter(help="The directory to write the files to, instead of printing their addresses."),
    ] = None
    json: Annotated[
        bool, Parameter(help="Instead, print one JSON object for each task, one per line.", negative="")
    ] = False
    overwrite: Annotated[
        bool,
        Parameter(help="With --save, fetch and write existing files again.", negative=""),
    ] = False
    timeout: Annotated[
        float | None, Parameter(help="Seconds to wait for each task; the task continues after that.")
    ] = None

    def goal(self, concurrency: int | None = None, *, detach: bool = False) -> Goal:
        """What the user wants of each task."""
        return Goal(self.save, self.json, self.timeout, concurrency, detach=detach, overwrite=self.overwrite)


@Parameter(name="*")
@dataclass(frozen=True)
class CreationOptions(FollowingOptions):
    """The further options of every command that creates tasks."""

    model: Annotated[
        str | None,
        Parameter(help="The service's name of the model. It has no default, since it sets the price."),
    ] = None
    file: Annotated[
        Path | None,
        Parameter(help='A file of prompts, one per line; "-" is standard input.', allow_leading_hyphen=True),
    ] = None
    concurrency: Annotated[
        int | None,
        Parameter(
            help="The most tasks in flight; by default the documented limit of the service, if there is one."
        ),
    ] = None
    detach: Annotated[
        bool,
        Parameter(
            help='End when all are accepted, and print "TICKET TASK_ID" for each: bide resume gets the results.',
            negative="",
        ),
    ] = False


DEFAULT_CREATION = CreationOptions()
DEFAULT_FOLLOWING = FollowingOptions()


def run_or_explain(command: Callable[[], int]) -> int:
    """Run *command*; if it cannot start, print why on standard error. Returns the exit status."""
    try:
        return command()
    except NoKeyError as error:
        return print_error(error, _messages.AUTH)
    except LedgerError as error:
        return print_error(error, _messages.FAILED)
    except (ValueError, TypeError, OSError) as error:
        return print_error(error, _messages.USAGE)


def print_error(error: Exception, status: int) -> int:
    """Print *error* on standard error; returns the exit *status*."""
    print(f"bide: {error}", file=sys.stderr)
    return status
