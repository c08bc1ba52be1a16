"""Text of others on a terminal: prompts, ids, a service's words."""

from __future__ import annotations


def plain(text: str, limit: int = 500) -> str:
    """*text* on one line, with nothing in it that a terminal would obey, and cut to *limit* characters."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
