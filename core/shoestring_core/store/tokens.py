# SPDX-License-Identifier: Apache-2.0
"""Secrets of API keys and login codes.

A secret is `sst_<kind>_`, 30 random characters of base62 and their CRC-32 in 6 more, so that a mistyped key is detected
without the database and a leaked one by scanners. Only the SHA-256 of a secret is stored.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib
from typing import Literal

SecretKind = Literal["pat", "svc", "job", "login", "invite"]

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_LENGTH, _CHECKSUM_LENGTH = 30, 6


def generate_secret(kind: SecretKind) -> str:
    body = f"sst_{kind}_" + "".join(secrets.choice(_BASE62) for _ in range(_RANDOM_LENGTH))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    parts = secret.split("_")
    if (
        len(parts) != 3
        or parts[0] != "sst"
        or len(parts[2]) != _RANDOM_LENGTH + _CHECKSUM_LENGTH
        or not secret.isascii()
    ):
        return False
    return _checksum(secret[:-_CHECKSUM_LENGTH]) == secret[-_CHECKSUM_LENGTH:]


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
