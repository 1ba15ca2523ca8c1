# SPDX-License-Identifier: Apache-2.0
"""The local object store's door: what S3 would answer to the signed URLs that machines were given."""

from __future__ import annotations

import time
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from shoestring_core.errors import NotFound
from shoestring_core.store.objects import BLOCK_BYTES, LocalObjects, Method

from shoestring_api.service import Here, Service

router = APIRouter(prefix="/objects", tags=["objects"], include_in_schema=False)

Expires = Annotated[int, Query(ge=0, le=2**40)]
Signature = Annotated[str, Query(max_length=200)]


@router.put("/{key:path}")
async def put(key: str, service: Here, request: Request, expires: Expires, signature: Signature) -> Response:
    """Store an object, once: 412 if it exists."""
    objects = _checked(service, "PUT", key, expires, signature)
    writer = await run_in_threadpool(objects.writer, key)
    with writer:
        block = bytearray()
        async for piece in request.stream():
            block += piece
            if len(block) >= BLOCK_BYTES:
                await run_in_threadpool(writer.write, bytes(block))
                block.clear()
        await run_in_threadpool(writer.write, bytes(block))
        head = await run_in_threadpool(writer.finish)
    return Response(status_code=201, headers={"ETag": f'"{head.sha256}"'})


@router.get("/{key:path}")
def get(key: str, service: Here, expires: Expires, signature: Signature) -> Response:
    """Give an object, or a range of it."""
    objects = _checked(service, "GET", key, expires, signature)
    if objects.head(key) is None:
        raise NotFound(f"There is no object {key}.")
    return FileResponse(objects.path(key), media_type="application/octet-stream")


def _checked(service: Service, method: str, key: str, expires: int, signature: str) -> LocalObjects:
    objects = service.objects
    if not isinstance(objects, LocalObjects):
        raise NotFound("Objects are not kept here.")
    objects.check(cast("Method", method), key, expires, signature, int(time.time()))
    return objects
