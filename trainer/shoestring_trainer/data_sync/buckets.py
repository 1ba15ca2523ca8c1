# SPDX-License-Identifier: Apache-2.0
"""Buckets of S3, or of a store that speaks its language: listed and read, by whatever this machine may use for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
import obstore
from obstore import exceptions as refused
from obstore.store import S3Store

from shoestring_trainer.agent.metadata_client import ENDPOINT, MetadataClient, MetadataUnavailable
from shoestring_trainer.agent.service_client import backoff_delays, boottime
from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, S3Config

GLOBAL_ENDPOINT = "https://s3.amazonaws.com"
"""Answers for the buckets of all regions, if only with where they are."""
PAGE = 1000
RETRY_FOR_S, CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S = 120.0, 5.0, 30.0, 1800.0
NOT_FOUND, CHANGED = 404, 412
DENIED, RETRYABLE = (401, 403), (408, 429)
_STATUS = re.compile(r"status code: (\d{3})")
_STATUS_OF = {
    refused.PermissionDeniedError: 403, refused.UnauthenticatedError: 401, refused.NotFoundError: 404,
    refused.PreconditionError: 412, refused.InvalidPathError: 400,
}  # fmt: skip

T = TypeVar("T")


class _Refused(Exception):
    """The store's answer is no. The status is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Bucket:
    """A bucket that let itself be listed. `url` is the place that was asked for, in front of users."""

    url: str
    store: S3Store

    async def read(self, key: str, etag: str | None, start: int, end: int) -> obstore.Bytes:
        """Bytes `start` to `end` of the object that was listed with this etag. Raises DataUnavailable."""

        async def part() -> obstore.Bytes:
            options: GetOptions = {"range": (start, end), "if_match": etag}
            found = await obstore.get_async(self.store, key, options=options)
            content = await found.bytes_async()
            if len(content) != end - start:
                raise ConnectionError(f"{len(content)} bytes came instead of {end - start}")
            return content

        try:
            return await _with_retries(part, f"{key} in {self.url}")
        except _Refused as rejection:
            if rejection.status in (NOT_FOUND, CHANGED):
                why = f"{key} in {self.url} changed as it was fetched; submit again once it rests"
            else:
                why = (
                    f"this machine may list {self.url} but not read {key} ({rejection}); allow it, or remove the object"
                )
            raise DataUnavailable(why) from rejection


async def list_bucket(
    url: str, bucket: str, prefix: str, environment: Mapping[str, str]
) -> tuple[Bucket, list[ObjectMeta]]:
    """A bucket and what lies below a prefix in it, by the first way in that it accepts.

    environment  may hold AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL;
                 without keys the bucket is read as anybody may, or as the role of this machine may
    raises       DataUnavailable, naming `url` and the remedy
    """
    reason = ""
    async for store in _ways_in(bucket, environment):

        async def pages(store: S3Store = store) -> list[ObjectMeta]:
            return [entry async for page in obstore.list(store, prefix or None, chunk_size=PAGE) for entry in page]

        try:
            return Bucket(url, store), await _with_retries(pages, url)
        except _Refused as rejection:
            if rejection.status == NOT_FOUND:
                raise DataUnavailable(f"there is no bucket for {url}; correct data.train") from rejection
            if rejection.status not in DENIED:
                raise DataUnavailable(f"{url} can't be listed ({rejection}); correct data.train") from rejection
            reason = str(rejection)
    raise DataUnavailable(
        f"this machine may not read {url} ({reason}); make it public, or set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` prints them); for the machines of a "
        "local service, start `shoestring up` with SHOESTRING_AGENT_ before each of these names"
    )


async def _ways_in(bucket: str, environment: Mapping[str, str]) -> AsyncIterator[S3Store]:
    """This machine's ways into a bucket, to be tried in turn: by its keys; or as anybody, then by its role."""
    endpoint = environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        config: S3Config = {"region": environment.get("AWS_REGION") or "us-east-1", "endpoint": endpoint}
    else:
        config = {"region": await _with_retries(lambda: _region(bucket), f"{SCHEME}{bucket}")}
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S), "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S), "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }  # fmt: skip

    def way(**by: Any) -> S3Store:
        # calls are made again by `_with_retries` alone, so that an outage has one clock
        chosen = cast("S3Config", {**config, **by})
        return S3Store(bucket, config=chosen, client_options=options, retry_config={"max_retries": 0})

    if key := environment.get("AWS_ACCESS_KEY_ID"):
        token = environment.get("AWS_SESSION_TOKEN")
        secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
        yield way(access_key_id=key, secret_access_key=secret, **({"session_token": token} if token else {}))
        return
    yield way(skip_signature=True)
    metadata = MetadataClient(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
    try:
        role = await metadata.role()
    except MetadataUnavailable:  # this computer is none of EC2's
        role = None
    finally:
        await metadata.close()
    if role:
        yield way(metadata_endpoint=metadata.endpoint)


async def _region(bucket: str) -> str:
    """Where a bucket lies, which S3 tells everybody. Raises DataUnavailable if there is none of this name."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)) as http:
        answer = await http.head(f"{GLOBAL_ENDPOINT}/{bucket}")
    if answer.status_code == 404:
        raise DataUnavailable(f"there is no bucket {bucket}; correct data.train")
    if region := answer.headers.get("x-amz-bucket-region"):
        return str(region)
    raise httpx.HTTPError(f"HTTP {answer.status_code}, and no word of the region")


async def _with_retries(call: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of a call that is made again while the store can't be reached.

    Raises _Refused when that has no use, and DataUnavailable when it takes long.
    """
    deadline = boottime() + RETRY_FOR_S
    for pause in backoff_delays():
        try:
            return await call()
        except (httpx.HTTPError, refused.BaseError, ConnectionError) as error:
            reason = (str(error).splitlines() or [repr(error)])[0][:400]  # obstore's go on with how it came about
            status = _status(error)
            if 400 <= status < 500 and status not in RETRYABLE:
                raise _Refused(status, reason) from error
            if boottime() + pause > deadline:
                raise DataUnavailable(
                    f"{what} can't be reached for {RETRY_FOR_S:.0f} s: {reason}", permanent=False
                ) from error
        await asyncio.sleep(pause)
    raise AssertionError


def _status(error: Exception) -> int:
    """The status of the answer that an error stands for; 0: none came. obstore has types for few, words for all."""
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            return status
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0
