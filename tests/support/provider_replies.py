"""Replies as the tests write them, and the few requests that they are about."""

from __future__ import annotations

import json
from typing import Any

from bide._wire import Reply
from bide.models import ImageRequest, VideoRequest

IMAGE = ImageRequest("a kitten", model="wan2.5-t2i-preview")
VIDEO = VideoRequest("a kitten runs", model="wan2.6-t2v")
ID = "0385dc79-5ff8-4d82-bcb6-aa11bb22cc33"


def reply(body: Any = None, status: int = 200, **headers: str) -> Reply:
    """A reply with a JSON *body*; None is an empty one, bytes go as they are."""
    if not isinstance(body, bytes):
        body = b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"content-type": "application/json", **named}, body)
