# SPDX-License-Identifier: Apache-2.0
"""Calls to the service, each with a timeout, and two ways to fail: try again later, or never again like this."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import UUID
from xml.sax.saxutils import escape

import httpx
from pydantic import ValidationError
from shoestring_core.tls import trust
from shoestring_core.wire import (
    LONG_POLL_S,
    CheckpointCommit,
    CommitReply,
    MemberStatus,
    MultipartUpload,
    RegisterRequest,
    Reply,
    ReportBatch,
    ReportRequest,
    UploadParts,
    UploadStart,
)

from shoestring_trainer.agent.rank_files import open_file

CALL_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
LONG_POLL_TIMEOUT = httpx.Timeout(LONG_POLL_S + 10.0, connect=5.0)
OBJECT_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
START_UPLOAD_TIMEOUT = httpx.Timeout(3.0)
"""Short, since one PUT does as well if the service is silent, and a machine may have only seconds left."""
BLOCK_BYTES = 1 << 20
S3_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
RETRYABLE_STATUSES = {408, 425, 429}
S3_RETRYABLE_CODES = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"}
S3_EXPIRED_CODES = {"ExpiredToken", "InvalidToken", "NoSuchUpload", "TokenRefreshRequired"}
"""Of 4xx: docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
DETAIL_LIMIT = 2000

Answer = TypeVar("Answer", Reply, UploadParts, CommitReply)


class Unreachable(Exception):
    """No usable answer: no connection, a time-out, a server in trouble. The same call may succeed later."""


