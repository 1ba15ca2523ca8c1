# SPDX-License-Identifier: Apache-2.0
"""List, read and write buckets of S3 or a compatible store, with the credentials that this machine has."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
import obstore
from obstore import exceptions
from obstore.store import S3Store

from shoestring_trainer.agent.metadata_client import ENDPOINT, MetadataClient, MetadataUnavailable, RoleWithoutKeys
from shoestring_trainer.agent.service_client import backoff_delays, boottime
from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

GLOBAL_ENDPOINT = "https://s3.amazonaws.com"
"""Returns the region of any bucket."""
PAGE_SIZE = 1000
UPLOAD_PART_BYTES, PARTS_AT_ONCE = 8 << 20, 4
"""Larger files are uploaded in such parts, of which so many are in memory."""
RETRY_FOR_S, CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S = 120.0, 5.0, 30.0, 1800.0
ROLE_KEYS_S = 10.0
"""So long a new machine's role may be without keys."""
NOT_FOUND, PRECONDITION_FAILED = 404, 412
DENIED, RETRYABLE = (401, 403), (408, 429)
_PART_RETRIES: RetryConfig = {
    "max_retries": 100, "retry_timeout": timedelta(seconds=RETRY_FOR_S),
    "backoff": {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=10), "base": 2},
}  # fmt: skip
_STATUS_PATTERN = re.compile(r"status code: (\d{3})")
_STATUS_OF_ERROR = {
    exceptions.PermissionDeniedError: 403, exceptions.UnauthenticatedError: 401, exceptions.NotFoundError: 404,
    exceptions.PreconditionError: 412, exceptions.InvalidPathError: 400, FileNotFoundError: 404,
}  # fmt: skip

T = TypeVar("T")


