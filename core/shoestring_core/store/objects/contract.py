# SPDX-License-Identifier: Apache-2.0
"""What the service and its machines need of an object store, wherever it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from shoestring_core import wire
from shoestring_core.errors import NotFound, PreconditionFailed, ShoestringError, TooLarge

BLOCK_BYTES = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class ObjectInfo:
    """What a store keeps of an object.

    checksum  of its whole content, with the algorithm: `sha256:…` in a folder, `crc64nvme:…` on S3, both in hex.
    """

    bytes: int
    checksum: str


class Objects(Protocol):
    """A store of objects. Times are Unix seconds. A store that can't be reached raises Unavailable."""

    def prepare(self) -> None:
        """Raises Unavailable with what to do about it, unless objects can be stored, once each, and read."""

    def urls_end_by(self) -> int | None:
        """When every URL that is signed now has stopped working, whatever it says: the end of the credentials, which
        are renewed early. None: they don't end. Raises Unavailable if they can't be renewed."""

    def put_url(self, key: str, expires_at: int, max_bytes: int) -> str:
        """A URL that accepts one PUT of this object, with the header `If-None-Match: *`.

        max_bytes  what a folder takes; a URL of S3 takes more, so what uses the object looks at its size
        """

    def start_multipart(self, key: str, expires_at: int, size: int) -> wire.MultipartUpload | None:
        """Begin an object of `size` bytes that goes up in parts; None: the store takes it by one PUT.

        What is never completed costs storage until the bucket's lifecycle rule removes it.
        """

    def get_url(self, key: str, expires_at: int) -> str:
        """A URL that returns the object."""

    def put(self, key: str, content: bytes) -> None:
        """Store a small object. Raises PreconditionFailed if it exists."""

    def head(self, key: str) -> ObjectInfo | None:
        """Size and checksum; None if there is no such object."""

    def read(self, key: str, limit: int) -> bytes:
        """Return a small object. Raises NotFound, and TooLarge if it has more than `limit` bytes."""

    def blocks(self, key: str, first: int, count: int) -> Iterator[bytes]:
        """Yield `count` bytes from offset `first` on, block by block. Raises NotFound."""


def is_key(text: str) -> bool:
    """Whether it names an object below a folder or a prefix, and leads out of neither."""
    return len(text) <= 500 and _KEY.fullmatch(text) is not None


def require_key(key: str) -> None:
    """Raises NotFound for what is no key."""
    if not is_key(key):
        raise missing(key[:80])


def missing(key: str) -> ShoestringError:
    return NotFound(f"Object {key} does not exist.")


def exists(key: str) -> ShoestringError:
    return PreconditionFailed(f"Object {key} exists already; objects are written once.")


def require_small(key: str, size: int, limit: int) -> None:
    """Raises TooLarge."""
    if size > limit:
        raise TooLarge(f"Object {key} has {size:,} bytes; at most {limit:,} were expected.")
