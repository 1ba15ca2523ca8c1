# SPDX-License-Identifier: Apache-2.0
"""Errors on the wire: RFC 9457 problem documents. The one place that knows which code is which status."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from typing import Any, get_args
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from shoestring_core.errors import InvalidSpec, ShoestringError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

log = logging.getLogger(__name__)

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

MEDIA_TYPE = "application/problem+json"

STATUS = {
    "invalid-spec": 422,
    "invalid-request": 422,
    "malformed": 400,
    "not-found": 404,
    "method-not-allowed": 405,
    "unauthenticated": 401,
    "forbidden": 403,
    "agent-refused": 403,
    "budget-exceeded": 409,
    "time-limit-unmet": 409,
    "wrong-state": 409,
    "stale": 409,
    "idempotency-mismatch": 422,
    "idempotency-in-flight": 409,
    "batch-gap": 409,
    "points-missing": 409,
    "precondition-failed": 412,
    "too-large": 413,
    "range-not-satisfiable": 416,
    "store-too-new": 503,
    "unavailable": 503,
    "internal": 500,
}

TITLES = {
    400: ("malformed", "The request could not be read"),
    401: ("unauthenticated", "Sign in first"),
    403: ("forbidden", "Not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "This address does not take that method"),
    413: ("too-large", "The request body is too large"),
    415: ("unsupported-media-type", "Send JSON"),
    416: ("range-not-satisfiable", "The range lies outside the file"),
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What was wrong, and what to do next",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
}


def install(app: FastAPI) -> None:
    """Answer every error of the app, ours or the framework's, with a problem document."""
    app.add_exception_handler(ShoestringError, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    hint: str | None = None,
    retryable: bool = False,
    errors: list[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> JSONResponse:
    document = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "hint": hint,
        "retryable": retryable,
        "errors": errors or [],
    }
    return JSONResponse(fields | document, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def of(error: ShoestringError) -> JSONResponse:
    status = STATUS[error.code]
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Retry-After": "1"} if error.retryable else {}
    errors = [problem.as_json() for problem in error.problems] if isinstance(error, InvalidSpec) else None
    return problem(
        status, error.code, error.title, error.message,
        hint=error.hint, retryable=error.retryable, errors=errors, headers=headers, **error.fields,
    )  # fmt: skip


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """First and last byte that a Range header asks for (RFC 9110, one range); everything without one.

    Raises HTTPException 416 for a range outside the file.
    """
    if header is None or not (asked := _RANGE.fullmatch(header.strip())) or asked.groups() == ("", ""):
        return 0, size - 1
    first, last = asked.groups()
    begin = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if begin > end or begin >= size:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return begin, end


def _domain(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ShoestringError)
    return of(error)


def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return problem(400, "malformed", TITLES[400][1], f"The body is not valid JSON: {faults[0]['ctx']['error']}.")
    if any(fault["loc"][:1] == ("path",) for fault in faults):  # an id that can't be one: like one that isn't there
        return problem(404, "not-found", TITLES[404][1], f"There is nothing at {request.url.path}.")
    errors = [
        {"pointer": _pointer(fault["loc"]), "message": _message(request, fault), "code": fault["type"]}
        for fault in faults[:100]
    ]
    if error.body and any(fault["loc"] == ("body",) for fault in faults) and not _is_json(request):
        return problem(415, *TITLES[415], "Send the body as JSON, with the header Content-Type: application/json.")
    detail = "; ".join(f"{entry['pointer']}: {entry['message']}" for entry in errors[:5])
    return problem(422, "invalid-request", "The request is not valid", detail, errors=errors)


def meant(given: str, known: Sequence[str]) -> str:
    """The end of a sentence about a name that isn't known."""
    near = difflib.get_close_matches(given[:64].lower(), known, n=1, cutoff=0.55)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known) or 'none'}."


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _message(request: Request, fault: dict[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"There is no such field. {meant(str(fault['loc'][-1]), _body_fields(request))}"
    if fault["loc"] == ("body",):
        return "A JSON object is required."
    return str(fault["msg"])


def _body_fields(request: Request) -> list[str]:
    model = request.scope["route"].body_field.field_info.annotation
    return [name for kind in (model, *get_args(model)) for name in getattr(kind, "model_fields", ())]


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, title = TITLES.get(error.status_code, ("invalid-request", "The request is not valid"))
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path}."
    elif error.status_code == 405:
        detail = f"{request.url.path} does not take {request.method}."
    return problem(error.status_code, code, title, detail, headers=dict(error.headers or {}))


def _gone(_: Request, __: Exception) -> JSONResponse:
    return problem(400, "malformed", TITLES[400][1], "The connection broke before the whole body had come.")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """The traceback goes to the log, under a number that the user can name."""
    number = uuid4().hex[:12]
    log.error("request %s failed: %s %s", number, request.method, request.url.path, exc_info=error)
    return problem(
        500, "internal", "Something went wrong", "The service made a mistake; your data is as it was before.",
        hint=f"Try again. If it stays, tell the operator the request number {number}.", request=number,
    )  # fmt: skip


def _pointer(location: tuple[int | str, ...]) -> str:
    """('body', 'a', 0) → /a/0; ('query', 'limit') → query limit."""
    where, *rest = location
    return "/" + "/".join(map(str, rest)) if where == "body" else " ".join(map(str, location))
