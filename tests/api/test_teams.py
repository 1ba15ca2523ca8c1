# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_core.store.tables import InvitationRow
from sqlalchemy import update

from tests.api.deployment import Deployment


@pytest.mark.any_database
def test_an_admin_makes_a_team_and_works_in_it_with_its_key(deployment: Deployment) -> None:
    made = deployment.admin.post("/v1/teams", json={"name": "robots"})
    assert (made.status_code, made.json()["team"]["role"], made.json()["key"]["name"]) == (
        201,
        "admin",
        "made with the team",
    )
    with deployment.client(made.json()["secret"]) as admin:
        assert admin.get("/v1/me").json()["team"] == "robots"
        assert {one["name"]: one["current"] for one in admin.get("/v1/teams").json()["teams"]} == {
            "robots": True, "vision": False,
        }  # fmt: skip
        limits = {one["kind"]: one["limit"] for one in admin.get("/v1/budgets").json()["budgets"]}
        assert limits["team"] == {"amount": "10.00", "currency": "USD"}
        assert admin.get("/v1/jobs").json()["jobs"] == []
    entries = deployment.admin.get("/v1/audit").json()["entries"]
    assert [one["action"] for one in entries if "robots" in one["subject"]] == ["create_team"]
    again = deployment.admin.post("/v1/teams", json={"name": "robots"})
    assert (again.status_code, "is taken" in again.json()["detail"]) == (422, True)
    assert deployment.member.post("/v1/teams", json={"name": "more"}).status_code == 403


@pytest.mark.any_database
def test_what_is_refused_about_people_changes_nothing_and_says_why(deployment: Deployment) -> None:
    admin = deployment.admin
    used, expired = (admin.post("/v1/invitations", json={"role": "member"}).json() for _ in range(2))
    taken = {"code": used["code"], "name": "dora"}
    shown = deployment.nobody.post("/v1/invitations:read", json={"code": used["code"]}).json()
    assert shown == {
        "team": "vision", "role": "member", "user": None, "made_by": "ada",
        "expires_at": used["invitation"]["expires_at"],
    }  # fmt: skip
    assert deployment.nobody.post("/v1/invitations:take", json=taken).status_code == 200
    late = update(InvitationRow).where(InvitationRow.id == UUID(expired["invitation"]["id"]))
    deployment.store.write(lambda db: db.execute(late.values(expires_at=db.now)))
    me = next(one["id"] for one in admin.get("/v1/members").json()["members"] if one["user"] == "ada")
    everything = ("/v1/members", "/v1/invitations", "/v1/budgets", "/v1/audit")
    before = [admin.get(path).json() for path in everything]
    long = "name\n" + "x" * 200_000
    refused = [
        (admin.delete(f"/v1/members/{me}"), 403, "only admin"),
        (admin.put(f"/v1/members/{me}", json={"role": "lead"}), 403, "only admin"),
        (deployment.nobody.post("/v1/invitations:take", json=taken | {"name": "eve"}), 409, "used"),
        (deployment.nobody.post("/v1/invitations:take", json={"code": expired["code"], "name": "eve"}), 409, "expired"),
        (deployment.nobody.post("/v1/invitations:read", json={"code": used["code"]}), 409, "used"),
        (deployment.nobody.post("/v1/invitations:read", json={"code": expired["code"]}), 409, "expired"),
        (deployment.nobody.post("/v1/invitations:read", json={"code": "sst_inv_nonsense"}), 401, "no invitation"),
        *[
            (admin.post("/v1/members:import", json={"csv": text}), 422, "")
            for text in ("", "name", "who\neve\n", "name,limit\neve,1\nfay,-1\n", "name\neve\neve\n", 'name\n"eve\n',
                         "name,role\neve,boss\n", "name,limit\neve,1e400\n", "name\neve,more\n", "name\nada\n", long)
        ],
        *[
            (admin.post("/v1/invitations", json={"role": "member", "limit": limit}), 422, "")
            for limit in ("-1", "nan", "1e400", "9999999999999")
        ],
    ]  # fmt: skip
    for answer, status, words in refused:
        assert answer.status_code == status, answer.text
        assert words in answer.text
        assert answer.json()["detail"]
    assert [admin.get(path).json() for path in everything] == before
