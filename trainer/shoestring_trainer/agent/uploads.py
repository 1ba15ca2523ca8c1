# SPDX-License-Identifier: Apache-2.0
"""Files to the object store, by signed URLs: in one piece, or in parts that need no word from the service any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from shoestring_core import wire

from shoestring_trainer.agent.service_client import RequestRejected, ServiceClient, Unreachable, backoff_delays

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 4
OBJECT_EXISTS = 412

T = TypeVar("T")


async def upload_data(service: ServiceClient, path: Path, size: int, urls: wire.UploadUrls, *, again: bool) -> None:
    """Upload a checkpoint's data: in parts if they are large, and service and store can. Raises as `upload_file`."""
    parts = await _start_parts(service, urls, size) if size > wire.MULTIPART_BYTES else None
    if parts is None:
        return await upload_file(service, path, urls.data_url, again=again)
    etags = await _upload_parts(service, path, size, parts)
    return await _store_once(lambda: service.complete_upload(etags, parts.complete_url), again)


async def upload_file(service: ServiceClient, path: Path, url: str, *, again: bool) -> None:
    """Upload a file; try again while the store can't be reached.

    again  it may have been sent there before, so that an object that exists is this one

    Raises RequestRejected if the store takes nothing at this address, and OSError.
    """
    await _store_once(lambda: service.upload(path, url), again)


async def _start_parts(service: ServiceClient, urls: wire.UploadUrls, size: int) -> wire.MultipartUpload | None:
    try:
        return await service.start_upload(wire.UploadStart(generation=urls.generation, nonce=urls.nonce, bytes=size))
    except (Unreachable, RequestRejected) as error:
        log.warning("the checkpoint goes up in one piece: %s", error)
        return None


async def _upload_parts(service: ServiceClient, path: Path, size: int, parts: wire.MultipartUpload) -> list[str]:
    """Upload all parts, a few at once, each tried again by itself; returns their ETags."""
    at_once = asyncio.Semaphore(PARTS_AT_ONCE)

    async def upload(number: int, url: str) -> str:
        first = number * parts.part_bytes
        count = min(parts.part_bytes, size - first)
        async with at_once:
            return await _until_reached(lambda: service.upload_part(path, first, count, url))

    try:
        async with asyncio.TaskGroup() as group:
            uploads = [group.create_task(upload(number, url)) for number, url in enumerate(parts.part_urls)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [one.result() for one in uploads]


async def _store_once(call: Callable[[], Awaitable[None]], again: bool) -> None:
    """Let an object appear. A URL accepts one only: after a lost reply, the existing one is this file."""

    async def attempt() -> None:
        nonlocal again
        try:
            await call()
        except Unreachable:
            again = True
            raise
        except RequestRejected as rejection:
            if not (rejection.status == OBJECT_EXISTS and again):
                raise

    await _until_reached(attempt)


async def _until_reached(call: Callable[[], Awaitable[T]]) -> T:
    delays = backoff_delays(most_s=5.0)
    while True:
        try:
            return await call()
        except Unreachable as error:
            log.warning("not uploaded yet: %s", error)
        await asyncio.sleep(next(delays))
