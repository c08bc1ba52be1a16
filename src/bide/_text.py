"""Make text safe to show: cut it, escape it, and remove signatures."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

MAX_EXCERPT_CHARACTERS = 400
"""Characters of a body that an error message shows."""


def excerpt(text: str | bytes, limit: int = MAX_EXCERPT_CHARACTERS) -> str:
    """*text*, cut to *limit* characters and escaped, so that a message or a terminal can show it."""
    if isinstance(text, bytes):
        # A character takes at most 4 bytes. Keep one character more than the limit, so that the cut is marked.
        text = text[: (limit + 1) * 4].decode("utf-8", "replace")
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return safe[:limit] + ("…" if max(len(text), len(safe)) > limit else "")


_SIGNED = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?\"'<>]*)\?[^\s\"'<>]*", re.IGNORECASE)


def redact(text: str) -> str:
    """*text* without the query strings of its URLs, which may be signatures."""
    return _SIGNED.sub(r"\1?…", text)


def redact_url(url: str) -> str:
    """*url* without user, password, query string and fragment, which may be secret."""
    parts = _split(url)
    netloc = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{netloc}{parts.path}" + ("?…" if parts.query else "")


def _split(url: str) -> SplitResult:
    """The parts of *url*; empty parts if it is not a URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
