# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent within and beyond the OpenAPI document, the answer is one that the document describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from shoestring_core.store.db import open_store

from tests.api.deployment import Deployment

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    store = open_store(f"sqlite:///{folder / 'store.db'}")
    store.migrate()
    store.close()
    with Deployment(f"sqlite:///{folder / 'store.db'}", folder) as deployment:
        deployment.running()
        yield deployment


# A stream never ends, a held GET takes its time, and a fuzzer that has revoked its key finds no more.
schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "web" / "openapi.json").exclude(
    path=["/v1/stream", "/agent/v1/orders", "/v1/session", "/v1/keys/{key_id}"]
)


@schema.parametrize()
@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    deadline=None,
)
def test_every_answer_is_described(case: Any, fuzzed: Deployment) -> None:
    # The HTTP server itself refuses a request line of tens of kilobytes, in its own words.
    assume(sum(len(str(value)) for value in (case.query or {}).values()) < 8_000)
    key = {"Authorization": f"Bearer {fuzzed.keys[0]}"}
    case.call_and_validate(base_url=fuzzed.url, headers=key, checks=CHECKS, timeout=20)
