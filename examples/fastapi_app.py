"""A web service that makes videos, to be copied and made your own: `pip install bide fastapi uvicorn`.

    DASHSCOPE_API_KEY=... python examples/fastapi_app.py
    DASHSCOPE_API_KEY=... uvicorn --workers 4 --timeout-graceful-shutdown 5 --app-dir examples fastapi_app:app

    POST   /videos                  {"prompt": ...}: 202 at once, with the ticket; an Idempotency-Key header buys once
    GET    /videos/{ticket}         its state, without a call to the service
    DELETE /videos/{ticket}         cancels it, where the service still can
    GET    /videos/{ticket}/events  its state, then every change to the end, as server-sent events

All that must last is in the ledger, the file that $LEDGER names. So any worker answers for any ticket, and all of them
together keep within what the key allows; one key, one file.

- To deploy, start the new workers and end the old ones with SIGTERM, in either order (SIGHUP to `uvicorn --workers`
  does it one by one). Others go on with what a worker leaves within a second, after SIGKILL too; after that a create
  under way is looked up at the service, never sent again. Give SIGTERM 20 s before SIGKILL: creates are answered first.
- The file must be on a local disk, of one machine. It holds prompts and results, for your user alone to read, for a
  week beyond the expiry of the results; until then an Idempotency-Key buys nothing again. `store_prompts=False` keeps
  digests of the prompts instead, but then only the worker that took a video can send it: what waits ends as cancelled
  with it.
- Progress is seen by the worker that watches the video; the others know its state.
- Authentication is yours to add: any caller with a ticket sees its video and may cancel it. With several callers, put
  the caller's name before the ticket.
- A limit of the body's size, and of open streams, belongs in the proxy in front of it.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Annotated, Literal, Self

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from bide import BideError, Client, ClientClosedError, DashScope, SQLiteLedger, Task, TaskHandle, VideoRequest

MAX_OPEN = 1_000  # open videos that a worker may know of; beyond that its POST answers 503
HEARTBEAT = 15.0  # seconds of silence after which a stream sends a comment: proxies cut what is silent
RETRY = {"Retry-After": "5"}

log = logging.getLogger("videos")


class Order(BaseModel, extra="forbid"):
    """What POST takes. A misspelt field is refused: left out in silence, it would buy the wrong video."""

    prompt: str = Field(min_length=1, max_length=2_000)
    model: Literal["wan2.6-t2v"] = "wan2.6-t2v"  # the model sets the price: name here what callers may choose
    size: str | None = Field(default=None, max_length=20)
    duration: int | None = Field(default=None, ge=1, le=60)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)


class Video(BaseModel):
    """What the caller sees of a task."""

    ticket: str
    task_id: str | None
    status: str
    final: bool
    progress: float | None
    urls: list[str]
    error: str | None

    @classmethod
    def of(cls, task: Task) -> Self:
        return cls(
            ticket=task.ticket,
            task_id=task.task_id,
            status=task.status,
            final=task.status.is_final,
            progress=task.progress,
            urls=[output.url for output in task.outputs if output.url],
            error=(task.error.message or task.error.code) if task.error else None,
        )


class Streams:
    """The event streams of this worker. They end when it does: their readers reconnect to another worker."""

    def __init__(self) -> None:
        self._waits: set[asyncio.Timeout] = set()
        self._closing = False

    def close(self) -> None:
        """End all streams."""
        self._closing = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    async def of(self, handle: TaskHandle) -> AsyncIterator[str]:
        """The state of a video, then every change, as server-sent events. A slow reader misses some, never the end."""
        changes = handle.events()
        while not self._closing:
            task = None
            try:
                async with asyncio.timeout(HEARTBEAT) as wait:
                    self._waits.add(wait)
                    task = await anext(changes)
            except ClientClosedError:
                return
            except (TimeoutError, BideError) as fault:  # silence, or a fault that does not end the video
                log.debug("%s: %r", handle.ticket, fault)
            finally:
                self._waits.discard(wait)
            if task is None:
                yield ": nothing new\n\n"
                continue
            yield f"id: {task.status}\nevent: video\ndata: {Video.of(task).model_dump_json()}\n\n"
            if task.status.is_final:
                return


@contextmanager
def at_shutdown(act: Callable[[], None]) -> Iterator[None]:
    """Call *act* at SIGTERM and SIGINT, before the server's own handler.

    uvicorn waits for open streams to end before it ends the lifespan: behind its `yield` it is too late to end them.
    """
    loop = asyncio.get_running_loop()
    servers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        servers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # a test client may run the app in another
        for number in (signal.SIGTERM, signal.SIGINT):
            server = signal.getsignal(number)
            if callable(server):  # without it uvicorn does not wait for streams: the signal ends the process
                servers[number] = server
                signal.signal(number, handle)
    try:
        yield
    finally:
        for signal_number, server in servers.items():
            signal.signal(signal_number, server)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client a worker: it belongs to the loop, and all requests share its polls and connections.

    Closing it lets creates under way be answered, 10 s at most, and hands over what is open.
    """
    app.state.coming = 0
    app.state.streams = Streams()
    app.state.ledger = SQLiteLedger(os.environ.get("LEDGER", "videos.db"))
    with at_shutdown(app.state.streams.close):
        async with Client(DashScope(), ledger=app.state.ledger) as app.state.client:
            yield


