"""The commands and their options. Annotations are read at run time here, so this file does not postpone them."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError

from bide import __version__

app = App(
    name="bide",
    version=__version__,
    help="Await slow generations: image and video tasks behind create-and-poll APIs.",
    help_format="plaintext",
)


def run(arguments: Sequence[str]) -> int:
    """Run the command that *arguments* name; returns the exit status."""
    try:
        status = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # the error has been shown
    return status if isinstance(status, int) else 0


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
        return _refuse(error, 2)
    except OSError as error:
        return _refuse(error, 1)


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
        return _refuse(error, 2)
    except OSError as error:
        return _refuse(error, 1)


def _refuse(error: Exception, status: int) -> int:
    print(f"bide: {error}", file=sys.stderr)
    return status
