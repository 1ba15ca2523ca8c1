# SPDX-License-Identifier: Apache-2.0
"""Who gets in, who sees what, and what is refused before anything is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from shoestring_core.store import identity
from shoestring_core.store.tables import EventRow
from shoestring_core.store.transactions import Write
from sqlalchemy import select

from tests.api.deployment import SPEC, Deployment

pytestmark = pytest.mark.any_database

READS = [
    "/v1/jobs/{job}", "/v1/jobs/{job}/attempts", "/v1/jobs/{job}/events", "/v1/jobs/{job}/metrics",
    "/v1/jobs/{job}/logs", "/v1/jobs/{job}/cost", "/v1/jobs/{job}/artifacts", "/v1/jobs/{job}/artifacts/model.json",
    "/v1/budgets/{budget}", "/v1/budgets/{budget}/forecast",
    "/v1/stream?topics=job:{job}",
]  # fmt: skip
WRITES = [
    ("POST", "/v1/jobs/{job}:stop"), ("POST", "/v1/jobs/{job}:retry"), ("POST", "/v1/jobs/{job}:resume"),
    ("POST", "/v1/machines/{machine}:preempt"), ("PUT", "/v1/budgets/{budget}"), ("DELETE", "/v1/keys/{key}"),
    ("PUT", "/v1/budgets/{budget}/weight"), ("POST", "/v1/budgets/{budget}:grant"),
    ("POST", "/v1/budgets/{budget}:transfer"), ("POST", "/v1/budget-requests/{request}:approve"),
    ("POST", "/v1/budget-requests/{request}:deny"), ("PUT", "/v1/budgets/{budget}/soft-lines"),
    ("PUT", "/v1/budgets/{budget}/period"), ("PUT", "/v1/budgets/{budget}/guaranteed-rate"),
    ("PUT", "/v1/budgets/{budget}/concurrency"),
]  # fmt: skip
OPEN = [
    "/v1/budget-requests",
    "/v1/ledger",
    "/v1/waste",
    "/v1/jobs",
    "/v1/budgets",
    "/v1/recipes",
    "/v1/recipes/digits/quickstart",
    "/v1/me",
    "/v1/keys",
    "/v1/offers",
]


def test_no_key_is_401_everywhere(deployment: Deployment) -> None:
    names = _names(deployment)
    for path in [*READS, *OPEN]:
        answer = deployment.nobody.get(path.format(**names))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
        assert answer.headers["www-authenticate"] == "Bearer"
    for method, path in WRITES:
        answer = deployment.nobody.request(method, path.format(**names), json=_body(method, path))
        assert answer.status_code == 401, path


def test_another_teams_things_do_not_exist(deployment: Deployment) -> None:
    names = _names(deployment)
    for path in READS:
        answer = deployment.stranger.get(path.format(**names))
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), path
    for method, path in WRITES:
        answer = deployment.stranger.request(method, path.format(**names), json=_body(method, path))
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), path
    assert deployment.stranger.get("/v1/jobs").json()["jobs"] == []


def _body(method: str, path: str) -> dict[str, object] | None:
    if path.endswith((":grant", ":transfer")):
        return {"amount": "1"} | ({"to": str(uuid4())} if path.endswith("transfer") else {})
    if method != "PUT":
        return None
    if path.endswith("/period"):
        return {"kind": "month"}
    if path.endswith("/concurrency"):
        return {"max_jobs": 1, "max_gpus": None}
    if path.endswith("/guaranteed-rate"):
        return {"rate": "2"}
    if path.endswith("/soft-lines"):
        return {"percents": [50]}
    return {"weight": 2} if path.endswith("/weight") else {"limit": "1"}


@pytest.mark.parametrize(
    "key",
    ["Bearer", "Bearer nonsense", "Bearer sst_pat_" + "a" * 36, "Bearer sst_pat_é", "Basic YTpi", "sst_pat_"],
)
def test_a_wrong_key_is_401_and_says_so(deployment: Deployment, key: str) -> None:
    answer = deployment.nobody.get("/v1/me", headers={"Authorization": key.encode()})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.json()["hint"]


def test_expired_and_revoked_keys_are_401(deployment: Deployment) -> None:
    def expired(db: Write) -> str:
        ben = identity.ensure_member(db, "lab", "vision", "ben")
        return identity.create_key(db, "pat", ben, db.now - 1)[1]

    with deployment.client(deployment.store.write(expired)) as late:
        answer = late.get("/v1/me")
        assert (answer.status_code, "expired" in answer.json()["detail"]) == (401, True)
    made = deployment.member.post("/v1/keys", json={}).json()
    with deployment.client(made["secret"]) as fresh:
        assert fresh.get("/v1/me").json()["user"] == "ben"
        assert deployment.member.delete(f"/v1/keys/{made['key']['id']}").status_code == 204
        assert "revoked" in fresh.get("/v1/me").json()["detail"]


def test_members_may_not_what_admins_may(deployment: Deployment) -> None:
    names = _names(deployment)
    put = deployment.member.put(f"/v1/budgets/{names['budget']}", json={"limit": "5"})
    assert (put.status_code, put.json()["code"]) == (403, "forbidden")
    assert deployment.member.post(f"/v1/machines/{names['machine']}:preempt").status_code == 403
    (admins_key,) = deployment.admin.get("/v1/keys").json()["keys"]
    assert deployment.member.delete(f"/v1/keys/{admins_key['id']}").status_code == 404
    assert deployment.admin.put(f"/v1/budgets/{names['budget']}", json={"limit": "5"}).status_code == 200


def test_a_browser_signs_in_by_key_and_needs_its_token_to_write(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.url, trust_env=False) as browser:
        signed_in = browser.post("/v1/session", json={"key": deployment.keys[1]})
        cookie = signed_in.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert browser.get("/v1/me").json() == signed_in.json()
        refused = browser.post("/v1/jobs", json={"spec": SPEC})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        token = {"X-CSRF-Token": signed_in.json()["csrf"]}
        assert browser.post("/v1/jobs", json={"spec": SPEC}, headers=token).status_code == 201
        assert browser.delete("/v1/session", headers=token).status_code == 204
        browser.cookies.set(f"shoestring_{deployment.port}", cookie.partition("=")[2].partition(";")[0])
        assert browser.get("/v1/me").status_code == 401


def test_a_login_code_works_once_and_looking_at_the_link_uses_nothing_up(deployment: Deployment) -> None:
    code = deployment.member.post("/v1/login-codes").json()["code"]
    with httpx.Client(base_url=deployment.url, trust_env=False) as browser:
        assert browser.get("/login", params={"code": code}).status_code == 200
        assert browser.post("/v1/session", json={"code": code}).status_code == 200
        assert browser.get("/v1/me").json()["user"] == "ben"
    again = deployment.nobody.post("/v1/session", json={"code": code})
    assert (again.status_code, again.json()["code"]) == (401, "unauthenticated")
    assert deployment.nobody.post("/v1/session", json={}).status_code == 422


def test_a_foreign_host_header_is_refused_on_loopback(deployment: Deployment) -> None:
    answer = deployment.member.get("/v1/me", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (400, "wrong-host")
    for host in (f"localhost:{deployment.port}", "127.0.0.1", f"[::1]:{deployment.port}"):
        assert deployment.member.get("/v1/me", headers={"Host": host}).status_code == 200


MALFORMED = {
    "no JSON": (b"{", 400),
    "no UTF-8": (b'{"spec": "\xff"}', 400),
    "a number of ten thousand digits": (b'{"spec": {"recipe": ' + b"9" * 10_000 + b"}}", 422),
    "ten thousand levels": (b'{"spec": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
    "another shape": (b"[]", 422),
    "an unknown member": (b'{"spec": {}, "dryrun": true}', 422),
    "a key given twice": (b'{"spec": {"recipe": "digits/quickstart", "limits": {"cost": 1, "cost": 2}}}', 400),
    "nothing": (b"", 422),
    "too much": (b'{"spec": "' + b"a" * 2_000_000 + b'"}', 413),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_bodies_get_a_clear_answer(deployment: Deployment, what: str) -> None:
    body, status = MALFORMED[what]
    answer = deployment.member.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"]
    assert problem["detail"]
    assert "Traceback" not in answer.text
    assert len(answer.content) < 5_000


@pytest.mark.parametrize(
    ("body", "expected_detail"),
    [
        (b'{"limit": "1", "limit": "1000"}', "'limit' twice"),
        (b'{"limt": "1"}', "Did you mean limit?"),
        (b'{"limit": "\xff"}', "not valid UTF-8"),
        (b'{"limit": ' + b"[" * 10_000, "nested too deeply"),
        (b"", "must be a JSON object"),
    ],
)
def test_a_body_that_is_refused_says_why(deployment: Deployment, body: bytes, expected_detail: str) -> None:
    budget = deployment.admin.get("/v1/budgets").json()["budgets"][-1]
    headers = {"Content-Type": "application/json"}
    answer = deployment.admin.put(f"/v1/budgets/{budget['id']}", content=body, headers=headers)
    assert 400 <= answer.status_code <= 422
    assert expected_detail in answer.json()["detail"]
    assert deployment.admin.get(f"/v1/budgets/{budget['id']}").json() == budget


@pytest.mark.parametrize("kind", ["application/yaml", "text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_no_json_is_told_so(deployment: Deployment, kind: str) -> None:
    answer = deployment.member.post("/v1/jobs", content=b"recipe: digits/quickstart", headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert "Content-Type: application/json" in answer.json()["detail"]


def test_a_misspelt_query_is_refused_with_what_was_meant(deployment: Deployment) -> None:
    answer = deployment.member.get("/v1/jobs", params={"fliter": "state=running"})
    assert (answer.status_code, answer.json()["hint"]) == (422, "Did you mean filter?")
    assert deployment.member.get("/v1/stream", params={"topic": "jobs"}).json()["hint"] == "Did you mean topics?"
    assert deployment.member.get("/v1/me", params={"x": "1"}).json()["hint"] == "Known: none."


def test_a_body_that_never_says_its_size_is_cut_off(deployment: Deployment) -> None:
    pieces = (b" " * 100_000 for _ in range(30))
    answer = deployment.member.post("/v1/jobs", content=pieces, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


def test_mistakes_in_a_spec_are_listed_with_what_was_meant(deployment: Deployment) -> None:
    spec = {"recipe": "digits/quickstrat", "resorces": {}, "params": {}, "limits": {"cost": -1}}
    answer = deployment.member.post("/v1/jobs", json={"spec": spec})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-spec")
    found = {problem["pointer"]: problem.get("suggestion") for problem in answer.json()["errors"]}
    assert found["/recipe"] == "digits/quickstart"
    assert found["/resorces"] == "resources"
    assert "/limits/cost" in found


def test_missing_and_forbidden_data_look_the_same_outside_the_data_roots(
    deployment: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for image in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"):
        (tmp_path / "data" / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "images" / image).touch()
    (tmp_path / "data" / "shards").mkdir()
    for number in range(10):
        (tmp_path / "data" / "shards" / f"a-{number}.tar").write_bytes(b"a shard")
    (tmp_path / "data" / "way_out").symlink_to(tmp_path / "elsewhere")

    (tmp_path / "data" / "link.tar").symlink_to(tmp_path / "elsewhere" / "a.tar")
    (tmp_path / "elsewhere" / "a.tar").touch()

    def detail(folder: str, **data: str) -> str:
        spec = {"recipe": "imagefolder/resnet9", "data": {"train": str(tmp_path / folder), **data}}
        answer = deployment.member.post("/v1/jobs", json={"spec": spec})
        return "" if answer.status_code == 201 else str(answer.json()["detail"]).replace(folder, "")

    assert detail("data/images") == detail("data/shards/a-{0..9}.tar", format="webdataset") == ""
    assert detail("elsewhere") == detail("nowhere") == detail("data/way_out") == detail("data/../elsewhere") != ""
    for shards in ("elsewhere/a-{0..9}.tar", "data/link.tar"):
        assert detail(shards, format="webdataset") == detail("nowhere")
    assert "There is no folder" in detail("data/nowhere") == detail(f"data/{'x' * 300}") != detail("nowhere")
    assert detail("data/nowhere/a-{0..9}.tar", format="webdataset") == detail("data/nowhere")


def test_what_is_not_there_and_what_is_not_allowed_are_problems_too(deployment: Deployment) -> None:
    assert deployment.member.get("/v1/nothing").json()["code"] == "not-found"
    job = str(deployment.submit())
    short = deployment.member.get(f"/v1/jobs/{job[-8:]}")  # as the command line and the dashboard show it
    assert (short.status_code, "/v1/jobs?filter=id~PART" in short.json()["hint"]) == (404, True)
    assert deployment.member.get(f"/v1/jobs?filter=id~{job[-8:]}").json()["jobs"][0]["id"] == job
    assert deployment.member.get("/v1/machines/not-an-id").json().get("hint") is None
    wrong = deployment.member.delete("/v1/jobs")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method-not-allowed")
    assert deployment.member.get("/v1/jobs", params={"limit": 0}).json()["code"] == "invalid-request"
    assert deployment.member.get("/v1/jobs", params={"cursor": "x"}).json()["code"] == "invalid-request"
    assert deployment.member.get("/v1/jobs", params={"filter": "stat=queued"}).status_code == 422


def test_a_budget_is_changed_only_by_who_saw_it(deployment: Deployment) -> None:
    budget = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    path, etag = f"/v1/budgets/{budget['id']}", {"If-Match": budget["etag"]}
    assert deployment.admin.put(path, json={"limit": "7.50"}, headers=etag).json()["limit"]["amount"] == "7.50"
    late = deployment.admin.put(path, json={"limit": "8"}, headers=etag)
    assert (late.status_code, late.json()["code"]) == (412, "precondition-failed")
    for limit in ("-1", "1e3", "nan", "", "12345678901234567890"):
        assert deployment.admin.put(path, json={"limit": limit}).status_code == 422, limit
    assert deployment.admin.put(path, json={"limit": "none"}).json()["limit"] is None


def test_an_admin_sets_the_weight_of_the_team_and_of_its_members(deployment: Deployment) -> None:
    budgets = {one["kind"]: one for one in deployment.member.get("/v1/budgets").json()["budgets"]}
    assert (budgets["team"]["weight"], budgets["team"]["recent"]["amount"]) == (1, "0.00")
    assert (budgets["org"]["weight"], budgets["org"]["recent"]) == (None, None)
    for kind, weight in (("team", 3), ("member", 1000)):
        path = f"/v1/budgets/{budgets[kind]['id']}/weight"
        assert deployment.member.put(path, json={"weight": weight}).status_code == 403
        assert deployment.stranger.put(path, json={"weight": weight}).status_code == 404
        answer = deployment.admin.put(path, json={"weight": weight, "reason": "a grant"})
        assert (answer.status_code, answer.json()["weight"]) == (200, weight)
    organization = deployment.admin.put(f"/v1/budgets/{budgets['org']['id']}/weight", json={"weight": 2})
    assert (organization.status_code, organization.json()["code"]) == (422, "invalid-request")


@pytest.mark.parametrize("weight", ["0", "-1", "1001", "1.5", "1e400", "NaN", "Infinity", "null", "true", '"2"', "[2]"])
def test_a_weight_that_is_no_whole_number_in_bounds_is_refused_and_changes_nothing(
    deployment: Deployment, weight: str
) -> None:
    team = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    body, headers = f'{{"weight": {weight}}}', {"Content-Type": "application/json"}
    answer = deployment.admin.put(f"/v1/budgets/{team['id']}/weight", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert deployment.admin.get(f"/v1/budgets/{team['id']}").json() == team


def test_an_admin_guarantees_the_team_a_rate_and_nothing_else_has_one(deployment: Deployment) -> None:
    budgets = {one["kind"]: one for one in deployment.member.get("/v1/budgets").json()["budgets"]}
    assert budgets["team"]["guaranteed_rate"]["amount"] == "0.00"
    assert budgets["member"]["guaranteed_rate"] is None
    path = f"/v1/budgets/{budgets['team']['id']}/guaranteed-rate"
    for wrong in ("-1", "nan", "1e3", "", "0.0000001", "12345678901"):
        answer = deployment.admin.put(path, json={"rate": wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), wrong
    answer = deployment.admin.put(path, json={"rate": "2.50", "reason": "two machines"})
    assert answer.json()["guaranteed_rate"]["amount"] == "2.50"
    with deployment.store.read() as db:
        data = db.sql.scalars(select(EventRow.data).where(EventRow.kind == "guaranteed_rate")).first()
    assert data == {"account": budgets["team"]["id"], "rate": "2.50", "before": "0.00"}
    member = deployment.admin.put(f"/v1/budgets/{budgets['member']['id']}/guaranteed-rate", json={"rate": "1"})
    assert (member.status_code, member.json()["code"]) == (422, "invalid-request")


def test_an_admin_caps_what_runs_of_the_team_or_a_member_at_once_and_bad_caps_change_nothing(
    deployment: Deployment,
) -> None:
    deployment.running()
    budgets = {one["kind"]: one for one in deployment.member.get("/v1/budgets").json()["budgets"]}
    assert budgets["team"]["concurrency"] is None
    path = f"/v1/budgets/{budgets['team']['id']}/concurrency"
    answer = deployment.admin.put(path, json={"max_jobs": 4, "max_gpus": None, "reason": "a class"})
    assert answer.json()["concurrency"] == {"jobs": 1, "max_jobs": 4, "gpus": 0, "max_gpus": None}
    headers = {"Content-Type": "application/json"}
    for wrong in ("-1", "1000001", "1.5", "1e400", "NaN", "true", '"2"', "[2]"):
        for field, other in (("max_jobs", "max_gpus"), ("max_gpus", "max_jobs")):
            body = f'{{"{field}": {wrong}, "{other}": 2}}'
            assert deployment.admin.put(path, content=body, headers=headers).status_code in (400, 422), body
    assert deployment.admin.put(path, json={"max_jobs": 2}).status_code == 422, "what isn't said is not guessed"
    assert deployment.member.get(f"/v1/budgets/{budgets['team']['id']}").json() == answer.json()
    assert deployment.member.put(path, json={"max_jobs": 9, "max_gpus": None}).status_code == 403
    own = deployment.admin.put(
        f"/v1/budgets/{budgets['member']['id']}/concurrency", json={"max_jobs": 0, "max_gpus": 8}
    )
    assert own.json()["concurrency"]["max_gpus"] == 8
    org = deployment.admin.put(f"/v1/budgets/{budgets['org']['id']}/concurrency", json={"max_jobs": 1, "max_gpus": 1})
    assert (org.status_code, org.json()["code"]) == (422, "invalid-request")


def test_a_jobs_cost_names_the_budgets_that_its_money_comes_from(deployment: Deployment) -> None:
    job, _ = deployment.running()
    budgets = deployment.member.get(f"/v1/jobs/{job}/cost").json()["budgets"]
    assert [one["kind"] for one in budgets] == ["job", "member", "team", "org"]
    own = deployment.admin.put(f"/v1/budgets/{budgets[0]['id']}", json={"limit": "0.75"})
    assert (own.status_code, own.json()["limit"]["amount"]) == (200, "0.75")


def test_a_job_that_no_limit_allows_is_refused_and_one_that_waits_says_why(deployment: Deployment) -> None:
    budget = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    deployment.admin.put(f"/v1/budgets/{budget['id']}", json={"limit": "0.001"})
    answer = deployment.member.post("/v1/jobs", json={"spec": SPEC})
    assert (answer.status_code, answer.json()["code"]) == (409, "budget-exceeded")
    assert answer.json()["hint"]


def test_the_services_parts_are_reported(deployment: Deployment) -> None:
    assert deployment.nobody.get("/healthz").json() == {"status": "ok"}
    ready = deployment.nobody.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["database"]) == (200, "ok")
    assert "start one" in ready.json()["parts"]["worker"]
    assert deployment.nobody.get("/openapi.json").json()["info"]["title"] == "Shoestring"


def test_the_page_that_describes_the_api_needs_nothing_from_elsewhere(deployment: Deployment) -> None:
    page = deployment.nobody.get("/docs")
    assert page.status_code == 200
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {Path(file).suffix for file in files} == {".js", ".css", ".svg"}
    for file in files:
        assert file.startswith("/"), file
        if file != "/icon.svg":  # the dashboard's, if that was built
            assert deployment.nobody.get(file).status_code == 200, file


def test_the_committed_openapi_document_is_this_services(deployment: Deployment) -> None:
    committed = json.loads((Path(__file__).parents[2] / "web" / "openapi.json").read_text(encoding="utf-8"))
    assert deployment.nobody.get("/openapi.json").json() == committed


def _names(deployment: Deployment) -> dict[str, str]:
    job, (agent,) = deployment.running()
    (key,) = deployment.member.get("/v1/keys").json()["keys"]
    budgets = deployment.admin.get("/v1/budgets").json()["budgets"]
    team = next(one["id"] for one in budgets if one["kind"] == "team")
    deployment.admin.put(f"/v1/budgets/{team}", json={"limit": "100"})
    request = deployment.member.post("/v1/budget-requests", json={"amount": "1", "why": "seeds"}).json()["id"]
    return {
        "job": str(job),
        "machine": str(agent.machine),
        "key": key["id"],
        "budget": team,
        "request": request,
        "other": str(uuid4()),
    }
