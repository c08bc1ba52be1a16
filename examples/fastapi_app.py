"""A web service that makes videos, for you to copy and change: `pip install bide fastapi uvicorn`.

    DASHSCOPE_API_KEY=... python examples/fastapi_app.py
    DASHSCOPE_API_KEY=... uvicorn --workers 4 --timeout-graceful-shutdown 5 --app-dir examples fastapi_app:app

    POST   /videos                  {"prompt": ...}: 202 at once, with the ticket; one Idempotency-Key buys one video
    GET    /videos/{ticket}         its state, without a call to the service
    DELETE /videos/{ticket}         cancels it, if the service still can
    GET    /videos/{ticket}/events  its state, then every change to the end, as server-sent events

Everything that must survive a restart is in the ledger, the file that $LEDGER names. So any worker can answer for any
ticket, and all workers together stay within the limits of the key. Use one file for one key.

- To deploy, start the new workers and end the old ones with SIGTERM, in either order (SIGHUP to `uvicorn --workers`
  replaces them one by one). When a worker ends, others take over its videos within a second, after SIGKILL too. After
  SIGKILL a create under way is looked up at the service, never sent again. Wait 20 s between SIGTERM and SIGKILL, so
  that creates under way are answered first.
- The file must be on a local disk of one machine. It holds prompts and results until a week after the results expire;
  until then an Idempotency-Key buys nothing again. Only your user can read the file. `store_prompts=False` keeps
  digests of the prompts instead. But then only the worker that accepted a video can send it: when this worker ends, its
  waiting videos end as cancelled.
- Only the worker that polls a video knows its progress. The others know its state.
- You must add authentication: any caller with a ticket can see its video and cancel it. With several callers, put the
  caller's name before the ticket.
- Limit the size of bodies and the number of open streams in the proxy in front of the app.
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

MAX_OPEN = 1_000  # open videos that a worker may have; beyond that its POST answers 503
HEARTBEAT = 15.0  # seconds after which a silent stream sends a comment: proxies cut silent connections
RETRY = {"Retry-After": "5"}

log = logging.getLogger("videos")


class Order(BaseModel, extra="forbid"):
    """The body of POST. A misspelt field is refused: if it were ignored, the caller would buy the wrong video."""

    prompt: str = Field(min_length=1, max_length=2_000)
    model: Literal["wan2.6-t2v"] = "wan2.6-t2v"  # the model sets the price: list what callers may choose
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
    """The event streams of this worker. They end when it ends; then their readers reconnect to another worker."""

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

    uvicorn waits until open streams have ended. Only then it ends the lifespan, so code after its `yield` is too late.
    """
    loop = asyncio.get_running_loop()
    servers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        servers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # a test client may use another thread
        for number in (signal.SIGTERM, signal.SIGINT):
            server = signal.getsignal(number)
            if callable(server):  # without a handler, the signal ends the process, and no stream delays it
                servers[number] = server
                signal.signal(number, handle)
    try:
        yield
    finally:
        for signal_number, server in servers.items():
            signal.signal(signal_number, server)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for each worker: it belongs to the loop, and all requests share its polls and connections.

    Closing it waits at most 10 s for the answers of creates under way, and hands over the open videos.
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
    """What is wrong and where, without the input, which may be huge or not text at all."""
    faults = [
        {"where": [ascii(part)[:100] for part in each["loc"]], "what": each["msg"]} for each in error.errors()
    ]
    return JSONResponse({"detail": faults}, 422)


async def handle_of(ticket: str) -> TaskHandle:
    """The handle of *ticket*, whichever worker accepted it. The app keeps no handles: the ledger has them."""
    try:
        handle: TaskHandle = await app.state.client.attach(ticket=ticket)
    except (LookupError, ValueError) as error:  # ValueError: it belongs to another key
        raise HTTPException(404, "no such video") from error
    return handle


Handle = Annotated[TaskHandle, Depends(handle_of)]
Ticket = Annotated[str | None, Header(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


@app.post("/videos", status_code=202)
async def create(order: Order, response: Response, idempotency_key: Ticket = None) -> Video:
    """Put a video on record. After the answer, the client waits for a slot, sends the create and polls the task."""
    client: Client = app.state.client
    app.state.coming += 1
    try:
        # Requests that are being put on record, this one included, are counted together with the open videos.
        is_full = app.state.coming + (await client.statistics()).open > MAX_OPEN
        if is_full and (idempotency_key is None or await app.state.ledger.get(idempotency_key) is None):
            raise HTTPException(503, "too many videos are waiting", headers=RETRY)
        handle = await client.submit(VideoRequest(**order.model_dump()), ticket=idempotency_key)
    except (TypeError, ValueError) as error:  # it cannot be sent, or its key came before with another body
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
    """Cancel a video. Its state may show this a moment later, when the service shows it."""
    if not await handle.cancel():
        raise HTTPException(409, f"too late; last seen {handle.task.status}")
    return Video.of(handle.task)


@app.get("/videos/{ticket}/events")
async def events(handle: Handle, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The state now, then every change. A browser connects again when a stream ends; once it has seen the end of the
    video, the answer 204 stops it."""
    if handle.task.status.is_final and last_event_id == handle.task.status:
        return Response(status_code=204)
    # These headers make proxies, such as nginx, pass each event on at once.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(app.state.streams.of(handle), media_type="text/event-stream", headers=headers)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=5)
