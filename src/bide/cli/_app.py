"""The commands and their options. cyclopts reads the annotations at run time, so this file does not postpone them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from bide import ImageRequest, Request, VideoRequest, __version__
from bide.cli._messages import FAILED, USAGE
from bide.cli._options import (
    DEFAULT_CREATION,
    DEFAULT_FOLLOWING,
    CreationOptions,
    FollowingOptions,
    JSONOption,
    LedgerOption,
    ServiceOption,
    print_error,
    run_or_explain,
)
from bide.cli._place import Place
from bide.cli._services import choose_provider, require_model

app = App(
    name="bide",
    version=__version__,
    help="Await slow generations: image and video tasks behind create-and-poll APIs. Keys are read from "
    "$DASHSCOPE_API_KEY and $DIEYUYUN_API_KEY. Tasks are recorded in the ledger, a file: --ledger PATH, else "
    "$BIDE_LEDGER, else $XDG_STATE_HOME/bide/ledger.db (usually ~/.local/state/bide/ledger.db). Exit codes: 0 success, "
    "1 a task failed, 2 wrong usage, 3 the key was refused, 4 rate limit or billing, 5 timeout, 130 interrupted. "
    "BIDE_LOG=debug shows every step.",
    help_format="plaintext",
)
app.register_install_completion_command(help="Let this shell complete commands and options from now on.")


def run(arguments: Sequence[str]) -> int:
    """Run the command that *arguments* name; returns the exit status."""
    try:
        status = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return USAGE  # cyclopts has printed the error
    return status if isinstance(status, int) else 0


# Creating and following tasks --------------------------------------------------------------------------------


@app.command
def image(
    *prompts: str,
    size: str | None = None,
    n: Annotated[int, Parameter(name=["-n", "--number"])] = 1,
    start: Annotated[tuple[str, ...], Parameter(name="--image", negative="")] = (),
    creation: CreationOptions = DEFAULT_CREATION,
) -> int:
    """Make images: prints the address of each, or with --save the path of its file.

    Each prompt is a task. Tasks are sent as fast as the key's limits allow. Ctrl-C, or any other end of the program,
    does not stop the tasks: bide resume continues with them.

    Args:
        prompts: What to show. Without any, prompts are read from --file or standard input, one per line.
        size: Such as 1024x1024.
        n: Images for each prompt.
        start: The address of an image to start from; may be given several times.
    """
    return _generate(
        "image",
        prompts,
        creation,
        lambda prompt, model: ImageRequest(prompt, model=model, size=size, n=n, images=start),
    )


@app.command
def video(
    *prompts: str,
    size: str | None = None,
    resolution: str | None = None,
    duration: float | None = None,
    n: Annotated[int, Parameter(name=["-n", "--number"])] = 1,
    start: Annotated[str | None, Parameter(name="--image")] = None,
    creation: CreationOptions = DEFAULT_CREATION,
) -> int:
    """Make videos: prints the address of each, or with --save the path of its file.

    Each prompt is a task. Tasks are sent as fast as the key's limits allow. Ctrl-C, or any other end of the program,
    does not stop the tasks: bide resume continues with them.

    Args:
        prompts: What to show. Without any, prompts are read from --file or standard input, one per line.
        size: Such as 1280x720.
        resolution: Such as 720P, for models that take a resolution instead of a size.
        duration: Seconds of video.
        n: Videos for each prompt, each a task of its own.
        start: The address of the first frame.
    """
    return _generate(
        "video",
        prompts,
        creation,
        lambda prompt, model: VideoRequest(
            prompt, model=model, size=size, resolution=resolution, duration=duration, image=start
        ),
        n,
    )


@app.command
def watch(*ids: str, following: FollowingOptions = DEFAULT_FOLLOWING) -> int:
    """Wait for existing tasks: prints the addresses of their results, or with --save the paths of the files.

    Args:
        ids: Task ids from the service, or tickets from the ledger.
    """
    from bide.cli import _tasks

    return run_or_explain(
        lambda: _tasks.watch(
            choose_provider(following.provider), ids, following.goal(), Place.from_option(following.ledger)
        )
    )


@app.command
def cancel(*ids: str, provider: ServiceOption = None, ledger: LedgerOption = None) -> int:
    """Cancel tasks where the service allows that, and print their ids; exits with 1 if it is too late for one.

    Args:
        ids: Task ids from the service, or tickets from the ledger.
    """
    from bide.cli import _tasks

    return run_or_explain(lambda: _tasks.cancel(choose_provider(provider), ids, Place.from_option(ledger)))


def _generate(
    kind: str,
    prompts: Sequence[str],
    creation: CreationOptions,
    request: Callable[[str, str], Request],
    times: int = 1,
) -> int:
    """Submit *times* requests for each prompt, and follow them."""
    from bide.cli import _tasks

    def generate() -> int:
        provider = choose_provider(creation.provider)
        model = require_model(creation.model, provider, kind)
        goal = creation.goal(creation.concurrency, detach=creation.detach)
        place = Place.from_option(creation.ledger)
        return _tasks.generate(
            provider, lambda prompt: request(prompt, model), prompts, creation.file, goal, place, times=times
        )

    return run_or_explain(generate)


# The ledger --------------------------------------------------------------------------------------------------


@app.command
def ls(
    *,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    json: JSONOption = False,
    ledger: LedgerOption = None,
) -> int:
    """List the recorded tasks that are open, or whose create has an unknown outcome. Needs no key.

    Args:
        everything: List ended tasks, too, as long as the ledger keeps them.
        json: Print one JSON object for each task, one per line.
    """
    from bide.cli import _records

    return run_or_explain(lambda: _records.ls(Place.from_option(ledger), everything=everything, as_json=json))


@app.command
def resume(
    *,
    concurrency: int | None = None,
    other_keys: Annotated[bool, Parameter(negative="")] = False,
    following: FollowingOptions = DEFAULT_FOLLOWING,
) -> int:
    """Continue all open tasks of the key. Tasks that no process drives are taken over, and sent if they were not sent.

    Prints what image and video would have printed. With --save, results that were never saved are fetched first, in
    the order in which they expire. Ctrl-C does not stop the tasks.

    Args:
        concurrency: The most tasks in flight, if tasks have to be sent. The default is the documented limit of the
            service, if there is one.
        other_keys: Also send, with this key, what waits for keys that no open client holds, such as a key that was
            replaced.
    """
    from bide.cli import _tasks

    return run_or_explain(
        lambda: _tasks.resume(
            choose_provider(following.provider),
            following.goal(concurrency),
            Place.from_option(following.ledger),
            other_keys=other_keys,
        )
    )


@app.command
def settle(ticket: str, task_id: str, /, *, ledger: LedgerOption = None) -> int:
    """Record which task an unknown create has made, so that bide can watch it again. Needs no key.

    Args:
        ticket: The ticket, as bide ls or bide doctor show it.
        task_id: The id of the task, as the service's console shows it.
    """
    from bide.cli import _records

    return run_or_explain(lambda: _records.settle(Place.from_option(ledger), ticket, task_id))


@app.command
def forget(*tickets: str, ledger: LedgerOption = None) -> int:
    """Remove records that have ended, are unknown or overdue, and withdraw those that wait. Needs no key.

    Args:
        tickets: The tickets, as bide ls shows them.
    """
    from bide.cli import _records

    return run_or_explain(lambda: _records.forget(Place.from_option(ledger), tickets))


@app.command
def doctor(*, json: JSONOption = False, ledger: LedgerOption = None) -> int:
    """Check the ledger: its file, its users, what it learned, and what you have to decide. Needs no key.

    Exits with 1 if the file is damaged or cannot be used.

    Args:
        json: Print one JSON object.
    """
    from bide.cli import _doctor

    return run_or_explain(lambda: _doctor.doctor(Place.from_option(ledger), as_json=json))


# On this machine ---------------------------------------------------------------------------------------------


@app.command
def emulator(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    asset_port: int = 0,
    image_seconds: str = "uniform:10:30",
    video_seconds: str = "uniform:60:300",
    queue_seconds: str = "0.5",
    speed: float = 1.0,
    seed: int = 0,
    failure_share: float = 0.0,
    limits: bool = True,
    image_concurrency: int | None = None,
    video_concurrency: int | None = None,
    queries_per_second: int | None = None,
    retry_after: float = 5.0,
) -> int:
    """Serve Dieyuyun and DashScope on this machine until Ctrl-C; prints their URLs.

    SECONDS is a number, "uniform:LOW:HIGH" or "lognormal:MEDIAN:SIGMA".

    Args:
        host: The address to listen on.
        port: The port of both APIs; 0 is a free one.
        asset_port: The port of the result files; 0 is a free one.
        image_seconds: SECONDS from an image's create to its end.
        video_seconds: SECONDS from a video's create to its end.
        queue_seconds: How many of these SECONDS a task spends in the service's queue.
        speed: Divides all these durations.
        seed: The seed of durations and random failures.
        failure_share: The share of tasks, from 0 to 1, that fail.
        limits: Enforce the limits that the services document.
        image_concurrency: Images that a key may have in flight, on both services.
        video_concurrency: Videos that a key may have in flight, on both services.
        queries_per_second: Status queries a second that a key may make, on both services.
        retry_after: The Retry-After of a create that a limit refuses, in seconds.
    """
    from bide.cli import _emulator

    try:
        allowed = _emulator.limits_by_service(
            documented=limits,
            images=image_concurrency,
            videos=video_concurrency,
            queries_per_second=queries_per_second,
        )
        return asyncio.run(
            _emulator.serve(
                host=host,
                port=port,
                asset_port=asset_port,
                image_seconds=image_seconds,
                video_seconds=video_seconds,
                queue_seconds=queue_seconds,
                speed=speed,
                seed=seed,
                failure_share=failure_share,
                retry_after=retry_after,
                **allowed,
            )
        )
    except ValueError as error:
        return print_error(error, USAGE)
    except OSError as error:
        return print_error(error, FAILED)


@app.command
def demo(*, output: Path = Path("demo-output"), speed: float = 1.0) -> int:
    """Make 12 images and 6 videos at the emulator and save them, with keys that allow 3 of each at a time.

    Exits with 1 if a create or poll is refused, or a file is missing or broken.

    Args:
        output: The directory for the 18 files.
        speed: Makes the tasks this many times shorter, and the polls this many times more frequent.
    """
    from bide.cli._demo import command

    try:
        return command.run(output, speed=speed)
    except ValueError as error:
        return print_error(error, USAGE)
    except OSError as error:
        return print_error(error, FAILED)
