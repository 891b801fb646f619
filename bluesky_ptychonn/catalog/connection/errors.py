"""A catalog that is away, told from something that is wrong."""

from __future__ import annotations


def is_outage(error: Exception) -> bool:
    """Whether the catalog did not answer, rather than something of ours being wrong."""
    import httpx

    return isinstance(error, OSError | httpx.TransportError) or (
        isinstance(error, httpx.HTTPStatusError) and error.response.status_code >= 500
    )
