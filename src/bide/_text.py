"""Text that may be shown: cut, escaped, and without signatures."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

MAX_EXCERPT_CHARACTERS = 400
"""Characters of a strange body that an error message shows."""


def excerpt(text: str | bytes, limit: int = MAX_EXCERPT_CHARACTERS) -> str:
    """*text* cut to *limit* characters and escaped, so that it can stand in a message or a terminal."""
    if isinstance(text, bytes):
        # A character takes 4 bytes at most: one more than fits, so that a cut shows.
        text = text[: (limit + 1) * 4].decode("utf-8", "replace")
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return safe + ("…" if len(text) > limit else "")


_SIGNED = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?\"'<>]*)\?[^\s\"'<>]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """*text* without the query strings of the addresses in it: those may be signatures."""
    return _SIGNED.sub(r"\1?…", text)


def redacted_url(url: str) -> str:
    """*url* as it may be shown: what follows a "?" may be a signature."""
    parts = _split(url)
    netloc = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{netloc}{parts.path}" + ("?…" if parts.query else "")


def _split(url: str) -> SplitResult:
    """The parts of *url*; empty ones where it makes no sense."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
