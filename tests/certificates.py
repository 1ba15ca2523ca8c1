# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made on the spot: of an authority of their own, or signed by themselves."""

from __future__ import annotations

import datetime
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from shoestring_core.tls import load_server

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """PEM files, and what is needed to sign another with it."""

    file: Path
    key_file: Path
    _certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @property
    def text(self) -> str:
        return self.file.read_text()


def make_certificate(
    folder: Path,
    name: str = "server",
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
    *,
    signed_by: Certificate | None = None,
    days: int = 30,
) -> Certificate:
    """`days`: until it expires; negative: it has expired."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (signed_by._certificate.subject, signed_by._key) if signed_by else (subject, key)
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - 60 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_alternative, hosts))), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key", certificate, key)
    made.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.key_file.write_bytes(key.private_bytes(*private))
    return made


def make_authority(folder: Path) -> Certificate:
    return make_certificate(folder, "authority", ())


@contextmanager
def served_with(certificate: Certificate, handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server on loopback that shows this certificate."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = load_server(certificate.file, certificate.key_file).wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
