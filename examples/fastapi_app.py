"""A web service that makes videos, to be copied and made your own: `pip install bide fastapi uvicorn`.

    DASHSCOPE_API_KEY=... python examples/fastapi_app.py

    POST   /videos            {"prompt": ...}: 202 at once, with the ticket; an Idempotency-Key header buys once
    GET    /videos/{ticket}   its newest state, without a call to the service
    DELETE /videos/{ticket}   cancels it, where the service still can
    GET    /events            one server-sent stream with every change of every video

`uvicorn --app-dir examples fastapi_app:app` serves it too; `--timeout-graceful-shutdown 2` then cuts off, at the end,
those who have stopped reading. $VIDEO_CONCURRENCY is how many videos may be in flight, if not the documented 3.

- Authentication is yours to add: whoever knows a ticket sees its video and may cancel it, and whoever opens /events
  learns all tickets. With several callers, put the caller's name before the ticket, and filter the stream by it.
- A limit of the body's size, and of open streams, belongs in the proxy in front of it.
- An Idempotency-Key is remembered until KEEP_ENDED more videos have ended; after that it would buy again.
- Records live in memory in this release. Keep the task ids: `client.attach(task_id, kind="video")` follows, after a
  restart, what was left running.
- Worker processes do not know of each other: give each a key of its own, or its share of the limit (VIDEO_CONCURRENCY=1
  for 3 workers on a key that allows 3), and let one worker answer for a ticket.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import takewhile
from types import FrameType
from typing import Annotated, Literal, Self

from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from bide import BideError, Client, DashScope, Event, EventName, Limits, Task, TaskHandle, VideoRequest

MAX_OPEN = 1_000  # videos that may wait or run at once; beyond that POST answers 503
KEEP_ENDED = 1_000  # ends that are remembered: for GET, for streams that lag, and for tickets that come again
HEARTBEAT = 15.0  # seconds of silence after which a stream sends a comment: proxies cut what is silent
RETRY = {"Retry-After": "5"}
NEWS = {EventName.WAITING, EventName.SUBMITTING, EventName.SUBMITTED, EventName.CHANGED, EventName.FINAL}


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


class Videos:
    """What is open or has ended lately, in the order of the last changes; a stream is a position in that order.

    So a slow reader costs nothing and delays nobody. It misses what was overtaken meanwhile, but no end, unless it
    falls KEEP_ENDED ends behind.
    """

    def __init__(self) -> None:
        self.handles: dict[str, TaskHandle] = {}
        self._changes: dict[str, tuple[int, Task]] = {}
        self._ended: deque[str] = deque()
        self._coming = 0
        # Numbers grow on across restarts: browsers come back with the last one they saw.
        self._number = time.time_ns() // 1_000
        self._changed = asyncio.Event()
        self._closing = False

    def hear(self, event: Event) -> None:
        """Note what has happened to a video: the client's `on_event`."""
        if event.name not in NEWS:
            return
        self._number += 1
        self._changes.pop(event.ticket, None)  # so that it comes last
        self._changes[event.ticket] = (self._number, event.task)
        if event.name is EventName.FINAL:
            self._ended.append(event.ticket)
        if len(self._ended) > KEEP_ENDED:
            oldest = self._ended.popleft()
            self._changes.pop(oldest, None)
            self.handles.pop(oldest, None)
        self._wake()

    def close(self) -> None:
        """End all streams."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @contextmanager
    def room_for(self, ticket: str | None) -> Iterator[bool]:
        """Whether *ticket* is known, or one more may be opened: a place is kept for it meanwhile."""
        is_open = len(self._changes) - len(self._ended) + self._coming
        self._coming += 1
        try:
            yield ticket in self._changes or is_open < MAX_OPEN
        finally:
            self._coming -= 1

    def _since(self, number: int | None) -> list[tuple[int, Task]]:
        """What has changed after *number*, oldest first; for a new reader (None), what is open."""
        if number is None:
            return [change for change in self._changes.values() if not change[1].status.is_final]
        return list(takewhile(lambda change: change[0] > number, reversed(self._changes.values())))[::-1]

    async def stream(self, seen: int | None) -> AsyncIterator[str]:
        """What has changed after number *seen*, then every change, as server-sent events, until `close`."""
        while True:
            # All before anything is sent, so that no change falls between.
            changes, seen, changed, closing = self._since(seen), self._number, self._changed, self._closing
            for number, task in changes:
                yield f"id: {number}\nevent: video\ndata: {Video.of(task).model_dump_json()}\n\n"
            if closing:
                return
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await changed.wait()
            except TimeoutError:
                yield ": nothing new\n\n"


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
            if callable(server):  # else nobody waits for streams: the signal simply ends the process
                servers[number] = server
                signal.signal(number, handle)
    try:
        yield
    finally:
        for signal_number, server in servers.items():
            signal.signal(signal_number, server)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client a process: it belongs to the loop, and all requests share its slots, polls and connections.

    Closing it withdraws what was not sent, lets creates under way be answered (10 s at most, so let nothing kill the
    process sooner), and logs the ids of the tasks that go on.
    """
    concurrency = os.environ.get("VIDEO_CONCURRENCY")
    limits = {"video": Limits(concurrency=int(concurrency))} if concurrency else None
    videos = app.state.videos = Videos()
    with at_shutdown(videos.close):
        async with Client(DashScope(), limits=limits, on_event=videos.hear) as app.state.client:
            yield


