# SPDX-License-Identifier: Apache-2.0
"""Proxies and certificates of the environment: ignored where they can't matter, named where they can't be used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shoestring import Client, ServiceUnreachable, config, connections
from shoestring.connections import CERTIFICATE_VARIABLES, PROXY_VARIABLES, UnusableVariable, open_http

from tests.certificates import make_certificate, served_with

NOWHERE = "/nonexistent/certificates"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    connections.certificates.cache_clear()
    for name in (*PROXY_VARIABLES, *CERTIFICATE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    yield
    connections.certificates.cache_clear()


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[int]:
    """The port of a server on loopback that answers 200."""

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


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSLKEYLOGFILE", "SHOESTRING_CA"])
def test_a_pipe_that_a_variable_names_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv(name, str(tmp_path / "pipe"))
    with pytest.raises(UnusableVariable, match=f"^{name}: .*it is a pipe, where a file is needed"):
        open_http("https://service.example", config.authority_of_environment())


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


def test_a_certificate_that_is_not_trusted_is_told_at_once_with_what_to_do(tmp_path: Path) -> None:
    made, expired = make_certificate(tmp_path, hosts=("127.0.0.1",)), make_certificate(tmp_path, "expired", days=-1)
    for certificate, host, ca, expected in (
        (made, "127.0.0.1", "", "known authority .*shoestring login URL --ca FILE"),
        (made, "localhost", made.text, "it isn't for localhost"),
        (expired, "127.0.0.1", expired.text, "it has expired. Renew it"),
    ):
        with (
            served_with(certificate, Answers) as port,
            Client(f"https://{host}:{port}", "sst_pat_x", ca=ca) as client,
            pytest.raises(ServiceUnreachable, match=expected),
        ):
            client.me()


def test_a_given_authority_is_used_for_the_service_it_was_saved_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificate(tmp_path)
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    with served_with(made, Answers) as port:
        config.save_login(f"https://127.0.0.1:{port}", "key", made.text)
        with open_http(f"https://127.0.0.1:{port}", config.find_login().ca) as http:
            assert http.get("/").status_code == 200
    assert config.find_login("https://other", "key").ca == ""
    monkeypatch.setenv("SHOESTRING_CA", str(made.file))
    assert config.find_login("https://other", "key").ca == made.text
    monkeypatch.setenv("SHOESTRING_CA", str(made.key_file))
    with pytest.raises(UnusableVariable, match=r"SHOESTRING_CA: .*has no certificate"):
        config.find_login("https://other", "key")