class _RequestFailed(Exception):
    """The store rejected a request, and a retry can't help. `status` is the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Bucket:
    """A bucket that this machine may list. `url` is what the user gave, for messages."""

    url: str
    store: S3Store

    async def read(self, key: str, etag: str | None, start: int, end: int) -> obstore.Bytes:
        """Read bytes `start` to `end` of an object, if it still has this etag. Raises DataUnavailable."""

        async def read_range() -> obstore.Bytes:
            options: GetOptions = {"range": (start, end), "if_match": etag}
            result = await obstore.get_async(self.store, key, options=options)
            content = await result.bytes_async()
            if len(content) != end - start:
                raise ConnectionError(f"{len(content)} bytes received instead of {end - start}")
            return content

        try:
            return await _with_retries(read_range, f"{key} in {self.url}")
        except _RequestFailed as error:
            if error.status in (NOT_FOUND, PRECONDITION_FAILED):
                message = f"{key} in {self.url} changed while it was copied; submit again when it no longer changes"
            else:
                message = (
                    f"this machine may list {self.url} but not read {key} ({error}); allow it, or remove the object"
                )
            raise DataUnavailable(message) from error

    async def write(self, key: str, content: Path | bytes) -> None:
        """Store an object; it appears as a whole, and the store verifies its SHA-256. Raises DataUnavailable."""

        async def put() -> None:
            await obstore.put_async(
                self.store, key, content, chunk_size=UPLOAD_PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )  # fmt: skip

        await self._change(put, key)

    async def delete(self, key: str) -> None:
        """Delete an object. Raises DataUnavailable."""
        await self._change(lambda: obstore.delete_async(self.store, key), key)

    async def _change(self, call: Callable[[], Awaitable[None]], key: str) -> None:
        try:
            await _with_retries(call, f"{key} in {self.url}")
        except _RequestFailed as error:
            raise DataUnavailable(
                f"this machine may list {self.url} but not write {key} ({error}); allow s3:PutObject and "
                "s3:DeleteObject there, or give another place"
            ) from error


async def list_bucket(
    url: str, bucket: str, prefix: str, environment: Mapping[str, str], *, writes: bool = False
) -> tuple[Bucket, list[ObjectMeta]]:
    """A bucket and the objects below a prefix in it, with the first credentials that it accepts.

    environment  may hold AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL;
                 without keys the bucket is read anonymously, then with the role of this machine
    writes       something is to be written to it: only credentials will do
    raises       DataUnavailable, with `url` and what to do
    """
    reason, role = "", None
    async for store, role in _stores(bucket, environment, writes=writes):  # noqa: B007 - the last one's is told

        async def list_pages(store: S3Store = store) -> list[ObjectMeta]:
            return [entry async for page in obstore.list(store, prefix or None, chunk_size=PAGE_SIZE) for entry in page]

        try:
            return Bucket(url, store), await _with_retries(list_pages, url)
        except _RequestFailed as error:
            if error.status == NOT_FOUND:
                raise DataUnavailable(f"the bucket of {url} does not exist; correct the URL") from error
            if error.status not in DENIED:
                raise DataUnavailable(
                    f"{url} can't be listed ({error}); correct the URL, or rename the object"
                ) from error
            reason = str(error)
    keys = (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` prints them)"
    )
    if writes:
        raise DataUnavailable(f"{url} can't be written to without credentials ({reason or 'there are none'}); {keys}")
    if role:
        raise DataUnavailable(
            f"this machine may not read {url}, neither without credentials nor with its role {role} ({reason}); allow "
            "s3:ListBucket on the bucket and s3:GetObject on its objects to that role, or correct the URL"
        )
    raise DataUnavailable(
        f"this machine may not read {url} ({reason}); make it public, or {keys}; on the machines of a local service, "
        "start `shoestring up` with SHOESTRING_AGENT_ before each of these names; on EC2, whose machines get no keys, "
        "the operator names a role that may read it in SHOESTRING_EC2_DATA_ROLE, or admits the machines' "
        "network in the bucket's policy (docs/aws.md, Your data)"
    )


async def _stores(
    bucket: str, environment: Mapping[str, str], *, writes: bool
) -> AsyncIterator[tuple[S3Store, str | None]]:
    """The bucket with each kind of credentials, to try in turn: the keys, or else anonymous and then the role, with
    its name."""
    endpoint = environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        config: S3Config = {"region": environment.get("AWS_REGION") or "us-east-1", "endpoint": endpoint}
    else:
        config = {"region": await _with_retries(lambda: _find_region(bucket), f"{SCHEME}{bucket}")}
    if writes:
        config["checksum_algorithm"] = "sha256"
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S), "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S), "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }  # fmt: skip

    # only `_with_retries` retries, so that an outage has one deadline; but a part by itself, not a file of many parts
    retries: RetryConfig = _PART_RETRIES if writes else {"max_retries": 0}

    def open_store(**credentials: Any) -> S3Store:
        with_credentials = cast("S3Config", {**config, **credentials})
        return S3Store(bucket, config=with_credentials, client_options=options, retry_config=retries)

    if key := environment.get("AWS_ACCESS_KEY_ID"):
        token = environment.get("AWS_SESSION_TOKEN")
        secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
        given = {"session_token": token} if token else {}
        yield open_store(access_key_id=key, secret_access_key=secret, **given), None
        return
    if not writes:
        yield open_store(skip_signature=True), None
    metadata = MetadataClient(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
    try:
        role = await _find_role(metadata)
    except RoleWithoutKeys as error:
        raise DataUnavailable(
            f"this machine has the role {error}, but AWS gives it no keys to read {SCHEME}{bucket} with; let EC2 "
            "assume that role: its trust policy has to allow sts:AssumeRole to ec2.amazonaws.com"
        ) from error
    finally:
        await metadata.close()
    if role:
        yield open_store(metadata_endpoint=metadata.endpoint), role


async def _find_role(metadata: MetadataClient) -> str | None:
    """Raises RoleWithoutKeys if there are none for ROLE_KEYS_S."""
    deadline, asked_again = boottime() + ROLE_KEYS_S, False
    for delay_s in backoff_delays():
        try:
            return await metadata.role()
        except RoleWithoutKeys:
            if boottime() + delay_s > deadline:
                raise
            await asyncio.sleep(delay_s)
        except MetadataUnavailable:
            if asked_again:  # not an EC2 machine
                return None
            asked_again = True
    raise AssertionError


async def _find_region(bucket: str) -> str:
    """The region of a bucket, which needs no credentials. Raises DataUnavailable if the bucket does not exist."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)) as http:
        reply = await http.head(f"{GLOBAL_ENDPOINT}/{bucket}")
    if reply.status_code == 404:
        raise DataUnavailable(f"the bucket {bucket} does not exist; correct the URL")
    if region := reply.headers.get("x-amz-bucket-region"):
        return str(region)
    raise httpx.HTTPError(f"HTTP {reply.status_code}, without the region")


async def _with_retries(call: Callable[[], Awaitable[T]], target: str) -> T:
    """The result of a call, retried while the store can't be reached.

    Raises _RequestFailed if a retry can't help, and DataUnavailable after RETRY_FOR_S.
    """
    deadline = boottime() + RETRY_FOR_S
    for delay_s in backoff_delays():
        try:
            return await call()
        except (httpx.HTTPError, exceptions.BaseError, ConnectionError, FileNotFoundError) as error:
            reason = (str(error).splitlines() or [repr(error)])[0][:400]  # obstore's next lines are its causes
            status = _status(error)
            if 400 <= status < 500 and status not in RETRYABLE:
                raise _RequestFailed(status, reason) from error
            if boottime() + delay_s > deadline:
                raise DataUnavailable(
                    f"{target} can't be reached for {RETRY_FOR_S:.0f} s: {reason}", permanent=False
                ) from error
        await asyncio.sleep(delay_s)
    raise AssertionError


def _status(error: Exception) -> int:
    """The HTTP status of an error, 0 without a reply. obstore has types for some statuses, and text for all."""
    for error_type, status in _STATUS_OF_ERROR.items():
        if isinstance(error, error_type):
            return status
    match = _STATUS_PATTERN.search(str(error))
    return int(match[1]) if match else 0