class RequestRejected(Exception):
    """The service rejected the request. `code` is the problem document's, `expected` the batch number after a gap."""

    def __init__(self, status: int, code: str, detail: str, expected: int | None = None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.expected = expected


@dataclass(frozen=True)
class TimedReply:
    """A reply, and when its request was sent: the moment from which its durations count."""

    reply: Reply
    sent_at: float


class ServiceClient:
    """One client for one session. All times are `boottime`.

    ca  the authority that signs the service's certificate, in PEM form; "": one that this machine knows. It vouches
        for nobody else, such as an object store.
    """

    def __init__(self, url: str, machine: UUID, session_secret: str, ca: str = "") -> None:
        self._service = url.rstrip("/") + "/"
        self._of_service = httpx.AsyncClient(trust_env=False, verify=trust(ca) if ca else True)
        self._of_others = httpx.AsyncClient(trust_env=False) if ca else self._of_service
        self._base = url.rstrip("/") + "/agent/v1"
        self._key = {"Authorization": f"Bearer {machine}.{session_secret}", "Content-Type": "application/json"}

    async def register(self, register: RegisterRequest) -> TimedReply:
        """Raises RequestRejected when the boot token is not this machine's, or another session was first."""
        return await self._request_reply("POST", "/register", register.model_dump_json())

    async def report(
        self, batch: ReportBatch | None, member: MemberStatus | None, notice_at: float | None
    ) -> TimedReply:
        """Send a batch, a status and a preemption notice, each if there is one.

        Raises RequestRejected with code `batch-gap` and the number that is expected, or for a batch that is invalid.
        """
        report = ReportRequest(batch=batch, member=member, notice_at=notice_at)
        return await self._request_reply("POST", "/report", report.model_dump_json())

    async def orders(self, after: str) -> TimedReply:
        """Long poll: the service replies once the order's ETag differs from `after`, or after LONG_POLL_S."""
        return await self._request_reply("GET", "/orders", None, {"after": after}, LONG_POLL_TIMEOUT)

    async def commit(self, commit: CheckpointCommit) -> CommitReply:
        """Raises RequestRejected with code `batches-missing` while the service lacks batches up to `through_seq`."""
        answer = await self._call(
            "POST", self._base + "/checkpoints", content=commit.model_dump_json(), headers=self._key
        )
        return _parse(CommitReply, answer)

    async def start_upload(self, start: UploadStart) -> MultipartUpload | None:
        """Addresses for the parts of an object; None: one PUT takes it."""
        url, content = self._base + "/uploads", start.model_dump_json()
        answer = await self._call("POST", url, content=content, headers=self._key, timeout=START_UPLOAD_TIMEOUT)
        return _parse(UploadParts, answer).multipart

    async def upload_part(self, path: Path, first: int, count: int, url: str) -> str:
        """PUT `count` bytes of a file from offset `first` on; returns the part's ETag. Raises as `upload`."""
        with os.fdopen(open_file(path), "rb") as file:
            file.seek(first)
            headers = {"Content-Length": str(count)}
            answer = await self._call(
                "PUT",
                url,
                content=_blocks(file, count),
                headers=headers,
                timeout=OBJECT_TIMEOUT,
                read_error=read_store_error,
            )
        return str(answer.headers.get("ETag", ""))

    async def complete_upload(self, etags: Sequence[str], url: str) -> None:
        """Let the object appear whose parts have these ETags. Raises as `upload`."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        document = f'<CompleteMultipartUpload xmlns="{S3_NAMESPACE}">{parts}</CompleteMultipartUpload>'
        headers = {"If-None-Match": "*", "Content-Type": "application/xml"}
        answer = await self._call(
            "POST", url, content=document, headers=headers, timeout=OBJECT_TIMEOUT, read_error=read_store_error
        )
        if "<Error>" in answer.text:  # S3 begins its answer before it knows
            raise Unreachable(f"POST object: {answer.text[:200]}")

    async def upload(self, path: Path, url: str) -> None:
        """PUT a file that ranks wrote to a signed URL.

        Raises RequestRejected 412 if an object exists there already, 403 for a URL that is no longer valid, and OSError
        for what is no file.
        """
        with os.fdopen(open_file(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            headers = {"Content-Length": str(size), "If-None-Match": "*"}
            await self._call(
                "PUT",
                url,
                content=_blocks(file, size),
                headers=headers,
                timeout=OBJECT_TIMEOUT,
                read_error=read_store_error,
            )

    async def download(self, url: str, path: Path) -> str:
        """GET a signed URL into a file; returns the SHA-256 of what came."""
        digest = hashlib.sha256()
        try:
            async with self._http(url).stream("GET", url, timeout=OBJECT_TIMEOUT) as answer:
                if answer.status_code >= 300:
                    await answer.aread()
                    raise read_store_error(answer)
                with path.open("wb") as file:
                    async for block in answer.aiter_bytes(BLOCK_BYTES):
                        digest.update(block)
                        file.write(block)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"GET object: {error!r}") from error
        return digest.hexdigest()

    async def close(self) -> None:
        await self._of_service.aclose()
        await self._of_others.aclose()

    def _http(self, url: str) -> httpx.AsyncClient:
        return self._of_service if url.startswith(self._service) else self._of_others

    async def _request_reply(
        self,
        method: str,
        path: str,
        body: str | None,
        query: dict[str, str] | None = None,
        timeout: httpx.Timeout = CALL_TIMEOUT,
    ) -> TimedReply:
        sent_at = boottime()
        answer = await self._call(
            method, self._base + path, content=body, params=query, headers=self._key, timeout=timeout
        )
        return TimedReply(_parse(Reply, answer), sent_at)

    async def _call(
        self,
        method: str,
        url: str,
        *,
        timeout: httpx.Timeout = CALL_TIMEOUT,
        read_error: Callable[[httpx.Response], Exception] | None = None,
        **request: Any,
    ) -> httpx.Response:
        try:
            answer = await self._http(url).request(method, url, timeout=timeout, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"{method} {url.partition('?')[0]}: {error!r}") from error
        if answer.status_code >= 300:
            raise (read_error or _error_from)(answer)
        return answer


def boottime() -> float:
    """Seconds on the clock by which leases are measured: it never jumps, and runs on while a machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def backoff_delays(most_s: float = 10.0) -> Iterator[float]:
    """Exponential backoff with jitter: the seconds to wait before each further attempt, without end."""
    bound = 0.25
    while True:
        yield random.uniform(bound / 4, bound)
        bound = min(most_s, bound * 2)


async def _blocks(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    while block := file.read(min(BLOCK_BYTES, size)):
        size -= len(block)
        yield block


def _parse(kind: type[Answer], answer: httpx.Response) -> Answer:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise Unreachable(f"an answer that is none of ours, perhaps a proxy's: {error}") from error


def _error_from(answer: httpx.Response) -> Exception:
    status = answer.status_code
    if status >= 500 or status in RETRYABLE_STATUSES or status < 400:
        return Unreachable(f"HTTP {status}: {answer.text[:200]}")
    try:
        problem = answer.json()
        code, detail, expected = (
            problem.get("code"),
            problem.get("detail") or problem.get("title"),
            problem.get("expected"),
        )
    except (ValueError, AttributeError):
        code, detail, expected = None, answer.text, None
    expected = expected if isinstance(expected, int) else None
    return RequestRejected(status, str(code or "unknown"), str(detail)[:DETAIL_LIMIT], expected)


def read_store_error(answer: httpx.Response) -> Exception:
    """As `_error_from`, for an object store: S3 says in XML what it means, and has 400 for more than wrong requests."""
    found = re.search(r"<Code>(\w+)</Code>", answer.text[:DETAIL_LIMIT])
    if found is None:
        return _error_from(answer)
    code = found[1]
    if code in S3_RETRYABLE_CODES or answer.status_code >= 500:
        return Unreachable(f"HTTP {answer.status_code}: {code}")
    return RequestRejected(403 if code in S3_EXPIRED_CODES else answer.status_code, code, answer.text[:DETAIL_LIMIT])
