# SPDX-License-Identifier: Apache-2.0
"""Create the FastAPI application: routers, middleware and error handlers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from shoestring_api import (
    VERSION,
    api_reference,
    dashboard,
    dependencies,
    middleware,
    openapi,
    problems,
    response_headers,
)
from shoestring_api.app_state import AppState
from shoestring_api.routes import (
    agents,
    artifacts,
    audit,
    auth,
    budget_requests,
    budgets,
    invitations,
    job_subresources,
    jobs,
    ledger_export,
    logs,
    machines,
    members,
    monitoring,
    objects,
    offers,
    queue,
    quotes,
    recipes,
    stream,
    waste,
)

MAX_BODY_BYTES = 1 << 20
STREAMED_PATHS = ("/objects/", "/agent/v1/report")
"""Routes that read their bodies in chunks and enforce limits of their own."""

ROUTERS = (
    jobs.router,
    job_subresources.router,
    logs.router,
    artifacts.router,
    quotes.router,
    queue.router,
    budgets.router,
    budget_requests.router,
    ledger_export.router,
    waste.router,
    recipes.router,
    offers.router,
    auth.router,
    members.router,
    audit.router,
    invitations.router,
    machines.router,
    stream.router,
    agents.router,
    monitoring.router,
    objects.router,
)


def create_app(state: AppState | None = None) -> FastAPI:
    """Return the application of one process. Without a state it can't serve requests, only describe its routes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if state is None:
            raise RuntimeError("an app without a state can only be described")
        async with state.running():
            yield

    app = FastAPIOffline(
        title="Shoestring",
        version=VERSION,
        description="Train on spot GPUs, as a team, on a shoestring.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        responses=problems.RESPONSES,
        dependencies=[Depends(dependencies.reject_unknown_query_parameters)],
        docs_url=None,  # api_reference serves it, under the policy for scripts
        redoc_url=None,
        static_url=api_reference.ASSETS,
        generate_unique_id_function=_operation_id,
        lifespan=lifespan,
    )
    problems.install_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    api_reference.mount(app)
    dashboard.mount(app)
    app.state.app_state = state
    if state is not None:
        app.add_middleware(middleware.AllowedHosts, hosts=state.settings.hosts())
    app.add_middleware(middleware.BodySizeLimit, limit=MAX_BODY_BYTES, streamed=STREAMED_PATHS)
    app.add_middleware(response_headers.Compression)
    app.add_middleware(middleware.RequestTiming)
    app.add_middleware(middleware.HeadAsGet)
    app.add_middleware(response_headers.ResponseHeaders)
    app.openapi = lambda: openapi.openapi_document(app)  # type: ignore[method-assign]
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