app = FastAPI(title="Videos", lifespan=lifespan)


@app.exception_handler(BideError)
async def unavailable(_: Request, error: BideError) -> JSONResponse:
    """The ledger fails, the client is closing, or the service could not be asked to cancel."""
    log.warning("%s: %s", type(error).__name__, error)
    return JSONResponse({"detail": "not possible at the moment, try again"}, 503, headers=RETRY)


@app.exception_handler(RequestValidationError)
async def refused(_: Request, error: RequestValidationError) -> JSONResponse:
    """What is wrong and where, without the input: that may be huge, or no text at all."""
    faults = [
        {"where": [ascii(part)[:100] for part in each["loc"]], "what": each["msg"]} for each in error.errors()
    ]
    return JSONResponse({"detail": faults}, 422)


async def handle_of(ticket: str) -> TaskHandle:
    """The handle of *ticket*, whichever worker took it. The app need not keep handles: the ledger has them."""
    try:
        handle: TaskHandle = await app.state.client.attach(ticket=ticket)
    except (LookupError, ValueError) as error:  # ValueError: it belongs to another key
        raise HTTPException(404, "no such video") from error
    return handle


Handle = Annotated[TaskHandle, Depends(handle_of)]
Ticket = Annotated[str | None, Header(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


@app.post("/videos", status_code=202)
async def create(order: Order, response: Response, idempotency_key: Ticket = None) -> Video:
    """Put a video on record. Waiting for a slot, the create and the polling go on behind the answer."""
    client: Client = app.state.client
    app.state.coming += 1
    try:
        # Those on their way, this one included, are counted at the same moment as those that are open.
        is_full = app.state.coming + (await client.statistics()).open > MAX_OPEN
        if is_full and (idempotency_key is None or await app.state.ledger.get(idempotency_key) is None):
            raise HTTPException(503, "too many videos are waiting", headers=RETRY)
        handle = await client.submit(VideoRequest(**order.model_dump()), ticket=idempotency_key)
    except (TypeError, ValueError) as error:  # it cannot be sent, or the key came with another body before
        raise HTTPException(422, str(error)) from error
    finally:
        app.state.coming -= 1
    response.headers["Location"] = f"/videos/{handle.ticket}"
    return Video.of(handle.task)


@app.get("/videos/{ticket}")
async def show(handle: Handle) -> Video:
    """The newest state."""
    return Video.of(handle.task)


@app.delete("/videos/{ticket}")
async def cancel(handle: Handle) -> Video:
    """Cancel a video. Its state may say so a moment later, when the service does."""
    if not await handle.cancel():
        raise HTTPException(409, f"too late; last seen {handle.task.status}")
    return Video.of(handle.task)


@app.get("/videos/{ticket}/events")
async def events(handle: Handle, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The state now, then every change. A browser connects again when a stream ends; once it has seen the end of the
    video, the answer 204 stops it."""
    if handle.task.status.is_final and last_event_id == handle.task.status:
        return Response(status_code=204)
    # Proxies, nginx among them: pass it on at once.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(app.state.streams.of(handle), media_type="text/event-stream", headers=headers)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=5)
