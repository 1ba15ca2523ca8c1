# SPDX-License-Identifier: Apache-2.0
"""Uploads to and downloads from the local object store, by signed URLs as of S3."""

from __future__ import annotations

import time
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from shoestring_core.errors import NotFound
from shoestring_core.store.objects.contract import BLOCK_BYTES
from shoestring_core.store.objects.local import LocalObjects, Method

from shoestring_api.app_state import AppState
from shoestring_api.dependencies import StateDep

router = APIRouter(prefix="/objects", tags=["objects"], include_in_schema=False)

Expires = Annotated[int, Query(ge=0, le=2**40)]
MaxBytes = Annotated[int, Query(ge=0, le=2**62)]
Signature = Annotated[str, Query(max_length=200)]


@router.put("/{key:path}")
async def put(
    key: str, state: StateDep, request: Request, expires: Expires, max_bytes: MaxBytes, signature: Signature
) -> Response:
    """Store an object once: 412 if it exists, 413 if it has more bytes than the URL allows."""
    objects = _check_signature(state, "PUT", key, expires, max_bytes, signature)
    writer = await run_in_threadpool(objects.writer, key, max_bytes)
    with writer:
        block = bytearray()
        async for piece in request.stream():
            block += piece
            if len(block) >= BLOCK_BYTES:
                await run_in_threadpool(writer.write, bytes(block))
                block.clear()
        await run_in_threadpool(writer.write, bytes(block))
        await run_in_threadpool(writer.finish)
    return Response(status_code=201)


@router.get("/{key:path}")
def get(key: str, state: StateDep, expires: Expires, max_bytes: MaxBytes, signature: Signature) -> Response:
    """Return an object, or a range of it."""
    objects = _check_signature(state, "GET", key, expires, max_bytes, signature)
    if objects.head(key) is None:
        raise NotFound(f"Object {key} does not exist.")
    return FileResponse(objects.path(key), media_type="application/octet-stream")


def _check_signature(
    state: AppState, method: str, key: str, expires: int, max_bytes: int, signature: str
) -> LocalObjects:
    objects = state.objects
    if not isinstance(objects, LocalObjects):
        raise NotFound("This service stores its objects elsewhere.")
    objects.check(cast("Method", method), key, expires, max_bytes, signature, int(time.time()))
    return objects
