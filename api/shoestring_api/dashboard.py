# SPDX-License-Identifier: Apache-2.0
"""Serve the built dashboard from the API's own origin, which its session cookie requires."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

STATIC_DIR = Path(__file__).parent / "static"

NOT_BUILT_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Shoestring</title>
<body>
<h1>Shoestring</h1>
<p>The service is running, but its dashboard is not built. Run <code>make setup</code> in the checkout, then reload.</p>
<p>API reference: <a href="/docs">/docs</a>.</p>
"""


def mount(app: FastAPI) -> None:
    """Serve the dashboard at every path without a route, or a page that explains how to build it."""
    if is_built():
        app.frontend("/", directory=str(STATIC_DIR), fallback="index.html")
    else:
        app.get("/", include_in_schema=False, tags=["dashboard"])(index_page)


def index_page() -> Response:
    """Return the dashboard's page, which routes by its URL."""
    return FileResponse(STATIC_DIR / "index.html") if is_built() else HTMLResponse(NOT_BUILT_PAGE)


def is_built() -> bool:
    return (STATIC_DIR / "index.html").is_file()
