# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent within and beyond the OpenAPI document, the answer is one that the document describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from shoestring_core.store.db import open_store

from tests.api.deployment import Deployment
from tests.servers import PATIENCE_S

DOCUMENT = Path(__file__).parents[2] / "web" / "openapi.json"
ELSEWHERE = ("/v1/stream", "/agent/v1/orders", "/v1/session", "/v1/keys/{key_id}")
"""A stream never ends, a held GET takes its time, and a fuzzer that has revoked its key finds no more."""
OPERATIONS = [
    (path, method)
    for path, operations in json.loads(DOCUMENT.read_text())["paths"].items()
    for method in operations
    if path not in ELSEWHERE
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    store = open_store(f"sqlite:///{folder / 'store.db'}")
    store.migrate()
    store.close()
    with Deployment(f"sqlite:///{folder / 'store.db'}", folder) as deployment:
        deployment.running()
        yield deployment


@pytest.fixture(scope="module")
def schema() -> Any:
    import schemathesis  # takes two seconds, of every process that only collects tests too

    return schemathesis.openapi.from_path(DOCUMENT)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_described(schema: Any, fuzzed: Deployment, path: str, method: str) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    described = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    key = {"Authorization": f"Bearer {fuzzed.keys[0]}"}

    @settings(
        max_examples=12,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        deadline=None,
    )
    @given(case=schema[path][method.upper()].as_strategy())
    def answers(case: Any) -> None:
        # The HTTP server itself refuses a request line of tens of kilobytes, in its own words.
        assume(sum(len(str(value)) for value in (case.query or {}).values()) < 8_000)
        case.call_and_validate(
            base_url=fuzzed.url, headers=key, checks=[not_a_server_error, *described], timeout=PATIENCE_S
        )

    answers()
