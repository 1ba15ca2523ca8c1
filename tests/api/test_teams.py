# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

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
