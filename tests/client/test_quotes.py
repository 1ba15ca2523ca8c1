# SPDX-License-Identifier: Apache-2.0
"""`shoestring quote`: its tables, and what it says of budget and price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from shoestring import Client, cli
from shoestring.cli import quotes
from typer.testing import CliRunner

from tests.client.test_offers import SPOT


def dollars(amount: str) -> dict[str, str]:
    return {"amount": amount}


UNKNOWN: dict[str, Any] = {
    "nodes": 4, "offer": SPOT, "basis": "unknown", "scaled_from": [], "runs": 0, "time_s": None, "cost": None,
    "hold": dollars("0.20"), "max_cost": None, "left_after_hold": dollars("-0.05"), "left_after_end": None,
    "interruptions": {"source": "advisor"}, "infeasible_reason": "slots",
}  # fmt: skip
MEASURED = UNKNOWN | {
    "nodes": 2, "basis": "measured", "runs": 3, "time_s": {"low": 540, "expected": 600, "high": 720},
    "cost": {"low": dollars("1.801234"), "expected": dollars("2.00"), "high": dollars("2.40")},
    "max_cost": dollars("3.00"), "left_after_hold": dollars("9.90"), "left_after_end": dollars("8.00"),
    "interruptions": {"source": "measured", "probability": 0.25, "losses": 5, "machine_hours": 10.0},
    "infeasible_reason": None,
}  # fmt: skip
QUOTE = {
    "at": "2026-01-01T00:00:00Z", "outcome": "requested", "nodes": 2, "type": None, "why_not_faster": None,
    "summary": {"code": "c", "facts": {}, "text": "Two machines."}, "no_offer": None, "offers": [MEASURED],
    "quotas": [{"code": "account_quota", "facts": {}, "text": "The quota is 0."}],
    "machine_counts": [MEASURED, UNKNOWN], "time_limit_s": None, "sufficient_time_limit_s": None, "runs": 3,
}  # fmt: skip


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands of the test send."""
    sent: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=QUOTE)

    client = Client("http://service", "sst_pat_x", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(quotes, "open_client", lambda _: client)
    return sent


def run(*arguments: str) -> list[str]:
    done = CliRunner().invoke(cli.app, ["quote", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return [" ".join(line.split()) for line in done.output.splitlines()]


def test_bands_basis_odds_budget_and_price_are_printed_and_what_is_unknown_is_called_so(bodies: list[Any]) -> None:
    lines = run("digits/quickstart")
    measured = (
        "2 × small 2 × L4 mine r1a spot 10m 9m to 12m $2.00 $1.80 to $2.40 measured, 3 runs 25 % (measured) $0.30"
    )
    assert lines.count(measured) == 2  # as an offer, and to be compared
    assert (
        "4 × small 2 × L4 mine r1a spot unknown unknown unknown unknown unknown: never measured 5-10% a month $0.30 "
        "too few slots" in lines
    )
    assert "To start, $0.20 is held, which leaves $9.90 of the tightest budget." in lines
    assert "After the end, $8.00 of the tightest budget is expected to be left." in lines
    assert "Its limits allow at most $3.00." in lines
    assert "The quota is 0." in lines
    assert "Price: $0.30 per machine and hour (the provider, as of 2026-01-01 00:00:00 UTC)." in lines


def test_checkpoints_that_outlast_a_notice_are_said(bodies: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"code": "checkpoint_outlasts_notice", "facts": {}, "text": "A checkpoint takes too long."}
    monkeypatch.setitem(QUOTE, "offers", [MEASURED | {"outlasts_notice": late}])
    assert "A checkpoint takes too long." in run("digits/quickstart")


def test_a_budget_that_is_short_is_said_with_what_it_lacks(bodies: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUOTE, "offers", [UNKNOWN])
    assert "To start, $0.20 is held: the budget lacks $0.05 for it, so the job would wait." in run("digits/quickstart")


def test_a_file_and_numbers_of_machines_are_sent(bodies: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("recipe: digits/quickstart\n")
    printed = run(str(file), "--machines", "1,2,4", "--json")
    assert bodies == [{"spec": "recipe: digits/quickstart\n", "machine_counts": [1, 2, 4]}]
    assert json.loads(printed[0])["offers"][0]["time_s"]["high"] == 720


def test_calibration_is_a_table_by_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "level": 0.8, "compared": 4, "time_within": 3, "cost_within": 2,
        "summary": {"code": "c", "facts": {}, "text": "Of 4 finished jobs."},
        "recipes": [
            {"recipe": "a/b", "compared": 4, "time_within": 3, "cost_within": 2, "not_compared": 1},
            {"recipe": "a/c", "compared": 0, "time_within": 0, "cost_within": 0, "not_compared": 2},
        ],
    }  # fmt: skip
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=held))
    monkeypatch.setattr(quotes, "open_client", lambda _: Client("http://service", "sst_pat_x", transport=transport))
    lines = run("--calibration")
    assert lines == [
        "Of 4 finished jobs.", "RECIPE JOBS TIME WITHIN COST WITHIN NOT COMPARED", "a/b 4 75 % 50 % 1",
        "a/c 0 unknown unknown 2",
    ]  # fmt: skip
    assert CliRunner().invoke(cli.app, ["quote", "--calibration", "digits/quickstart"]).exit_code == 2
