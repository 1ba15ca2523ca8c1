# SPDX-License-Identifier: Apache-2.0
"""Objects in a folder, which the API serves at `/objects/KEY` to signed URLs."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self
from urllib.parse import quote

from shoestring_core.errors import Forbidden, TooLarge, Unavailable
from shoestring_core.store.objects.contract import BLOCK_BYTES, ObjectInfo, exists, missing, require_key, require_small

Method = Literal["GET", "PUT"]


class LocalObjects:
    """A folder of objects. `base_url`: of the service, as machines reach it."""

    def __init__(self, folder: Path, secret: str, base_url: str) -> None:
        self.folder = folder
        self._secret = hmac.digest(secret.encode(), b"objects", "sha256")
        self._base_url = base_url.rstrip("/")

    def prepare(self) -> None:
        with _as_unavailable("stored"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def urls_end_by(self) -> None:
        """The secret that signs them doesn't end."""

    def put_url(self, key: str, expires_at: int, max_bytes: int) -> str:
        return self._signed("PUT", key, expires_at, max_bytes)

    def start_multipart(self, key: str, expires_at: int, size: int) -> None:
        """One PUT takes an object of any size."""

    def get_url(self, key: str, expires_at: int) -> str:
        return self._signed("GET", key, expires_at, 0)

    def head(self, key: str) -> ObjectInfo | None:
        path = self.path(key)
        with _as_unavailable("read"):
            try:
                size = path.stat().st_size
                sha256 = _sidecar(path).read_text(encoding="ascii")
            except FileNotFoundError:
                if not path.is_file():
                    return None
                sha256 = self._write_sidecar(path, _digest(path))  # the writer died between the object and its sidecar
            except NotADirectoryError:
                if not self.folder.is_dir():
                    raise
                return None  # below the name of an object, which S3 allows
        return ObjectInfo(size, f"sha256:{sha256}")

    def read(self, key: str, limit: int) -> bytes:
        info = self.head(key)
        if info is None:
            raise missing(key)
        require_small(key, info.bytes, limit)
        with _as_unavailable("read"):
            return self.path(key).read_bytes()

    def put(self, key: str, content: bytes) -> None:
        with self.writer(key, len(content)) as writer:
            writer.write(content)
            writer.finish()

    def blocks(self, key: str, first: int, count: int) -> Iterator[bytes]:
        if self.head(key) is None:
            raise missing(key)
        with _as_unavailable("read"), self.path(key).open("rb") as file:
            file.seek(first)
            while count > 0 and (block := file.read(min(count, BLOCK_BYTES))):
                count -= len(block)
                yield block

    def path(self, key: str) -> Path:
        """The object's file. Raises NotFound for an invalid key, so that none leads out of the folder."""
        require_key(key)
        return self.folder / key

    def check(self, method: Method, key: str, expires_at: int, max_bytes: int, signature: str, now: int) -> None:
        """Raises Forbidden unless `put_url` or `get_url` made this request's URL and it hasn't expired."""
        if not hmac.compare_digest(self._signature(method, key, expires_at, max_bytes).encode(), signature.encode()):
            raise Forbidden("This URL was not signed by this service.", hint="Ask the service for a new one.")
        if now > expires_at:
            raise Forbidden("This URL has expired.", hint="Ask the service for a new one.")

    def writer(self, key: str, max_bytes: int) -> ObjectWriter:
        """A writer for a new object, of at most `max_bytes`. Raises PreconditionFailed if it exists."""
        path = self.path(key)
        with _as_unavailable("stored"):
            taken = path.exists()
        if taken:
            raise exists(key)
        return ObjectWriter(key, path, max_bytes, self._write_sidecar)

    def _signed(self, method: Method, key: str, expires_at: int, max_bytes: int) -> str:
        self.path(key)
        signature = self._signature(method, key, expires_at, max_bytes)
        return f"{self._base_url}/objects/{quote(key)}?expires={expires_at}&max_bytes={max_bytes}&signature={signature}"

    def _signature(self, method: Method, key: str, expires_at: int, max_bytes: int) -> str:
        return hmac.new(self._secret, f"{method} {expires_at} {max_bytes} {key}".encode(), hashlib.sha256).hexdigest()

    @staticmethod
    def _write_sidecar(path: Path, sha256: str) -> str:
        temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        temp.write_text(sha256, encoding="ascii")
        temp.replace(_sidecar(path))
        return sha256


class ObjectWriter:
    """A new object, invisible until `finish`. Leaving the context before drops what was written."""

    def __init__(self, key: str, path: Path, max_bytes: int, write_sidecar: _WriteSidecar) -> None:
        self._key, self._path, self._max_bytes, self._write_sidecar = key, path, max_bytes, write_sidecar
        self._temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> Self:
        with _as_unavailable("stored"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temp.open("xb")
        return self

    def write(self, block: bytes) -> None:
        """Raises TooLarge before a byte beyond `max_bytes` is stored."""
        if self._bytes + len(block) > self._max_bytes:
            raise TooLarge(f"Object {self._key} may have at most {self._max_bytes:,} bytes.")
        with _as_unavailable("stored"):
            self._file.write(block)
        self._sha256.update(block)
        self._bytes += len(block)

    def finish(self) -> ObjectInfo:
        """Make the object appear. Raises PreconditionFailed if another writer was first."""
        with _as_unavailable("stored"):
            self._file.flush()
            os.fsync(self._file.fileno())
            try:
                os.link(self._temp, self._path)  # unlike rename, fails if the name is taken
            except FileExistsError:
                raise exists(self._key) from None
            _fsync_folder(self._path.parent)
            sha256 = self._write_sidecar(self._path, self._sha256.hexdigest())
            return ObjectInfo(self._bytes, f"sha256:{sha256}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        self._temp.unlink(missing_ok=True)


class _WriteSidecar(Protocol):
    def __call__(self, path: Path, sha256: str) -> str: ...


def _sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _as_unavailable(done: str) -> Iterator[None]:
    """done: what could not be done to the object."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"The object could not be {done}: {error.strerror}.",
            hint="Check the disk and the permissions of the folder that SHOESTRING_OBJECT_STORE names.",
        ) from error
