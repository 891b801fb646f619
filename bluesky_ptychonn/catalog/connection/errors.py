"""A catalog that is away, told from one that says no and from something of ours that is wrong."""

from __future__ import annotations

import re
import ssl

_REQUIRED = re.compile(r"Requires scopes \[(.*?)\]")
_GRANTED = re.compile(r"had scopes \[(.*?)\]")
_NAME = re.compile(r"['\"]([a-z:]+)['\"]")


class CatalogUnavailableError(ConnectionError):
    """The catalog does not answer, or not now; the same request may work later.

    Attributes
    ----------
    status : int or None
        HTTP status code, 429 or 500 and above; None where there was no answer.
    timed_out : bool
        Whether it took longer than we waited.
    """

    def __init__(self, message: str, status: int | None = None, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.timed_out = timed_out


class CatalogRefusedError(RuntimeError):
    """The catalog answers no, and would again.

    Attributes
    ----------
    status : int
        HTTP status code.
    lacks : str
        What the key lacks, in words; empty where it is not a matter of that.
    """

    def __init__(self, message: str, status: int, lacks: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.lacks = lacks


class TooLargeError(ValueError):
    """The catalog sent more than was asked for."""


def is_outage(error: Exception) -> bool:
    """Whether the catalog did not answer, rather than something of ours being wrong."""
    import httpx

    return isinstance(error, OSError | httpx.TransportError) or (
        isinstance(error, httpx.HTTPStatusError) and error.response.status_code >= 500
    )


def is_untrusted(error: BaseException) -> bool:
    """Whether the server's certificate is not trusted here."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def lacking(answer: str) -> str:
    """Name the scopes that a key lacks, from an answer of 401 or 403; empty where it is about something else.

    Examples
    --------
    >>> lacking("Requires scopes ['read:data', 'write:data']. Request had scopes ['read:data']")
    "this key lacks the scope 'write:data'"
    """
    required, granted = _REQUIRED.search(answer), _GRANTED.search(answer)
    if required is None:
        return ""
    had = set(_NAME.findall(granted[1])) if granted else set()
    missing = [repr(name) for name in _NAME.findall(required[1]) if name not in had]
    return f"this key lacks the scope{'s' if len(missing) > 1 else ''} {', '.join(missing)}" if missing else ""
