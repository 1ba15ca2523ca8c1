# SPDX-License-Identifier: Apache-2.0
"""JSON request bodies, parsed without loss: numbers as they were written, duplicate keys rejected."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from shoestring_core import document


class ExactJsonRoute(APIRoute):
    """A route whose body is parsed by `ExactJsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def exact_handler(request: Request) -> Response:
            return await handler(ExactJsonRequest(request.scope, request.receive))

        return exact_handler


class ExactJsonRequest(Request):
    """Keeps numbers as they were written, because money must not pass through a float, and rejects duplicate keys."""

    async def json(self) -> Any:
        number = document.parse_scalar
        try:
            return json.loads(
                await self.body(),
                parse_int=number,
                parse_float=number,
                parse_constant=number,
                object_pairs_hook=_unique_keys,
            )
        except UnicodeDecodeError:
            raise HTTPException(400, "The body is not valid UTF-8.") from None
        except RecursionError:
            raise HTTPException(400, "The body is nested too deeply.") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise HTTPException(400, f"The body contains the key {document.format_value(key)} twice. Keep one.")
        mapping[key] = value
    return mapping
