# SPDX-License-Identifier: Apache-2.0
"""Proxies and certificates of the environment: ignored where they can't matter, named where they can't be used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from shoestring import connections
from shoestring.connections import CERTIFICATE_VARIABLES, PROXY_VARIABLES, UnusableVariable, open_http

NOWHERE = "/nonexistent/certificates"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    connections.certificates.cache_clear()
    for name in (*PROXY_VARIABLES, *CERTIFICATE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    yield
    connections.certificates.cache_clear()


@pytest.fixture
def service() -> Iterator[int]:
    """The port of a server on loopback that answers 200."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("http_proxy", "http://127.0.0.1:9"),
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("ALL_PROXY", "nonsense"),
        ("NO_PROXY", "[::1"),
        *((name, NOWHERE) for name in CERTIFICATE_VARIABLES),
    ],
)
def test_neither_proxies_nor_certificates_keep_a_client_from_this_computer(
    service: int, monkeypatch: pytest.MonkeyPatch, name: str, value: str, host: str
) -> None:
    monkeypatch.setenv(name, value)
    with open_http(f"http://{host}:{service}") as http:
        assert http.get("/").status_code == 200


@pytest.mark.parametrize("name", CERTIFICATE_VARIABLES)
@pytest.mark.parametrize("host", ["localhost", "service.example"])
def test_a_certificate_variable_that_matters_and_leads_nowhere_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, host: str
) -> None:
    monkeypatch.setenv(name, NOWHERE)
    with pytest.raises(UnusableVariable, match=f"^{name}: not usable .*No such file"):
        open_http(f"https://{host}")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:1080", "socksio"),
        ("HTTPS_PROXY", "ftp://user:secret@proxy", "Correct it, or unset it"),
        ("http_proxy", "http://user:secret@[::1", "Correct it, or unset it"),
    ],
)
def test_a_proxy_that_matters_and_cannot_be_used_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UnusableVariable, match=f"^{name}: .*{words}") as refused:
        open_http("http://service.example")
    assert "secret" not in str(refused.value)


def test_an_unencrypted_connection_trusts_no_certificate() -> None:
    with open_http("http://service.example") as http:
        pool = http._transport._pool  # type: ignore[attr-defined]
        assert pool._ssl_context.get_ca_certs() == []
        assert pool._ssl_context.check_hostname
