# SPDX-License-Identifier: Apache-2.0
"""`/docs`: the OpenAPI document in Swagger UI, whose script and styles fastapi-offline brings along."""

from __future__ import annotations

import secrets

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from shoestring_api.response_headers import CONTENT_SECURITY_POLICY

ASSETS = "/static-offline-docs"


def mount(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    def api_reference() -> HTMLResponse:
        """Return the page; a nonce allows the one script that stands in it."""
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url="/icon.svg",
        )
        nonce = secrets.token_urlsafe(16)
        html = bytes(page.body).decode().replace("<script>", f'<script nonce="{nonce}">')
        policy = CONTENT_SECURITY_POLICY.format(scripts=f" 'nonce-{nonce}'")
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})
