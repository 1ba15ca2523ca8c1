# SPDX-License-Identifier: Apache-2.0
"""Budgets over REST: grants, transfers and requests for more."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from shoestring_api.routes import ledger_export as export_route
from shoestring_core.decide.billing import Line
from shoestring_core.store import identity, ledger
from shoestring_core.store.ledger import export
from shoestring_core.store.transactions import Write
from shoestring_core.wording.bills import NeverRan

from tests.api.deployment import Deployment

pytestmark = pytest.mark.any_database


def test_an_admin_grants_dollars_once_for_each_key(deployment: Deployment) -> None:
    path, before = team_budget(deployment, "10.00")
    key = {"Idempotency-Key": f"grant {before['etag']}"}
    for _ in range(2):
        answer = deployment.admin.post(f"{path}:grant", json={"amount": "2.50", "reason": "sweep"}, headers=key)
        assert (answer.status_code, answer.json()["limit"]["amount"]) == (200, "12.50")
        assert answer.headers["location"] == path
    assert deployment.admin.get(path).json()["limit"]["amount"] == "12.50"
    other = deployment.admin.post(f"{path}:grant", json={"amount": "3"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-mismatch")
    assert deployment.member.post(f"{path}:grant", json={"amount": "1"}).status_code == 403


def test_an_admin_sets_soft_lines_and_sees_which_are_reached(deployment: Deployment) -> None:
    path, before = team_budget(deployment, "10.00")
    assert [line["percent"] for line in before["soft_lines"]] == [50, 80, 90, 100]
    answer = deployment.admin.put(f"{path}/soft-lines", json={"percents": [75, 33, 75], "reason": "careful"})
    assert (answer.status_code, answer.json()["soft_lines"]) == (
        200,
        [
            {"percent": 33, "at": {"amount": "3.30", "currency": "USD"}, "reached": False},
            {"percent": 75, "at": {"amount": "7.50", "currency": "USD"}, "reached": False},
        ],
    )
    for wrong in ([0], [101], [1.5], ["50"], [True], list(range(1, 22)), None):
        refused = deployment.admin.put(f"{path}/soft-lines", json={"percents": wrong})
        assert refused.status_code == 422, wrong
    assert deployment.member.put(f"{path}/soft-lines", json={"percents": [1]}).status_code == 403
    assert [line["percent"] for line in deployment.admin.get(path).json()["soft_lines"]] == [33, 75]


def test_an_admin_makes_a_budget_monthly_and_ends_another_with_a_term(deployment: Deployment) -> None:
    path, before = team_budget(deployment, "10.00")
    assert before["period"] is None
    month = {"kind": "month", "time_zone": "Asia/Kathmandu", "rollover": "unspent", "rollover_cap": "2.50"}
    answer = deployment.admin.put(f"{path}/period", json=month)
    period = answer.json()["period"]
    assert (answer.status_code, period["amount"]["amount"], period["rollover_cap"]["amount"]) == (200, "10.00", "2.50")
    assert period["ends"].endswith("-01 00:00 Asia/Kathmandu")
    assert period["ends_at"].endswith("T18:15:00Z")
    wrong = [
        {"kind": "week"}, {"kind": "month", "time_zone": "Mars/Olympus"}, {"kind": "month", "time_zone": "../../etc"},
        {"kind": "term"}, {"kind": "term", "until": "2020-01-01"}, {"kind": "term", "until": "9999-12-31"},
        {"kind": "month", "until": "2030-01-01"}, {"kind": "month", "rollover_cap": "1"},
        {"kind": "month", "rollover": "unspent", "rollover_cap": "-1"},
        {"kind": "month", "rollover": "unspent", "rollover_cap": "1e400"},
        {"kind": "month", "time_zone": "\0"}, {"kind": "month", "time_zone": ""},
        {"kind": "month", "starts": "2020-01-01"}, {"kind": "month", "starts": "9999-12-31"},
        {"kind": "one_off", "starts": "2031-01-01"}, {"kind": "month", "starts": "soon"},
        {"kind": "term", "starts": "2031-02-01", "until": "2031-01-31"}, {"kind": "term", "starts": "2031-02-01"},
    ]  # fmt: skip
    for body in wrong:
        refused = deployment.admin.put(f"{path}/period", json=body)
        assert refused.status_code == 422, body
    assert deployment.admin.get(path).json()["period"] == period
    assert deployment.member.put(f"{path}/period", json={"kind": "one_off"}).status_code == 403
    term = deployment.admin.put(f"{path}/period", json={"kind": "term", "until": "2031-03-31"}).json()["period"]
    assert (term["kind"], term["ends"], term["begins"]) == ("term", "2031-04-01 00:00 UTC", None)
    later = {"kind": "term", "starts": "2031-02-01", "until": "2031-03-31", "time_zone": "Europe/Berlin"}
    term = deployment.admin.put(f"{path}/period", json=later).json()["period"]
    assert [term["begins"], term["ends"]] == ["2031-02-01 00:00 Europe/Berlin", "2031-04-01 00:00 Europe/Berlin"]
    assert (term["starts_at"], term["ended"]) == ("2031-01-31T23:00:00Z", False)
    month = deployment.admin.put(f"{path}/period", json={"kind": "month", "starts": "2031-02-10"}).json()["period"]
    assert [month["begins"], month["ends"]] == ["2031-02-10 00:00 UTC", "2031-03-01 00:00 UTC"]
    assert deployment.admin.put(f"{path}/period", json={"kind": "one_off"}).json()["period"] is None


def test_an_admin_moves_what_one_member_has_left_to_another(deployment: Deployment) -> None:
    ann, ben = two_members(deployment)
    move = {"to": ben, "amount": "4.00"}
    for left in ("6.00", "2.00"):
        answer = deployment.admin.post(f"/v1/budgets/{ann}:transfer", json=move)
        assert (answer.status_code, answer.json()["id"], answer.json()["left"]["amount"]) == (200, ann, left)
    refused = deployment.admin.post(f"/v1/budgets/{ann}:transfer", json=move).json()
    assert (refused["code"], refused["reason"], refused["left"]) == ("budget-unmovable", "less_left", "2.00")
    before = deployment.admin.get("/v1/budgets").json()
    itself = deployment.admin.post(f"/v1/budgets/{ann}:transfer", json=move | {"to": ann, "amount": "0.50"}).json()
    assert (itself["code"], itself["reason"]) == ("budget-unmovable", "transfer_to_itself")
    assert deployment.admin.get("/v1/budgets").json() == before
    assert deployment.admin.get(f"/v1/budgets/{ben}").json()["limit"]["amount"] == "18.00"
    assert deployment.member.post(f"/v1/budgets/{ann}:transfer", json=move).status_code == 403


def test_a_member_asks_and_an_admin_approves(deployment: Deployment) -> None:
    path, _ = team_budget(deployment, "10.00")
    typed = "three \x1b[2Jmore\u202e seeds"  # nothing that changes how the text around it is shown
    asked = deployment.member.post("/v1/budget-requests", json={"amount": "5.00", "why": typed})
    assert (asked.status_code, asked.json()["state"], asked.json()["user"]) == (201, "open", "ben")
    mine = f"/v1/budget-requests/{asked.json()['id']}"
    (seen,) = deployment.admin.get("/v1/budget-requests").json()["requests"]
    assert (seen["why"], seen["effect"]["code"]) == ("three more seeds", "grant_effect")
    assert deployment.member.post(f"{mine}:approve").status_code == 403
    for _ in range(2):
        approved = deployment.admin.post(f"{mine}:approve", json={"note": "good luck"}).json()
        assert (approved["state"], approved["decided_by"], approved["note"]) == ("approved", "ada", "good luck")
    assert deployment.admin.get(path).json()["limit"]["amount"] == "15.00"
    denied = deployment.admin.post(f"{mine}:deny").json()
    assert (denied["code"], denied["reason"]) == ("invalid-state", "budget_request_decided_before")


def test_a_lead_gives_dollars_to_others_and_none_to_themselves(deployment: Deployment) -> None:
    team_budget(deployment, "50.00")
    ben, cleo = (f"/v1/budgets/{one}" for one in two_members(deployment))
    make_lead(deployment, "ben")
    lead = deployment.member
    given = lead.post(f"{cleo}:grant", json={"amount": "1.00"})
    assert (given.status_code, given.json()["limit"]["amount"]) == (200, "11.00")
    gave = lead.post(f"{ben}:transfer", json={"amount": "2.00", "to": cleo.rpartition("/")[2]})
    assert (gave.status_code, gave.json()["limit"]["amount"]) == (200, "8.00")
    refused = [
        lead.post(f"{ben}:grant", json={"amount": "1.00"}),
        lead.post(f"{cleo}:transfer", json={"amount": "1.00", "to": ben.rpartition("/")[2]}),
        lead.put(ben, json={"limit": "9.00"}),
        lead.put(ben, json={"limit": "none"}),
        lead.put(f"{ben}/period", json={"kind": "month"}),
    ]
    assert [(one.status_code, one.json()["detail"]) for one in refused] == [
        (403, "A lead gives no dollars to their own budget.")
    ] * 5
    assert lead.put(ben, json={"limit": "7.00"}).status_code == 200
    assert deployment.admin.get(ben).json()["limit"]["amount"] == "7.00"


def test_a_leads_own_request_somebody_else_approves(deployment: Deployment) -> None:
    team_budget(deployment, "50.00")
    two_members(deployment)
    make_lead(deployment, "ben")
    make_lead(deployment, "cleo")
    lead, other = deployment.member, deployment.client(key_of(deployment, "cleo"))
    with other:
        asked = [lead.post("/v1/budget-requests", json={"amount": "5.00", "why": "more"}).json() for _ in range(2)]
        first, second = (f"/v1/budget-requests/{one['id']}" for one in asked)
        assert [one["approvable"] for one in asked] == [False, False]
        refused = lead.post(f"{first}:approve")
        assert (refused.status_code, refused.json()["hint"][:13]) == (403, "Ask for them:")
        assert {one["approvable"] for one in other.get("/v1/budget-requests").json()["requests"]} == {True}
        assert other.post(f"{first}:approve").json()["state"] == "approved"
        assert lead.post(f"{second}:deny").json()["state"] == "denied"  # taken back
        own = deployment.admin.post("/v1/budget-requests", json={"amount": "5.00", "why": "more"}).json()
        assert (own["owner"], own["approvable"]) == ("team vision", True)
        seen = {one["id"]: one["approvable"] for one in other.get("/v1/budget-requests").json()["requests"]}
        assert seen[own["id"]] is False  # the team's: an admin approves it
        assert deployment.admin.post(f"/v1/budget-requests/{own['id']}:approve").json()["state"] == "approved"


@pytest.mark.parametrize(
    "body", [{"amount": "5"}, {"amount": "5", "why": ""}, {"amount": "nan", "why": "x"}, {"why": "x"}]
)
def test_a_request_without_an_amount_or_a_sentence_is_refused(deployment: Deployment, body: dict[str, str]) -> None:
    team_budget(deployment, "10.00")
    assert deployment.member.post("/v1/budget-requests", json=body).status_code == 422
    assert deployment.admin.get("/v1/budget-requests").json()["requests"] == []


NO_MONEY = (
    '"-1"', '"0"', '"1e3"', '"nan"', '"Infinity"', '""', '"0.0000001"', '"12345678901234567890"', '"none"', "-1", "NaN",
    "1e400", "-Infinity", "true", "null", "[5]",
)  # fmt: skip
"""As JSON. Of limits and rates 0 means something, and so does none."""


def test_an_amount_that_is_no_money_is_refused_and_changes_nothing(deployment: Deployment) -> None:
    path, _ = team_budget(deployment, "10.00")
    ann, ben = two_members(deployment)
    paths = ("/v1/budgets", "/v1/budget-requests")
    before = [deployment.admin.get(one).json() for one in paths]
    every: list[tuple[str, str, str, dict[str, str]]] = [
        ("POST", f"{path}:grant", "amount", {}),
        ("POST", f"/v1/budgets/{ann}:transfer", "amount", {"to": ben}),
        ("POST", "/v1/budget-requests", "amount", {"why": "more seeds"}),
        ("PUT", path, "limit", {}),
        ("PUT", f"{path}/guaranteed-rate", "rate", {}),
        ("PUT", f"{path}/period", "rollover_cap", {"kind": "month", "rollover": "unspent"}),
    ]
    meaning = {"limit": ('"0"', '"none"'), "rate": ('"0"',), "rollover_cap": ('"0"', "null")}
    for amount in NO_MONEY:
        for method, to, name, others in every:
            if amount in meaning.get(name, ()):
                continue
            body = json.dumps({**others, name: "AMOUNT"}).replace('"AMOUNT"', amount)
            answer = deployment.admin.request(method, to, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 409, 422), (to, body, answer.text)
            assert answer.json()["detail"], (to, body)
    assert [deployment.admin.get(one).json() for one in paths] == before


def team_budget(deployment: Deployment, limit: str) -> tuple[str, dict[str, Any]]:
    team = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    path = f"/v1/budgets/{team['id']}"
    return path, deployment.admin.put(path, json={"limit": limit}).json()


def make_lead(deployment: Deployment, name: str) -> None:
    users = {one["user"]: one["id"] for one in deployment.admin.get("/v1/members").json()["members"]}
    assert deployment.admin.put(f"/v1/members/{users[name]}", json={"role": "lead"}).status_code == 200


def key_of(deployment: Deployment, name: str) -> str:
    def make(db: Write) -> str:
        return identity.create_key(db, "pat", identity.ensure_member(db, "lab", "vision", name), None)[1]

    return deployment.store.write(make)


def two_members(deployment: Deployment) -> list[str]:
    """The budgets of two members, each of $10.00."""

    def find(db: Write) -> list[str]:
        people = [identity.ensure_member(db, "lab", "vision", name) for name in ("ben", "cleo")]
        return [str(ledger.ensure_member_accounts(db, one.team, one.user)[0].id) for one in people]

    members = deployment.store.write(find)
    for one in members:
        assert deployment.admin.put(f"/v1/budgets/{one}", json={"limit": "10.00"}).status_code == 200
    return members


def test_every_line_is_exported_and_none_of_another_team(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE", 2)
    path, _ = team_budget(deployment, "10.00")
    for number in range(4):
        deployment.admin.post(f"{path}:grant", json={"amount": "1.00", "reason": f"=cmd({number})"})
    job, (agent,) = deployment.running()
    lines = [Line(f"line {number}", 1000 + number, NeverRan()) for number in range(5)]
    deployment.store.write(lambda db: ledger.settle(db, agent.machine, lines, final=False))
    deployment.store.write(lambda db: ledger.settle(db, agent.machine, lines[:4], final=False))
    exported = deployment.member.get("/v1/ledger?format=json").json()
    assert [one["amount"] for one in exported if one["kind"] == "limit granted"] == ["1.00"] * 4
    costs = [one for one in exported if one["job"] == str(job) and not one["kind"].startswith("limit")]
    assert len(costs) == 6
    spent = deployment.member.get(f"/v1/jobs/{job}/cost").json()["budgets"][0]["posted"]["amount"]
    assert sum(Decimal(one["amount"]) for one in costs) == Decimal(spent)
    rows = list(csv.DictReader(io.StringIO(deployment.member.get("/v1/ledger").text)))
    assert [row | {"reason": ""} for row in rows] == [one | {"reason": ""} for one in exported]
    assert not [row for row in rows for name in export_route.TEXTS if row[name].startswith(export_route.FORMULA)]
    other = deployment.stranger.get("/v1/ledger?format=json").json()
    assert all(str(job) != one["job"] and "team vision" not in one["account"] for one in other)
    assert deployment.member.get("/v1/ledger?format=xml").status_code == 422


def test_text_that_a_spreadsheet_would_compute_is_quoted() -> None:
    """Amounts may be negative, and stay numbers."""
    assert export_route._cell("actor", "=1+1") == "'=1+1"
    assert export_route._cell("actor", "\x1b[2J=1+1") == "'=1+1"
    assert export_route._cell("amount", "-1.00") == "-1.00"
