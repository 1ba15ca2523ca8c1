# SPDX-License-Identifier: Apache-2.0
"""The application: its routes, its doors, and what runs beside them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from shoestring_api import (
    VERSION,
    agents,
    budgets,
    dashboard,
    doors,
    health,
    jobs,
    machines,
    objects,
    openapi,
    plans,
    problems,
    recipes,
    session,
    stream,
)
from shoestring_api.service import Service

MAX_BODY_BYTES = 1 << 20
STREAMED = ("/objects/", "/agent/v1/report")
"""Routes that read their bodies piece by piece, with limits of their own."""

ROOMS = (jobs, plans, budgets, recipes, session, machines, stream, agents, health, objects)


def create_app(service: Service | None = None) -> FastAPI:
    """The app of one process. Without a service it can't answer; that is enough to describe it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if service is None:
            raise RuntimeError("this app was made only to be described")
        async with service.running():
            yield

    app = FastAPIOffline(  # its page /docs fetches nothing from elsewhere
        title="Shoestring",
        version=VERSION,
        description="Train on spot GPUs, as a team, on a shoestring.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        responses=problems.RESPONSES,
        dependencies=[Depends(doors.check_query)],
        redoc_url=None,
        favicon_url="/icon.svg",
        generate_unique_id_function=_operation_id,
        lifespan=lifespan,
    )
    problems.install(app)
    for room in ROOMS:
        app.include_router(room.router)
    dashboard.serve(app)
    app.state.service = service
    if service is not None:
        app.add_middleware(doors.HostCheck, hosts=service.settings.hosts())
    app.add_middleware(doors.SizeCheck, limit=MAX_BODY_BYTES, streamed=STREAMED)
    app.add_middleware(doors.Timing)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name
