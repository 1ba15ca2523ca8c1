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

from shoestring_trainer.agent.metadata_watch import ENDPOINT, Metadata, MetadataUnavailable
from shoestring_trainer.agent.service import boottime, pauses
from shoestring_trainer.data_sync.datasets import SCHEME, NoData

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, S3Config

EVERYBODYS = "https://s3.amazonaws.com"
"""Answers for the buckets of all regions, if only with where they are."""
PAGE = 1000
PATIENCE_S, CONNECT_S, SILENCE_S, WHOLE_S = 120.0, 5.0, 30.0, 1800.0
GONE, OTHER = 404, 412
DENIED, BUSY = (401, 403), (408, 429)
_STATUS = re.compile(r"status code: (\d{3})")
_STATUS_OF = {
    refused.PermissionDeniedError: 403, refused.UnauthenticatedError: 401, refused.NotFoundError: 404,
    refused.PreconditionError: 412, refused.InvalidPathError: 400,
}  # fmt: skip

T = TypeVar("T")


class _Refused(Exception):
    """The store's answer is no. The status is HTTP's."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True)
class Bucket:
    """A bucket that let itself be listed. `url` is the place that was asked for, in front of users."""

    url: str
    store: S3Store

    async def read(self, key: str, etag: str | None, start: int, end: int) -> obstore.Bytes:
        """Bytes `start` to `end` of the object that was listed with this etag. Raises NoData."""

        async def part() -> obstore.Bytes:
            options: GetOptions = {"range": (start, end), "if_match": etag}
            found = await obstore.get_async(self.store, key, options=options)
            content = await found.bytes_async()
            if len(content) != end - start:
                raise ConnectionError(f"{len(content)} bytes came instead of {end - start}")
            return content

        try:
            return await _patiently(part, f"{key} in {self.url}")
        except _Refused as refusal:
            if refusal.status in (GONE, OTHER):
                why = f"{key} in {self.url} changed as it was fetched; submit again once it rests"
            else:
                why = f"this machine may list {self.url} but not read {key} ({refusal}); allow it, or remove the object"
            raise NoData(why) from refusal


async def list_bucket(
    url: str, bucket: str, prefix: str, environment: Mapping[str, str]
) -> tuple[Bucket, list[ObjectMeta]]:
    """A bucket and what lies below a prefix in it, by the first way in that it accepts.

    environment  may hold AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL;
                 without keys the bucket is read as anybody may, or as the role of this machine may
    raises       NoData, naming `url` and the remedy
    """
    said = ""
    async for store in _ways(bucket, environment):

        async def pages(store: S3Store = store) -> list[ObjectMeta]:
            return [entry async for page in obstore.list(store, prefix or None, chunk_size=PAGE) for entry in page]

        try:
            return Bucket(url, store), await _patiently(pages, url)
        except _Refused as refusal:
            if refusal.status == GONE:
                raise NoData(f"there is no bucket for {url}; correct data.train") from refusal
            if refusal.status not in DENIED:
                raise NoData(f"{url} can't be listed ({refusal}); correct data.train") from refusal
            said = str(refusal)
    raise NoData(
        f"this machine may not read {url} ({said}); make it public, or set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` prints them); for the machines of a "
        "local service, start `shoestring up` with SHOESTRING_AGENT_ before each of these names"
    )


async def _ways(bucket: str, environment: Mapping[str, str]) -> AsyncIterator[S3Store]:
    """This machine's ways into a bucket, to be tried in turn: by its keys; or as anybody, then by its role."""
    endpoint = environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        config: S3Config = {"region": environment.get("AWS_REGION") or "us-east-1", "endpoint": endpoint}
    else:
        config = {"region": await _patiently(lambda: _region(bucket), f"{SCHEME}{bucket}")}
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_S), "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(seconds=WHOLE_S), "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }  # fmt: skip

    def way(**by: Any) -> S3Store:
        # calls are made again by `_patiently` alone, so that an outage has one clock
        chosen = cast("S3Config", {**config, **by})
        return S3Store(bucket, config=chosen, client_options=options, retry_config={"max_retries": 0})

    if key := environment.get("AWS_ACCESS_KEY_ID"):
        token = environment.get("AWS_SESSION_TOKEN")
        secret = environment.get("AWS_SECRET_ACCESS_KEY", "")
        yield way(access_key_id=key, secret_access_key=secret, **({"session_token": token} if token else {}))
        return
    yield way(skip_signature=True)
    metadata = Metadata(environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
    try:
        role = await metadata.role()
    except MetadataUnavailable:  # this computer is none of EC2's
        role = None
    finally:
        await metadata.close()
    if role:
        yield way(metadata_endpoint=metadata.endpoint)


async def _region(bucket: str) -> str:
    """Where a bucket lies, which S3 tells everybody. Raises NoData if there is none of this name."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S)) as http:
        answer = await http.head(f"{EVERYBODYS}/{bucket}")
    if answer.status_code == 404:
        raise NoData(f"there is no bucket {bucket}; correct data.train")
    if region := answer.headers.get("x-amz-bucket-region"):
        return str(region)
    raise httpx.HTTPError(f"HTTP {answer.status_code}, and no word of the region")


async def _patiently(call: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of a call that is made again while the store can't be reached.

    Raises _Refused when that has no use, and NoData when it takes long.
    """
    deadline = boottime() + PATIENCE_S
    for pause in pauses():
        try:
            return await call()
        except (httpx.HTTPError, refused.BaseError, ConnectionError) as error:
            said = (str(error).splitlines() or [repr(error)])[0][:400]  # obstore's go on with how it came about
            status = _status(error)
            if 400 <= status < 500 and status not in BUSY:
                raise _Refused(status, said) from error
            if boottime() + pause > deadline:
                raise NoData(f"{what} can't be reached for {PATIENCE_S:.0f} s: {said}", lasting=False) from error
        await asyncio.sleep(pause)
    raise AssertionError


def _status(error: Exception) -> int:
    """The status of the answer that an error stands for; 0: none came. obstore has types for few, words for all."""
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            return status
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0
