# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests: JSON taken exactly as it was written, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from shoestring_core import document


class ExactRoute(APIRoute):
    """A route whose body is read as an `ExactRequest` reads it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def exact(request: Request) -> Response:
            return await handle(ExactRequest(request.scope, request.receive))

        return exact


class ExactRequest(Request):
    """Numbers stay as they were written, for money must not pass through a float; no key may be given twice."""

    async def json(self) -> Any:
        number = document.parse_scalar
        try:
            return json.loads(
                await self.body(),
                parse_int=number,
                parse_float=number,
                parse_constant=number,
                object_pairs_hook=_mapping,
            )
        except UnicodeDecodeError:
            raise HTTPException(400, "The body is not valid UTF-8.") from None
        except RecursionError:
            raise HTTPException(400, "The body is nested too deeply.") from None


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise HTTPException(400, f"The body gives {document.format_value(key)} twice. Keep one.")
        mapping[key] = value
    return mapping
