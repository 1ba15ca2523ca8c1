# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent within and beyond the OpenAPI document, the answer is one that the document describes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
from hypothesis import HealthCheck, Phase, assume, given, settings
from shoestring_core.store.db import open_store

from tests.api.deployment import SPEC, Agent, Deployment
from tests.servers import PATIENCE_S

DOCUMENT = Path(__file__).parents[2] / "web" / "openapi.json"
EXAMPLES = 12
NOT_FINITE = {
    "name": "train/loss", "steps": [1, 2, 3], "times": [1e9] * 3, "values": ["NaN", "-Infinity", "Infinity"],
}  # fmt: skip
OPERATIONS = [
    (path, method) for path, operations in json.loads(DOCUMENT.read_text())["paths"].items() for method in operations
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Agent]]:
    """A service with a job whose loss is no number, and the agent of its machine."""
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    store = open_store(f"sqlite:///{folder / 'store.db'}")
    store.migrate()
    store.close()
    with Deployment(f"sqlite:///{folder / 'store.db'}", folder) as deployment:
        _, (agent,) = deployment.running()
        agent.report(batch=agent.batch(points=[NOT_FINITE]))
        yield deployment, agent


@pytest.fixture
def examples() -> int:
    """How many requests each operation gets."""
    return int(os.environ.get("SHOESTRING_FUZZ_EXAMPLES", EXAMPLES))


@pytest.fixture(scope="module")
def schema() -> Any:
    import schemathesis  # takes two seconds, of every process that only collects tests too

    return schemathesis.openapi.from_path(DOCUMENT)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_described(
    schema: Any, fuzzed: tuple[Deployment, Agent], examples: int, path: str, method: str
) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    described = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    deployment, agent = fuzzed
    headers = agent.headers if path.startswith("/agent/") else {"Authorization": f"Bearer {deployment.keys[0]}"}

    @settings(
        max_examples=examples,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=examples == EXAMPLES,
        deadline=None,
    )
    @given(case=schema[path][method.upper()].as_strategy())
    def answers(case: Any) -> None:
        # The HTTP server itself refuses a request line of tens of kilobytes, in its own words.
        assume(sum(len(str(value)) for value in (case.query or {}).values()) < 8_000)
        if path == "/v1/stream":
            assert_described_until_the_first_event(case, deployment, headers)
            return
        case.call_and_validate(
            base_url=deployment.url, headers=headers, checks=[not_a_server_error, *described], timeout=PATIENCE_S
        )

    answers()


def assert_described_until_the_first_event(case: Any, deployment: Deployment, headers: dict[str, str]) -> None:
    """A stream has no end, so only its beginning is read."""
    request = case.as_transport_kwargs(base_url=deployment.url, headers=headers)
    with requests.request(**request, stream=True, timeout=PATIENCE_S) as answer:
        if answer.status_code == 200:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert next(answer.iter_lines()) == b": connected"
        else:
            assert answer.status_code < 500
            assert answer.headers["content-type"] == "application/problem+json"


