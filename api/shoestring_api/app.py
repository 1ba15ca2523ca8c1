# SPDX-License-Identifier: Apache-2.0
"""The application: its routes, its doors, and what runs beside them."""

from __future__ import annotations

from fastapi import FastAPI

from shoestring_api import agents, budgets, health, jobs, machines, openapi, problems, recipes, session, stream

VERSION = "0.1.0"
MAX_BODY_BYTES = 1 << 20


def create_app() -> FastAPI:
    app = FastAPI(
        title="Shoestring",
        version=VERSION,
        description="Train on spot GPUs, as a team, on a shoestring.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        responses=problems.RESPONSES,
        max_body_size=MAX_BODY_BYTES,
        redoc_url=None,
        generate_unique_id_function=lambda route: f"{route.tags[0]}_{route.name}",
    )
    problems.install(app)
    for room in (jobs, budgets, recipes, session, machines, stream, agents, health):
        app.include_router(room.router)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app
