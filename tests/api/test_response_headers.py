# SPDX-License-Identifier: Apache-2.0
"""What browsers may do with an answer: run, frame, store and pass on."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shoestring_api import dashboard
from shoestring_core.store import queries

from tests.api.deployment import Deployment

pytestmark = pytest.mark.any_database

SCRIPT = b"console.log('a hashed file of the dashboard');\n" * 100


@pytest.fixture
def deployment(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A service whose dashboard is a page and a script."""
    static = tmp_path / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html>")
    (static / "assets" / "index-DQIGeEQd.js").write_bytes(SCRIPT)
    monkeypatch.setattr(dashboard, "STATIC_DIR", static)
    with Deployment(migrated_url, tmp_path) as deployment:
        yield deployment


def assert_protected(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_every_answer_says_what_browsers_may_do_with_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = deployment.submit()
    paths = [
        "/", "/login", f"/jobs/{job}", "/docs", "/openapi.json", "/assets/index-DQIGeEQd.js", "/assets/missing.js",
        "/v1/jobs", f"/v1/jobs/{job}/artifacts", "/v1/nothing", "/objects/a", "/healthz", "/readyz", "/metrics",
    ]  # fmt: skip
    for path in paths:
        assert_protected(deployment.member.get(path))
    assert_protected(deployment.nobody.get("/v1/jobs"))
    assert_protected(deployment.member.delete("/v1/jobs"))
    assert_protected(deployment.member.get("/v1/me", headers={"Host": "evil.example"}))
    monkeypatch.setattr(queries, "load_keys", lambda *_: 1 / 0)
    failed = deployment.member.get("/v1/keys")
    assert failed.status_code == 500
    assert_protected(failed)


def test_only_answers_of_the_api_are_kept_from_caches(deployment: Deployment) -> None:
    for path in ("/v1/jobs", "/v1/me", "/v1/nothing", "/v1/recipes"):
        assert deployment.member.get(path).headers["cache-control"] == "no-store", path
    for path in ("/", "/docs", "/openapi.json", "/healthz"):
        assert "no-store" not in deployment.member.get(path).headers.get("cache-control", ""), path


def test_hashed_assets_are_compressed_and_cached_for_a_year(deployment: Deployment) -> None:
    path = "/assets/index-DQIGeEQd.js"
    with deployment.nobody.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert "Accept-Encoding" in answer.headers["vary"]
    assert gzip.decompress(packed) == SCRIPT
    assert len(packed) < len(SCRIPT) / 5
    assert deployment.nobody.get(path, headers={"Accept-Encoding": "identity"}).content == SCRIPT
    missing = deployment.nobody.get("/assets/index-OLD.js", headers={"Accept": "text/html"})
    assert "immutable" not in missing.headers.get("cache-control", "")
    assert "immutable" not in deployment.nobody.get("/").headers.get("cache-control", "")


def test_the_script_of_the_api_reference_runs_by_a_nonce_of_its_own(deployment: Deployment) -> None:
    nonces = set()
    for _ in range(2):
        page = deployment.nobody.get("/docs")
        (nonce,) = re.findall(r'<script nonce="([^"]+)">', page.text)
        assert f"script-src 'self' 'nonce-{nonce}';" in page.headers["content-security-policy"]
        assert "<script>" not in page.text
        nonces.add(nonce)
    assert len(nonces) == 2


def test_behind_https_the_session_is_bound_to_the_host(migrated_url: str, tmp_path: Path) -> None:
    with Deployment(migrated_url, tmp_path, public_url="https://train.example") as deployment:
        signed_in = deployment.nobody.post("/v1/session", json={"key": deployment.keys[1]})
        name, _, attributes = signed_in.headers["set-cookie"].partition("=")
        assert name == f"__Host-shoestring_{deployment.port}"
        assert {"Secure", "Path=/", "HttpOnly"} <= {one.strip() for one in attributes.split(";")}
        assert "Domain" not in attributes
        cookie = {"Cookie": f"{name}={attributes.partition(';')[0]}"}
        assert deployment.client().get("/v1/me", headers=cookie).json()["user"] == "ben"