def test_values_that_are_not_finite_are_described_as_they_are_sent(fuzzed: tuple[Deployment, Agent]) -> None:
    deployment, agent = fuzzed
    document = json.loads(DOCUMENT.read_text())
    for path, model in ((f"/v1/jobs/{agent.job}", "Job"), (f"/v1/jobs/{agent.job}/metrics", "Metrics")):
        answer = deployment.member.get(path).json()
        assert "Infinity" in json.dumps(answer)
        schema = {"$ref": f"#/components/schemas/{model}", "components": document["components"]}
        jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/keys", {"expires_in_days": True}), ("/v1/keys", {"expires_in_days": "1"}),
        ("/v1/keys", {"expires_in_days": 1.0}), ("/v1/jobs", {"spec": SPEC, "dry_run": 1}),
        ("/v1/jobs", {"spec": SPEC, "dry_run": "yes"}), ("/v1/machines/{machine}:preempt", {"notice_s": True}),
        ("/v1/machines/{machine}:preempt", {"notice_s": "1"}),
    ],
)  # fmt: skip
def test_nothing_in_a_body_is_converted(fuzzed: tuple[Deployment, Agent], path: str, body: dict[str, Any]) -> None:
    deployment, agent = fuzzed
    answer = deployment.admin.post(path.format(machine=agent.machine), json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text


@pytest.mark.parametrize("batch", [{"seq": True}, {"generation": "1"}, {"points": [{**NOT_FINITE, "steps": [True]}]}])
def test_nothing_in_a_report_is_converted(fuzzed: tuple[Deployment, Agent], batch: dict[str, Any]) -> None:
    _, agent = fuzzed
    answer = agent.post(json.dumps({"batch": {"seq": 10**6, "generation": 1} | batch}).encode())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text


@pytest.mark.parametrize("reason", ["x" * 501, "\ud800"])
def test_a_reason_that_is_too_long_or_no_text_is_refused_and_changes_nothing(
    fuzzed: tuple[Deployment, Agent], reason: str
) -> None:
    deployment, _ = fuzzed
    budgets = {one["id"]: one for one in deployment.admin.get("/v1/budgets").json()["budgets"]}
    for path, body in (
        ("", {"limit": "7.00"}), (":grant", {"amount": "1.00"}), ("/weight", {"weight": 2}),
        ("/guaranteed-rate", {"rate": "1.00"}), ("/concurrency", {"max_jobs": 1, "max_gpus": 1}),
        ("/period", {"kind": "month"}), ("/soft-lines", {"percents": [50]}),
    ):  # fmt: skip
        answer = deployment.admin.request(
            "POST" if path.startswith(":") else "PUT", f"/v1/budgets/{next(iter(budgets))}{path}",
            content=json.dumps(body | {"reason": reason}), headers={"content-type": "application/json"},
        )  # fmt: skip
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/reason"]
    assert {one["id"]: one for one in deployment.admin.get("/v1/budgets").json()["budgets"]} == budgets


def test_each_text_and_list_of_a_body_has_a_bound() -> None:
    document = json.loads(DOCUMENT.read_text())

    def unbounded(schema: dict[str, Any], at: str) -> Iterator[str]:
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if schema.get("type") == "string" and not {"maxLength", "enum", "const", "format", "pattern"} & set(schema):
            yield at
        if schema.get("type") == "array" and "maxItems" not in schema:
            yield at
        inner = {str(number): one for number, one in enumerate(schema.get("anyOf", []))} | schema.get("properties", {})
        for name, one in (inner | ({"items": schema["items"]} if "items" in schema else {})).items():
            yield from unbounded(one, at if name.isdigit() else f"{at}/{name}")

    found = {
        at
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if not path.startswith("/agent/")  # whose bodies have a bound of their own
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for at in unbounded(content.get("schema", {}), path)
    }
    assert found == {"/v1/jobs/spec", "/v1/quotes/spec"}  # as a document of 256 KiB


def test_a_method_that_a_path_lacks_is_answered_with_those_that_it_has(fuzzed: tuple[Deployment, Agent]) -> None:
    deployment, _ = fuzzed
    methods: dict[str, set[str]] = {}
    for path, method in OPERATIONS:
        methods.setdefault(path, set()).add(method.upper())
    for path, known in methods.items():
        answer = deployment.admin.request("PATCH", path.replace("{", "").replace("}", ""))
        assert answer.status_code == 405, path
        assert set(answer.headers["allow"].split(", ")) >= known | ({"HEAD"} if "GET" in known else set()), path
    assert deployment.admin.delete("/v1/jobs").headers["allow"] == "GET, POST, HEAD"


def test_head_is_answered_as_get_without_the_body(fuzzed: tuple[Deployment, Agent]) -> None:
    deployment, agent = fuzzed
    path_parameters = {"{job_id}": str(agent.job), "{name}": "digits/quickstart"}
    pages = ["/", "/docs", "/openapi.json", "/v1/nothing"]
    for path in [*pages, *(path for path, method in OPERATIONS if method == "get" and not path.startswith("/agent/"))]:
        for parameter, value in path_parameters.items():
            path = path.replace(parameter, value)
        head = deployment.admin.head(path)
        assert head.content == b""
        if path != "/v1/stream":
            got = deployment.admin.get(path)
            for name in ("content-type", "cache-control", "etag"):
                assert head.headers.get(name) == got.headers.get(name), path
            assert head.status_code == got.status_code, path
    assert deployment.admin.head("/v1/stream").headers["content-type"].startswith("text/event-stream")
