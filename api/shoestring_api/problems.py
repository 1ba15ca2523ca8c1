# SPDX-License-Identifier: Apache-2.0
"""Error responses: RFC 9457 problem documents, and the HTTP status of each error code."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from shoestring_core.errors import InvalidList, InvalidSpec, Problem, ShoestringError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Mount

from shoestring_api.response_headers import headers_of

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUS = {
    "invalid-spec": 422,
    "invalid-request": 422,
    "invalid-list": 422,
    "malformed": 400,
    "not-found": 404,
    "method-not-allowed": 405,
    "unauthenticated": 401,
    "forbidden": 403,
    "agent-refused": 403,
    "budget-exceeded": 409,
    "budget-unmovable": 409,
    "deadline-unmet": 409,
    "time-limit-unmet": 409,
    "invalid-state": 409,
    "stale": 409,
    "idempotency-mismatch": 422,
    "idempotency-in-flight": 409,
    "batch-gap": 409,
    "batches-missing": 409,
    "precondition-failed": 412,
    "too-many": 409,
    "too-large": 413,
    "range-not-satisfiable": 416,
    "store-too-new": 503,
    "unavailable": 503,
    "internal": 500,
}

TITLES = {
    400: ("malformed", "Malformed request"),
    401: ("unauthenticated", "Sign in first"),
    403: ("forbidden", "Not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    413: ("too-large", "Request body too large"),
    415: ("unsupported-media-type", "Unsupported media type"),
    416: ("range-not-satisfiable", "Range not satisfiable"),
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What was wrong and how to fix it",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
}


def install_handlers(app: FastAPI) -> None:
    """Respond to every error, of Shoestring or of the framework, with a problem document."""
    app.add_exception_handler(ShoestringError, _handle_domain_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_unexpected_error)


WHOLE_ID = (
    "Send the job's whole id, of 36 characters. "
    "GET /v1/jobs?filter=id~PART finds it by a part, filter=name=NAME by its name."
)


def problem_response(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    hint: str | None = None,
    retryable: bool = False,
    errors: Sequence[Problem] = (),
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
        "errors": [asdict(problem) for problem in errors],
    }
    return JSONResponse(fields | document, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def from_error(error: ShoestringError) -> JSONResponse:
    """Return the response for one of Shoestring's own errors."""
    status = STATUS[error.code]
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Retry-After": "1"} if error.retryable else {}
    errors = error.problems[:100] if isinstance(error, InvalidSpec | InvalidList) else ()
    return problem_response(
        status, error.code, error.title, error.message,
        hint=error.hint, retryable=error.retryable, errors=errors, headers=headers, **error.fields,
    )  # fmt: skip


def _handle_domain_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ShoestringError)
    return from_error(error)


def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    violations = error.errors()
    if any(violation["type"] == "json_invalid" for violation in violations):
        return problem_response(
            400, "malformed", TITLES[400][1], f"The body is not valid JSON: {violations[0]['ctx']['error']}."
        )
    if any(
        violation["loc"][:1] == ("path",) for violation in violations
    ):  # a malformed id gets the same answer as an unknown one
        of_job = any(violation["loc"] == ("path", "job_id") for violation in violations)
        detail = f"No resource exists at {request.url.path}."
        return problem_response(404, "not-found", TITLES[404][1], detail, hint=WHOLE_ID if of_job else None)
    errors = [
        Problem(_pointer(violation["loc"]), _message(request, violation), violation["type"])
        for violation in violations[:100]
    ]
    if error.body and any(violation["loc"] == ("body",) for violation in violations) and not _is_json(request):
        return problem_response(
            415, *TITLES[415], "Send the body as JSON, with the header Content-Type: application/json."
        )
    detail = "; ".join(f"{problem.pointer}: {problem.message}" for problem in errors[:5])
    return problem_response(422, "invalid-request", "Invalid request", detail, errors=errors)


def suggest_name(given: str, known: Sequence[str]) -> str:
    """Return a sentence with the known name nearest to an unknown one, or all known names if none is near."""
    near = difflib.get_close_matches(given[:64].lower(), known, n=1, cutoff=0.55)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known) or 'none'}."


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _message(request: Request, violation: dict[str, Any]) -> str:
    if violation["type"] == "extra_forbidden":
        return f"Unknown field. {suggest_name(str(violation['loc'][-1]), _body_fields(request))}"
    if violation["loc"] == ("body",):
        return "The body must be a JSON object."
    return str(violation["msg"])


def _body_fields(request: Request) -> list[str]:
    model = request.scope["route"].body_field.field_info.annotation
    return [name for kind in (model, *get_args(model)) for name in getattr(kind, "model_fields", ())]


def _handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, title = TITLES.get(error.status_code, ("invalid-request", "Invalid request"))
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"No resource exists at {request.url.path}."
    elif error.status_code == 405:
        detail = f"{request.url.path} does not allow {request.method}."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return problem_response(error.status_code, code, title, detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes with this path; the framework knows only of the first."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    methods = [
        method
        for method in ("GET", "POST", "PUT", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ] or ["GET"]  # a file, or the dashboard's page
    return [*methods, "HEAD"] if "GET" in methods else methods


def _handle_disconnect(_: Request, __: Exception) -> JSONResponse:
    return problem_response(
        400, "malformed", TITLES[400][1], "The connection closed before the whole body was received."
    )


def _handle_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    """Log the traceback with a request id that the user can quote."""
    request_id = uuid4().hex[:12]
    log.error("request %s failed: %s %s", request_id, request.method, request.url.path, exc_info=error)
    return problem_response(
        500, "internal", "Internal server error", "An internal error occurred.",
        hint=f"Try again. If it happens again, report request {request_id} to the operator.", request=request_id,
        headers=headers_of(request.url.path),  # this answer passes no middleware
    )  # fmt: skip


def _pointer(location: tuple[int | str, ...]) -> str:
    """('body', 'a', 0) → /a/0; ('query', 'limit') → query limit."""
    where, *rest = location
    return "/" + "/".join(map(str, rest)) if where == "body" else " ".join(map(str, location))
