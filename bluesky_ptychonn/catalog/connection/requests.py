"""One request to Tiled: sent once, answered in time and in size; and whether a catalog answers at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bluesky_ptychonn.catalog.connection.errors import CatalogUnavailableError, TooLargeError, is_untrusted

if TYPE_CHECKING:
    import httpx

_MOST_WORDS = 1 << 16  # bytes of an answer that is no data
#: In the address of a catalog that is an app inside this process.
IN_PROCESS = "local-tiled-app"


def send_once(send: Callable[[], httpx.Response], catalog: str, *, repeatable: bool = True) -> httpx.Response:
    """Return the answer of `catalog`, below 500 and not 429; what it means is the caller's to say.

    A `repeatable` request is sent at once more where the server had closed a kept connection, as it does after an error
    of its own.

    Raises
    ------
    CatalogUnavailableError
        For every other answer, and where there is none.
    """
    import httpx

    try:
        try:
            response = send()
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            if not repeatable:
                raise
            response = send()
    except httpx.TransportError as error:
        timed_out = isinstance(error, httpx.TimeoutException)
        message = f"catalog {catalog} does not answer: {reason(catalog, error)}"
        raise CatalogUnavailableError(message, timed_out=timed_out) from error
    status = response.status_code
    if response.is_server_error or status == httpx.codes.TOO_MANY_REQUESTS:
        response.close()
        asked = f"{response.request.method} {response.request.url.path}"
        raise CatalogUnavailableError(f"catalog {catalog}: {asked} answered {status}; its log says why", status)
    return response


def request_at_most(client: httpx.Client, most_bytes: int, method: str, url: str, **options: Any) -> httpx.Response:
    """Send a request; TooLargeError when the answer is longer than `most_bytes`, however small it was compressed."""
    import httpx

    content = bytearray()
    with client.stream(method, url, **options) as response:
        for piece in response.iter_bytes():
            content += piece
            if not response.is_success and len(content) > _MOST_WORDS:
                break
            if response.is_success and len(content) > most_bytes:
                raise TooLargeError(f"{url}: more than the {most_bytes} bytes asked for were sent")
    return httpx.Response(response.status_code, content=bytes(content), request=response.request)


def reason(catalog: str, error: Exception) -> str:
    """Say why a request had no answer."""
    if is_untrusted(error):
        advice = "set SSL_CERT_FILE to the file of the authority that signed it"
        return f"the certificate of {catalog} is not trusted here ({error}); {advice}"
    return str(error) or type(error).__name__


def why_silent(uri: str, timeout_s: float, client: httpx.Client | None = None) -> str:
    """Say why a catalog does not answer within `timeout_s` seconds; empty where it does, if only to refuse.

    Tiled's client would try for 45 s. Asked over `client`, or a connection of its own.
    """
    import httpx

    if IN_PROCESS in uri:
        return ""
    get = httpx.get if client is None else client.get
    try:
        response = get(uri, timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL, CatalogUnavailableError, RuntimeError) as error:  # the last: closed
        return reason(uri, error)
    return f"it answered {response.status_code}" if response.is_server_error else ""


def require_answer(uri: str, timeout_s: float = 10.0) -> None:
    """Raise CatalogUnavailableError where there is no answer within `timeout_s` seconds, see `why_silent`."""
    if why := why_silent(uri, timeout_s):
        raise CatalogUnavailableError(f"catalog {uri} does not answer: {why}")