app = FastAPI(title="Videos", lifespan=lifespan)


@app.exception_handler(BideError)
async def unavailable(_: Request, error: BideError) -> JSONResponse:
    """Records cannot be written, the client is closing, or the service could not be asked to cancel."""
    logging.getLogger("videos").warning("%s: %s", type(error).__name__, error)
    return JSONResponse({"detail": "not possible at the moment, try again"}, 503, headers=RETRY)


@app.exception_handler(RequestValidationError)
async def refused(_: Request, error: RequestValidationError) -> JSONResponse:
    """What is wrong and where, without the input: that may be huge, or no text at all."""
    faults = [
        {"where": [ascii(part)[:100] for part in each["loc"]], "what": each["msg"]} for each in error.errors()
    ]
    return JSONResponse({"detail": faults}, 422)


@app.post("/videos", status_code=202)
async def create(
    order: Order,
    request: Request,
    response: Response,
    idempotency_key: Annotated[str | None, Header(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = None,
) -> Video:
    """Put a video on record. Waiting for a slot, the create and the polling go on behind the answer."""
    videos: Videos = request.app.state.videos
    with videos.room_for(idempotency_key) as has_room:
        if not has_room:
            raise HTTPException(503, "too many videos are waiting", headers=RETRY)
        try:
            video = VideoRequest(**order.model_dump())
            handle = await request.app.state.client.submit(video, ticket=idempotency_key)
        except (
            TypeError,
            ValueError,
        ) as error:  # it cannot be sent, or the key came with another body before
            raise HTTPException(422, str(error)) from error
    videos.handles[handle.ticket] = handle
    response.headers["Location"] = f"/videos/{handle.ticket}"
    return Video.of(handle.task)


def handle_of(ticket: str, request: Request) -> TaskHandle:
    """The handle of *ticket*; what ended long ago is not known any more."""
    videos: Videos = request.app.state.videos
    if ticket not in videos.handles:
        raise HTTPException(404, "no such video")
    return videos.handles[ticket]


@app.get("/videos/{ticket}")
async def show(ticket: str, request: Request) -> Video:
    """The newest state."""
    return Video.of(handle_of(ticket, request).task)


@app.delete("/videos/{ticket}")
async def cancel(ticket: str, request: Request) -> Video:
    """Cancel a video. Its state may say so a moment later, when the service does."""
    handle = handle_of(ticket, request)
    if not await handle.cancel():
        raise HTTPException(409, f"too late; last seen {handle.task.status}")
    return Video.of(handle.task)


@app.get("/events")
async def events(
    request: Request, last_event_id: Annotated[int | None, Header()] = None
) -> StreamingResponse:
    """What is open, then every change. Who comes back with the last id it saw gets what it has missed."""
    videos: Videos = request.app.state.videos
    headers = {
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }  # proxies, nginx among them: pass it on
    return StreamingResponse(videos.stream(last_event_id), media_type="text/event-stream", headers=headers)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=2)
