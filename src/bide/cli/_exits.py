"""What each outcome means for the exit status."""

from __future__ import annotations

from bide import AuthenticationError, BideError, BillingError, RateLimitError, WaitTimeoutError

OK, FAILED, USAGE, AUTH, LIMITED, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
_WORST_FIRST = (AUTH, LIMITED, TIMEOUT, USAGE, FAILED)


def status_of(error: BaseException) -> int:
    """The exit status for *error*."""
    if isinstance(error, AuthenticationError):
        return AUTH
    if isinstance(error, BillingError | RateLimitError):
        return LIMITED
    if isinstance(error, WaitTimeoutError):
        return TIMEOUT
    return FAILED if isinstance(error, BideError) else USAGE


def worst(statuses: set[int]) -> int:
    """The one that tells the caller most: what concerns the key comes before what concerns one task."""
    return next((status for status in _WORST_FIRST if status in statuses), OK)
