# SPDX-License-Identifier: Apache-2.0
"""`shoestring offers`: the table, and what stands below it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from shoestring import Client, cli
from shoestring.cli import offers
from typer.testing import CliRunner

SPOT: dict[str, Any] = {
    "provider": "mine", "region": "r1", "zone": "r1a", "type": "small", "market": "spot", "gpu": "L4", "gpus": 2,
    "price_per_hour": {"amount": "0.30"}, "on_demand_per_hour": {"amount": "0.80"}, "price_source": "the provider",
    "fetched_at": "2026-01-01T00:00:00Z", "simulated": False, "available": True, "gpu_memory_mib": 24576, "vcpus": 4,
    "memory_mib": 16384, "interruption": "5-10%",
}  # fmt: skip
LISTED = SPOT | {"provider": "other", "price_source": "a list of 2026-01-19", "available": False, "fetched_at": None}
LEFT_OUT = {
    "provider": "other", "types": ["old", "older"], "regions": [],
    "reason": {"code": "c", "facts": {}, "text": "Too old."},
}  # fmt: skip

QUOTA = {"code": "account_quota", "facts": {}, "text": "The quota is 0."}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[httpx.URL]:
    """What the commands of the test ask for."""
    requests: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.url)
        found = [] if request.url.params.get("gpu") == "none" else [SPOT, LISTED]
        none = None if found else {"code": "no_offer", "facts": {}, "text": "No such GPU."}
        answered = {"offers": found, "no_offer": none, "not_offered": [LEFT_OUT], "quotas": [QUOTA]}
        return httpx.Response(200, json=answered)

    client = Client("http://service", "sst_pat_x", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(offers, "open_client", lambda _: client)
    return requests


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["offers", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_machines_are_listed_with_gpu_and_prices_and_what_is_left_out_with_its_reason(asked: list[httpx.URL]) -> None:
    lines = [" ".join(line.split()) for line in run().splitlines()]
    assert lines[3] == "small mine r1a 2 × L4 24 GiB 4 16 GiB spot $0.30 $0.80 5-10%"
    assert lines[0] == "other: no worker serves it, so no job can run there, and its prices are not live."
    assert "a list of 2026-01-19" in lines
    assert "other: not old, older. Too old." in lines
    assert QUOTA["text"] in lines
    assert lines[lines.index("mine: its prices come from:") + 1] == "the provider"


def test_options_become_the_query_and_json_is_what_the_service_says(asked: list[httpx.URL]) -> None:
    printed = json.loads(run("--gpu", "L4", "--region", "r1", "--json"))
    assert dict(asked[0].params) == {"gpu": "L4", "region": "r1"}
    assert [offer["available"] for offer in printed["offers"]] == [True, False]


def test_where_there_is_no_such_machine_the_command_says_how_to_see_all(asked: list[httpx.URL]) -> None:
    assert "No such GPU. List all: shoestring offers" in run("--gpu", "none")
