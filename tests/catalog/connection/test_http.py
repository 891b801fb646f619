"""One request: sent once, or once more where that is harmless; answered, refused, or not answered at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pyarrow as pa
import pytest

from bluesky_ptychonn.catalog.connection.errors import (
    CatalogRefusedError,
    CatalogUnavailableError,
    TooLargeError,
    is_untrusted,
)
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.connection.requests import reason, request_at_most, send_once, why_silent
from bluesky_ptychonn.catalog.connection.server import CatalogServer

REQUEST = httpx.Request("GET", "http://c/api/v1/metadata/x")


def sending(*outcomes: httpx.Response | Exception) -> tuple[Callable[[], httpx.Response], list[int]]:
    """What sends a request, with these outcomes in order, and how often it did."""
    left, sent = iter(outcomes), list[int]()

    def send() -> httpx.Response:
        sent.append(1)
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return send, sent


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=REQUEST)


@pytest.mark.parametrize("broken", [httpx.ReadError("x"), httpx.WriteError("x"), httpx.RemoteProtocolError("x")])
def test_a_kept_connection_that_was_closed_costs_a_second_try(broken: Exception) -> None:
    send, sent = sending(broken, answer(404))
    assert send_once(send, "c").status_code == 404  # what a refusal means is the caller's to say
    assert len(sent) == 2
    send, sent = sending(broken, answer(200))
    with pytest.raises(CatalogUnavailableError, match="catalog c does not answer: x"):
        send_once(send, "c", repeatable=False)
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("outcome", "message", "status", "timed_out"),
    [
        (httpx.ReadTimeout("timed out"), "catalog c does not answer: timed out", None, True),
        (httpx.ConnectError(""), "catalog c does not answer: ConnectError", None, False),
        (answer(500), "catalog c: GET /api/v1/metadata/x answered 500; its log says why", 500, False),
        (answer(429), "catalog c: GET /api/v1/metadata/x answered 429", 429, False),
    ],
)
def test_no_answer_is_an_outage(outcome: Any, message: str, status: int | None, timed_out: bool) -> None:
    with pytest.raises(CatalogUnavailableError, match=message) as caught:
        send_once(sending(outcome)[0], "c")
    assert (caught.value.status, caught.value.timed_out) == (status, timed_out)


def test_a_container_is_listed_page_by_page(catalog_server: CatalogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    root = TiledNode(catalog_server.client)
    monkeypatch.setattr("bluesky_ptychonn.catalog.connection.http._PAGE", 2)
    assert root.create("listed")
    node = TiledNode(catalog_server.client, ["listed"])
    assert (node.children(), node.requests) == ([], 1)
    for number in range(5):
        node.create(str(number), metadata={"number": number})
    before = node.requests
    assert node.nodes() == {str(number): {"number": number} for number in range(5)}
    assert node.requests - before == 3
    assert node.children() == list("01234")
    root.delete("listed")
    assert node.nodes() == {}
    with pytest.raises(CatalogRefusedError, match="404"):
        node.children()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A connection to a server that answers with what its path says, a thousand bytes each time."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(int(request.url.path.strip("/")), content=bytes(1000))

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        yield client


def test_an_answer_is_no_longer_than_was_asked_for(client: httpx.Client) -> None:
    assert len(request_at_most(client, 1000, "GET", "http://c/200").content) == 1000
    with pytest.raises(TooLargeError, match="http://c/200: more than the 999 bytes asked for were sent"):
        request_at_most(client, 999, "GET", "http://c/200")
    assert len(request_at_most(client, 10, "GET", "http://c/404").content) == 1000  # what is wrong, in words


def test_a_refusal_is_an_answer_and_a_server_error_is_none(client: httpx.Client) -> None:
    assert why_silent("http://c/401", 1.0, client) == ""
    assert why_silent("http://c/503", 1.0, client) == "it answered 503"
    assert why_silent("http://127.0.0.1:1/", 1.0)
    assert why_silent("http://local-tiled-app/api/v1", 1.0) == ""
    client.close()
    assert "closed" in why_silent("http://c/200", 1.0, client)


def test_a_certificate_that_is_not_trusted_is_told_by_its_kind() -> None:
    import ssl

    error = httpx.ConnectError("verify failed")
    assert not is_untrusted(error)
    error.__cause__ = OSError("wrapped")
    error.__cause__.__context__ = ssl.SSLCertVerificationError("self-signed")
    assert is_untrusted(error)
    assert reason("https://c", error).startswith("the certificate of https://c is not trusted here (verify failed)")


def test_one_column_of_a_table_is_read_alone(catalog_server: CatalogServer) -> None:
    schema = pa.schema([("number", pa.int64()), ("name", pa.string())])
    node = TiledNode(catalog_server.client)
    assert node.create_table("columns", schema, "number")
    node.append_rows("columns", pa.table({"number": [2, 1], "name": ["b", "a"]}, schema=schema))
    assert node.read_column("columns", "number").tolist() == [1, 2]
    # Replaced, for what a process that died left there; else left alone.
    assert not node.create_table("columns", schema, "number")
    assert len(node.read_rows("columns", schema)) == 2
    assert not node.create_table("columns", schema, "number", replace=True)
    assert len(node.read_rows("columns", schema)) == 0
    node.delete("columns")
    node.delete("columns")
    assert node.attributes("columns") is None
    with pytest.raises(CatalogRefusedError, match="GET table/partition of /columns answered 404") as caught:
        node.read_rows("columns", schema)
    assert (caught.value.status, caught.value.lacks) == (404, "")
