# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, from which the dashboard's types are generated."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from shoestring_core import rest, wire

EXTRA_MODELS = (rest.ProblemDocument, rest.PointsMessage, rest.LogsMessage, wire.ReportRequest)
"""Models of error responses, of the stream and of hand-parsed bodies, which no route declares."""


def openapi_document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            license_info=app.license_info,
            routes=app.routes,
        )
        _, extra = models_json_schema(
            [(model, "serialization") for model in EXTRA_MODELS], ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"] = dict(sorted((extra["$defs"] | schema["components"]["schemas"]).items()))
        app.openapi_schema = schema
    return app.openapi_schema
