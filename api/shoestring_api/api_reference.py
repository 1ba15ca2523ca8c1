# SPDX-License-Identifier: Apache-2.0
"""`/docs`: the OpenAPI document in Swagger UI, whose script and styles fastapi-offline brings along."""

from __future__ import annotations

import secrets

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from shoestring_api.response_headers import CONTENT_SECURITY_POLICY

ASSETS = "/static-offline-docs"
STYLE = "/docs.css"
CSS = """
.swagger-ui pre, .swagger-ui .highlight-code > .microlight {
  white-space: pre-wrap; overflow: visible; max-height: none;
}
.swagger-ui .info .title small { background: #495057 !important; }
.swagger-ui .info .title small pre { color: #fff; }
.swagger-ui .info a, .swagger-ui .url, .swagger-ui .link, .swagger-ui a.nostyle:not(.opblock a) { color: #17508f; }
.swagger-ui [class*="parameter__"], .swagger-ui [class*="prop-"], .swagger-ui [class*="response"] { color: #3b4151; }
.swagger-ui .required::after, .swagger-ui .parameter__name.required span { color: #b3261e; }
.swagger-ui .json-schema-2020-12-expand-deep-button { color: #3b4151; }
.swagger-ui .opblock .opblock-summary-method { background: #17508f !important; }
.swagger-ui .opblock-post .opblock-summary-method { background: #1c6a3a !important; }
.swagger-ui .opblock-put .opblock-summary-method { background: #7a4f00 !important; }
.swagger-ui .opblock-delete .opblock-summary-method { background: #b3261e !important; }
"""
"""What Swagger UI lacks for readers who use a keyboard or see little."""


def mount(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    def api_reference() -> HTMLResponse:
        """Return the page; a nonce allows its one inline script."""
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url="/icon.svg",
            swagger_ui_parameters={"deepLinking": False},  # links within buttons can't be reached by a keyboard
        )
        nonce = secrets.token_urlsafe(16)
        html = bytes(page.body).decode().replace("<script>", f'<script nonce="{nonce}">')
        style = f'<link rel="stylesheet" href="{STYLE}"></head>'
        html = html.replace("<html>", '<html lang="en">').replace("</head>", style)
        policy = CONTENT_SECURITY_POLICY.format(scripts=f" 'nonce-{nonce}'")
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get(STYLE, include_in_schema=False)
    def style() -> Response:
        return Response(CSS, media_type="text/css")
