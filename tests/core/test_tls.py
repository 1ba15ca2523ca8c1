# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a certificate is told before it is served, and what clients trust is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoestring_core.tls import BadCertificate, find_authority, load_server, read_certificates

from tests.certificates import make_authority, make_certificate


def test_of_a_self_signed_certificate_clients_trust_the_certificate_itself_and_never_see_its_key(tmp_path: Path):
    made = make_certificate(tmp_path)
    made.file.write_text(made.key_file.read_text() + made.text)
    found = find_authority(made.file, made.file, "127.0.0.1", "")
    assert found.count("BEGIN CERTIFICATE") == 1
    assert "PRIVATE KEY" not in found  # a certificate in base64 may well have the letters KEY


def test_a_given_authority_is_what_clients_trust(tmp_path: Path):
    authority = make_authority(tmp_path)
    made = make_certificate(tmp_path, hosts=("train.example", "203.0.113.7"), signed_by=authority)
    for host in ("train.example", "203.0.113.7"):
        assert find_authority(made.file, made.key_file, host, authority.text) == authority.text


def test_a_certificate_that_clients_would_refuse_is_refused_with_what_to_do(tmp_path: Path):
    good, other = make_certificate(tmp_path), make_certificate(tmp_path, "other")
    expired = make_certificate(tmp_path, "expired", days=-1)
    refused = {
        "it has expired": (expired, "127.0.0.1", ""),
        "it isn't for train.example": (good, "train.example", ""),
        "it isn't for 203.0.113.7": (good, "203.0.113.7", good.text),
        "it isn't signed by a known authority": (good, "127.0.0.1", other.text),
    }
    for expected, (made, host, given) in refused.items():
        with pytest.raises(BadCertificate, match=expected):
            find_authority(made.file, made.key_file, host, given)


def test_files_that_are_no_certificate_or_not_its_key_are_named(tmp_path: Path):
    good, other = make_certificate(tmp_path), make_certificate(tmp_path, "other")
    (empty := tmp_path / "empty").write_bytes(b"\xff\xfe")
    (broken := tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n")
    for certificate, key, expected in (
        (good.file, other.key_file, "other.key doesn't belong to the certificate .*server.crt"),
        (good.file, good.file, "server.crt is no key in PEM form"),
        (good.file, tmp_path / "nowhere", "nowhere can't be read"),
        (empty, good.key_file, "empty has no certificate"),
        (broken, good.key_file, "broken has a certificate that can't be read"),
    ):
        with pytest.raises(BadCertificate, match=expected):
            load_server(certificate, key)
    with pytest.raises(BadCertificate, match="can't be read"):
        read_certificates(tmp_path / "nowhere")
