# SPDX-License-Identifier: Apache-2.0
"""The built dashboard, served by the API itself, so that its cookie and its requests have one origin."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

STATIC = Path(__file__).parent / "static"

UNBUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Shoestring</title>
<body style="font-family: system-ui; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>Shoestring</h1>
<p>The service runs. Its dashboard was not built: type <code>make setup</code> in the checkout, then reload.</p>
<p>The API is described at <a href="/docs">/docs</a>.</p>
"""


def serve(app: FastAPI) -> None:
    """Serve the dashboard at every address that no route has; without one, a page that says how to build it."""
    if built():
        app.frontend("/", directory=str(STATIC), fallback="index.html")
    else:
        app.get("/", include_in_schema=False, tags=["dashboard"])(page)


def page() -> Response:
    """The dashboard's page, which finds its way by the address."""
    return FileResponse(STATIC / "index.html") if built() else HTMLResponse(UNBUILT)


def built() -> bool:
    return (STATIC / "index.html").is_file()
