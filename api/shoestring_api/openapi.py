# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, from which the dashboard's types are generated: `python -m shoestring_api.openapi`."""

from __future__ import annotations

import json
import sys
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from shoestring_core import rest, wire

BESIDE_ROUTES = (rest.ProblemDocument, rest.PointsMessage, rest.LogsMessage, wire.ReportRequest)
"""Models that no route names: what errors and the stream carry."""


def document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            license_info=app.license_info,
            routes=app.routes,
        )
        _, beside = models_json_schema(
            [(model, "serialization") for model in BESIDE_ROUTES], ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"] = dict(sorted((beside["$defs"] | schema["components"]["schemas"]).items()))
        app.openapi_schema = schema
    return app.openapi_schema


if __name__ == "__main__":
    from shoestring_api.app import create_app

    json.dump(create_app().openapi(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
