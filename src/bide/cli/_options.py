"""Options that several commands take. Annotations are read at run time here, so this file does not postpone them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from bide import LedgerError
from bide.cli import _exits
from bide.cli._run import Wishes
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
class Following:
    """What every command that follows tasks takes."""

    provider: ServiceOption = None
    ledger: LedgerOption = None
    save: Annotated[
        Path | None,
        Parameter(help="The directory to write the files to, instead of printing their addresses."),
    ] = None
    json: Annotated[
        bool, Parameter(help="Print one JSON object for each task instead, a line each.", negative="")
    ] = False
    overwrite: Annotated[
        bool,
        Parameter(help="With --save, fetch and write files anew that are there already.", negative=""),
    ] = False
    timeout: Annotated[
        float | None, Parameter(help="Seconds to wait for each task; it goes on after that.")
    ] = None

    def wishes(self, concurrency: int | None = None, *, detach: bool = False) -> Wishes:
        """What is wanted of each task."""
        return Wishes(
            self.save, self.json, self.timeout, concurrency, detach=detach, overwrite=self.overwrite
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Making(Following):
    """What every command that makes tasks takes besides."""

    model: Annotated[
        str | None, Parameter(help="The service's name of the model. Never guessed, since it sets the price.")
    ] = None
    file: Annotated[
        Path | None,
        Parameter(help='A file of prompts, one a line; "-" is standard input.', allow_leading_hyphen=True),
    ] = None
    concurrency: Annotated[
        int | None,
        Parameter(
            help="Tasks in flight at most; by default what the service's documents allow, if they say."
        ),
    ] = None
    detach: Annotated[
        bool,
        Parameter(
            help='End when all are accepted, and print "TICKET TASK_ID" for each: bide resume brings them home.',
            negative="",
        ),
    ] = False


NO_MAKING = Making()
NO_FOLLOWING = Following()


def told(command: Callable[[], int]) -> int:
    """Run *command*; what it cannot even begin with is told on standard error."""
    try:
        return command()
    except NoKeyError as error:
        return refuse(error, _exits.AUTH)
    except LedgerError as error:
        return refuse(error, _exits.FAILED)
    except (ValueError, TypeError, OSError) as error:
        return refuse(error, _exits.USAGE)


def refuse(error: Exception, status: int) -> int:
    """Tell *error*; returns the exit *status*."""
    print(f"bide: {error}", file=sys.stderr)
    return status
