# SPDX-License-Identifier: Apache-2.0
"""Who starts and who waits, decided from values alone."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.offers import Offer, suitable
from shoestring_core.decide.schedule import Balance, Case, Snapshot, Start, Wait, Waiting, consider, plan, smallest_hold
from shoestring_core.decide.timeouts import S, Timeouts

NOW = 1_800_000_000 * S
TIMEOUTS = Timeouts(funding_lease=60 * S)
HOLD = money.cost_ceiling("0.526", 75 * S)  # one machine: 60 s funded and 15 s to end, at the on-demand price
ORG, TEAM_A, TEAM_B = UUID(int=1), UUID(int=2), UUID(int=3)


def offers(slots: int | None = 4) -> list[Offer]:
    return [
        Offer("local", "local", "", "cpu", "on_demand", "0.526", "0.526", slots, "test", True),
        Offer("local", "local", "", "cpu", "spot", "0.158", "0.526", slots, "test", True),
    ]


def waiting(number: int, nodes: int = 1, team: UUID = TEAM_A, **fields) -> Waiting:
    return Waiting(UUID(int=100 + number), nodes, "local", "prefer", (UUID(int=200 + number), team, ORG), 1, **fields)


def snapshot(*queue: Waiting, limits: dict[UUID, int] | None = None, taken: int = 0, overdraft: UUID | None = None):
    ids = {ORG, TEAM_A, TEAM_B} | {account for one in queue for account in one.path}
    balances = {
        one: Balance(one, f"account {one.int}", (limits or {}).get(one), 0, 0, int(one == overdraft)) for one in ids
    }
    return Snapshot(7, queue, balances, {"local": taken})


def decide(snap: Snapshot, slots: int | None = 4, now: int = NOW) -> dict[int, Start | Wait]:
    decided = plan(snap, offers(slots), now, TIMEOUTS)
    return {one.job.int - 100: one for one in [*decided.starts, *decided.waits]}


def test_the_first_hold_covers_the_lease_and_the_end_at_the_price_that_cannot_be_exceeded():
    (start,) = plan(snapshot(waiting(1, nodes=2)), offers(), NOW, TIMEOUTS).starts
    assert (start.hold, start.funded_until) == (HOLD, NOW + 60 * S)
    assert start.offer.market == "spot"
    assert smallest_hold(offers(), "local", "prefer", 2, TIMEOUTS) == 2 * HOLD


@pytest.mark.parametrize(("spot", "market"), [("only", "spot"), ("prefer", "spot"), ("never", "on_demand")])
def test_the_cheapest_offer_that_the_job_allows(spot, market):
    assert suitable(offers(), "local", spot).market == market
    assert suitable(offers(), "elsewhere", spot) is None


def test_jobs_start_in_order_while_there_are_slots():
    decided = decide(snapshot(waiting(1, 2), waiting(2, 2), waiting(3, 1)))
    assert isinstance(decided[1], Start)
    assert isinstance(decided[2], Start)
    assert decided[3].reason == "slots"
    assert "Number 3 in the queue" in decided[3].text


def test_nobody_overtakes_who_waits_for_slots():
    decided = decide(snapshot(waiting(1, 3), waiting(2, 1), taken=2))
    assert (decided[1].reason, decided[2].reason) == ("slots", "slots")
    assert str(UUID(int=101)) in decided[2].text


def test_a_job_that_can_never_fit_says_so_and_blocks_nobody():
    decided = decide(snapshot(waiting(1, 9), waiting(2, 1)))
    assert decided[1].reason == "capacity"
    assert "fewer nodes" in decided[1].text
    assert isinstance(decided[2], Start)


def test_two_jobs_race_for_money_that_covers_one():
    decided = decide(snapshot(waiting(1), waiting(2), limits={TEAM_A: HOLD + 1}))
    assert isinstance(decided[1], Start)
    assert decided[2].reason == "money"
    assert f"account 2 is ${money.to_decimal(HOLD - 1)} short" in decided[2].text
    assert "shoestring budget set" in decided[2].text


def test_who_waits_for_money_is_not_overtaken_from_the_same_account_but_from_others():
    limits = {TEAM_A: HOLD}
    decided = decide(snapshot(waiting(1, 2), waiting(2, 1), waiting(3, 1, TEAM_B), limits=limits))
    assert decided[1].reason == "money"
    assert decided[2].reason == "turn"
    assert str(UUID(int=101)) in decided[2].text
    assert isinstance(decided[3], Start)


def test_a_shortage_above_stops_all_below_it():
    decided = decide(snapshot(waiting(1, 2), waiting(2, 1, TEAM_B), limits={ORG: HOLD}))
    assert (decided[1].reason, decided[2].reason) == ("money", "turn")


def test_a_jobs_own_limit_is_nobody_elses_matter():
    decided = decide(snapshot(waiting(1), waiting(2), limits={UUID(int=201): 1}))
    assert decided[1].reason == "money"
    assert isinstance(decided[2], Start)


def test_nothing_starts_from_an_overdrawn_account():
    decided = decide(snapshot(waiting(1), overdraft=ORG))
    assert decided[1].reason == "money"
    assert "overdrawn" in decided[1].text


def test_a_job_keeps_its_place_while_its_earlier_machines_end():
    decided = decide(snapshot(waiting(1, ending=1), waiting(2)), slots=1)
    assert decided[1].reason == "ending"
    assert decided[2].reason == "slots"


def test_a_job_that_sits_out_a_delay_stands_in_nobodys_way():
    snap = snapshot(waiting(1, not_before=NOW + S, delay_text="Later."), waiting(2))
    assert decide(snap)[1].text == "Later."
    assert isinstance(decide(snap)[2], Start)
    assert isinstance(decide(snap, now=NOW + S)[1], Start)


def test_every_start_can_be_worked_out_again_from_what_is_stored_with_it():
    snap = snapshot(waiting(1, 2), waiting(2, 1, TEAM_B), waiting(3, 1), limits={ORG: 5 * HOLD, TEAM_A: 4 * HOLD})
    for start in plan(snap, offers(), NOW, TIMEOUTS).starts:
        stored = json.loads(json.dumps(start.case.as_json()))
        assert consider(Case.from_json(stored)) == start


def test_a_plan_never_holds_more_than_a_limit_nor_rents_more_than_the_slots():
    queue = [waiting(number, 1 + number % 3, TEAM_A if number % 2 else TEAM_B) for number in range(1, 40)]
    for limit in range(0, 12 * HOLD, HOLD // 2):
        for taken in range(5):
            decided = plan(
                snapshot(*queue, limits={ORG: limit, TEAM_A: limit // 2}, taken=taken), offers(), NOW, TIMEOUTS
            )
            assert sum(start.hold * start.nodes for start in decided.starts) <= limit
            assert sum(start.nodes for start in decided.starts) <= 4 - taken
            assert len(decided.starts) + len(decided.waits) == len(queue)
