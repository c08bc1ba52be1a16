"""The commands and their options. Annotations are read at run time here, so this file does not postpone them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from bide import ImageRequest, Request, VideoRequest, __version__
from bide.cli import _ledger_app
from bide.cli._ledger import Place
from bide.cli._options import (
    NO_FOLLOWING,
    NO_MAKING,
    Following,
    LedgerOption,
    Making,
    ServiceOption,
    refuse,
    told,
)
from bide.cli._services import model_or_refusal, provider_named

app = App(
    name="bide",
    version=__version__,
    help="Await slow generations: image and video tasks behind create-and-poll APIs. Keys are read from "
    "$DASHSCOPE_API_KEY and $DIEYUYUN_API_KEY. What is made is on record in the ledger, a file: --ledger PATH, else "
    "$BIDE_LEDGER, else $XDG_STATE_HOME/bide/ledger.db (usually ~/.local/state/bide/ledger.db). Exit codes: 0 ok, "
    "1 a task failed, 2 usage, 3 the key was refused, 4 rate or billing, 5 timeout, 130 interrupted. BIDE_LOG=debug "
    "shows every step.",
    help_format="plaintext",
)
app.register_install_completion_command(help="Complete commands and options in this shell from now on.")
for _command in _ledger_app.COMMANDS:
    app.command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run the command that *arguments* name; returns the exit status."""
    try:
        status = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # the error has been shown
    return status if isinstance(status, int) else 0


@app.command
def image(
    *prompts: str,
    size: str | None = None,
    n: Annotated[int, Parameter(name=["-n", "--number"])] = 1,
    start: Annotated[tuple[str, ...], Parameter(name="--image", negative="")] = (),
    making: Making = NO_MAKING,
) -> int:
    """Make images: prints the address of each, or with --save the path of its file.

    Each prompt is a task; many are sent as the key's limits allow. Ctrl-C leaves the tasks alone, and so does the
    end of the program, whatever it is: bide resume goes on with them.

    Args:
        prompts: What to show. Without any, they are read from --file or standard input, one a line.
        size: Such as 1024x1024.
        n: Images for each prompt.
        start: The address of an image to start from; may be given several times.
    """
    return _generate(
        "image",
        prompts,
        making,
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
    making: Making = NO_MAKING,
) -> int:
    """Make videos: prints the address of each, or with --save the path of its file.

    Each prompt is a task; many are sent as the key's limits allow. Ctrl-C leaves the tasks alone, and so does the
    end of the program, whatever it is: bide resume goes on with them.

    Args:
        prompts: What to show. Without any, they are read from --file or standard input, one a line.
        size: Such as 1280x720.
        resolution: Such as 720P, for models that take that instead.
        duration: Seconds of video.
        n: Videos for each prompt, each a task of its own.
        start: The address of the first frame.
    """
    return _generate(
        "video",
        prompts,
        making,
        lambda prompt, model: VideoRequest(
            prompt, model=model, size=size, resolution=resolution, duration=duration, image=start
        ),
        n,
    )


@app.command
def watch(*ids: str, following: Following = NO_FOLLOWING) -> int:
    """Wait for tasks that exist already: prints the addresses of their results, or with --save the files' paths.

    Args:
        ids: The tasks' ids, as the service gave them, or tickets of what is on record.
    """
    from bide.cli import _tasks

    return told(
        lambda: _tasks.watch(
            provider_named(following.provider), ids, following.wishes(), Place.named(following.ledger)
        )
    )


@app.command
def cancel(*ids: str, provider: ServiceOption = None, ledger: LedgerOption = None) -> int:
    """Cancel tasks where the service allows that, and print the ids; exits with 1 if it is too late for one.

    Args:
        ids: The tasks' ids, as the service gave them, or tickets of what is on record.
    """
    from bide.cli import _tasks

    return told(lambda: _tasks.cancel(provider_named(provider), ids, Place.named(ledger)))


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

    SECONDS are a number, "uniform:LOW:HIGH" or "lognormal:MEDIAN:SIGMA".

    Args:
        host: The address to listen on.
        port: The port of both APIs; 0 is a free one.
        asset_port: The port of the result files; 0 is a free one.
        image_seconds: SECONDS from an image's create to its end.
        video_seconds: SECONDS from a video's create to its end.
        queue_seconds: SECONDS of that in the service's queue.
        speed: Divides all of these.
        seed: For durations and random failures.
        failure_share: The share of tasks, from 0 to 1, that fail.
        limits: Refuse what the services' documents say they refuse.
        image_concurrency: Images that a key may have in flight, on both services.
        video_concurrency: Videos that a key may have in flight, on both services.
        queries_per_second: Status queries that a key may make, on both services.
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
        return refuse(error, 2)
    except OSError as error:
        return refuse(error, 1)


@app.command
def demo(*, output: Path = Path("demo-output"), speed: float = 1.0) -> int:
    """Bring 12 images and 6 videos home from the emulator, through keys that allow 3 at a time each.

    Exits with 1 if anything is refused, lost or broken on the way.

    Args:
        output: The directory for the 18 files.
        speed: Makes the tasks that much shorter, and the looks at them that much denser.
    """
    from bide.cli import _demo

    try:
        return _demo.run(output, speed=speed)
    except ValueError as error:
        return refuse(error, 2)
    except OSError as error:
        return refuse(error, 1)


def _generate(
    kind: str,
    prompts: Sequence[str],
    making: Making,
    request: Callable[[str, str], Request],
    times: int = 1,
) -> int:
    """Submit a request for each prompt, so many *times*, and follow it."""
    from bide.cli import _tasks

    def run() -> int:
        provider = provider_named(making.provider)
        model = model_or_refusal(making.model, provider, kind)
        wishes = making.wishes(making.concurrency, detach=making.detach)
        place = Place.named(making.ledger)
        return _tasks.generate(
            provider, lambda prompt: request(prompt, model), prompts, making.file, wishes, place, times=times
        )

    return told(run)
