# SPDX-License-Identifier: Apache-2.0
"""The service's certificate: what its clients trust, and what is wrong with it, told before anybody is served."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from shoestring_core.regular_files import read_regular, read_regular_text

EXPIRED, NOT_YET_VALID, OTHER_HOST, OTHER_ADDRESS = 10, 9, 62, 64
"""Of OpenSSL's verification: X509_V_ERR_… in openssl/x509_vfy.h."""
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class BadCertificate(ValueError):
    """A certificate, a key or an authority that can't be used; the message names the file."""


def read_certificates(path: Path) -> str:
    """The certificates of a PEM file, without a key that it may hold too. Raises BadCertificate."""
    try:
        text = read_regular_text(path)
    except OSError as error:
        raise BadCertificate(f"{path} can't be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        text = ""
    if not (found := _CERTIFICATE.findall(text)):
        raise BadCertificate(f"{path} has no certificate in PEM form (-----BEGIN CERTIFICATE-----).")
    certificates = "\n".join(found) + "\n"
    try:
        trust(certificates)
    except (ssl.SSLError, ValueError) as error:
        raise BadCertificate(f"{path} has a certificate that can't be read ({error}).") from error
    return certificates


def trust(authority: str) -> ssl.SSLContext:
    """A client's context that trusts this authority alone, in PEM form; one server's own certificate is one too."""
    context = ssl.create_default_context(cadata=authority)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def load_server(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's context. Raises BadCertificate."""
    read_certificates(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        read_regular(key)  # OpenSSL would wait for a pipe
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(f"The key {key} doesn't belong to the certificate {certificate}.") from error
        raise BadCertificate(f"{key} is no key in PEM form without a password ({error.reason or error}).") from error
    except OSError as error:
        raise BadCertificate(f"{key} can't be read ({error.strerror}).") from error
    return context


def find_authority(certificate: Path, key: Path, host: str, given: str) -> str:
    """The authority by which clients will trust the server that they reach at `host`; "": this computer's own.

    given  the authority that clients are given; "": the certificate itself, if this computer's authorities don't do

    Raises BadCertificate if they won't.
    """
    server = load_server(certificate, key)
    for authority in [given] if given else ["", read_certificates(certificate)]:
        problem = _connect(server, trust(authority) if authority else ssl.create_default_context(), host)
        if problem is None:
            return authority
        if problem.verify_code in (EXPIRED, NOT_YET_VALID, OTHER_HOST, OTHER_ADDRESS):
            break
    assert problem is not None
    raise BadCertificate(f"The certificate {certificate} can't be used: {explain(problem, host)}")


def explain(problem: ssl.SSLCertVerificationError, host: str) -> str:
    """Why a client doesn't trust a certificate, and what to do."""
    if problem.verify_code == EXPIRED:
        return "it has expired. Renew it."
    if problem.verify_code == NOT_YET_VALID:
        return "it isn't valid yet. Check the clocks, or wait."
    if problem.verify_code in (OTHER_HOST, OTHER_ADDRESS):
        return f"it isn't for {host}. Reach the service by a name of the certificate, or make one for this name."
    return f"it isn't signed by a known authority ({problem.verify_message})."


def _connect(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> ssl.SSLCertVerificationError | None:
    """A handshake in memory; returns why the client refused the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = set(ends)
    while waiting:
        for end in ends:
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as refused:
                return refused
    return None
