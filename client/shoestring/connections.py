# SPDX-License-Identifier: Apache-2.0
"""HTTP connections: what the environment says of proxies and certificates counts only where it is about the target."""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from shoestring_core import tls
from shoestring_core.regular_files import read_regular, require_regular

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


class UnusableVariable(Exception):
    """A variable of the environment that matters for this connection can't be used; the message names it."""


def open_http(url: str, ca: str = "", **options: Any) -> httpx.Client:
    """Return an HTTP client for the server at `url`. Raises UnusableVariable.

    ca  the only authority that may sign its certificate, in PEM form; "": any that this computer knows

    No proxy is used for this computer, and no certificate is read unless the connection is encrypted.
    """
    address = httpx.URL(url)
    trust_env = not is_loopback(address.host)
    try:
        return httpx.Client(base_url=url, trust_env=trust_env, verify=certificates(address.scheme, ca), **options)
    except ImportError as missing:  # httpx lacks a library for SOCKS
        raise UnusableVariable(f"{_names(PROXY_VARIABLES)}: {missing}") from missing
    except (ValueError, httpx.InvalidURL) as unusable:
        raise UnusableVariable(
            f"{_names(PROXY_VARIABLES)}: not usable as a proxy ({unusable}). Correct it, or unset it."
        ) from unusable


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is this computer's own, which no proxy can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@functools.cache
def certificates(scheme: str, ca: str = "") -> ssl.SSLContext:
    """The TLS context; without encryption an empty one, because loading the certificates takes 25 ms and may fail."""
    if scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca:
        return tls.trust(ca)
    try:
        if file := os.environ.get("SSL_CERT_FILE"):
            read_regular(Path(file))  # OpenSSL would wait for a pipe, and read a sparse file to its end
        if (keys := os.environ.get("SSLKEYLOGFILE")) and keys != os.devnull:
            require_regular(Path(keys))
        folder = os.environ.get("SSL_CERT_DIR")
        if folder and not os.environ.get("SSL_CERT_FILE"):
            os.listdir(folder)  # OpenSSL doesn't say that it is missing
        return httpx.create_ssl_context()
    except OSError as error:
        raise UnusableVariable(
            f"{_names(CERTIFICATE_VARIABLES)}: not usable ({error.strerror or error}). Correct it, or unset it."
        ) from error


def explain_distrust(failure: BaseException, url: str) -> str | None:
    """What to do if a connection failed because the server's certificate is not trusted; None: it failed otherwise."""
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    hint = "Name its authority: shoestring login URL --ca FILE, or SHOESTRING_CA=FILE."
    known = cause.verify_code in (tls.EXPIRED, tls.NOT_YET_VALID, tls.OTHER_HOST, tls.OTHER_ADDRESS)
    why = tls.explain(cause, httpx.URL(url).host)
    return f"The certificate of {url} is not trusted: {why}" + ("" if known else f" {hint}")


def _names(variables: Iterable[str]) -> str:
    """Those of the variables that are set. Their values stay out of messages: a proxy's may hold a password."""
    spellings = [spelling for name in variables for spelling in (name, name.lower())]
    return ", ".join(spelling for spelling in spellings if os.environ.get(spelling))
