# SPDX-License-Identifier: Apache-2.0
"""Quotas of a provider's account: jobs that don't fit wait for them, are told so, and keep no others waiting."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

from shoestring_core import wording
from shoestring_core.decide.offers import Hardware, Offer, Quota
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot
from shoestring_core.decide.quotas import Product, account_quotas
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import SchedulingDecision, schedule_jobs
from shoestring_core.decide.start import Start, StartInputs, Wait
from shoestring_core.decide.timeouts import S, Timeouts

from tests.core.decide.recompute import recompute_start

NOW = 1_800_000_000 * S
SPOT_G, ON_DEMAND_G, SPOT_P = (Quota(name, vcpus, "the console") for name, vcpus in (("G", 8), ("on G", 4), ("P", 96)))
G = Offer(
    "cloud", "east", "east-1", "g.small", "spot", "0.4", "1", None, "test", False, Hardware(4, 16, "A10G", 1),
    quota=SPOT_G, fetched_at=NOW,
)  # fmt: skip
BIG = replace(G, type="g.big", price="0.7", hardware=Hardware(8, 32, "A10G", 1))
ON_DEMAND = replace(G, market="on_demand", price="1", quota=ON_DEMAND_G)
P = replace(G, type="p", price="3", on_demand_price="9", hardware=Hardware(96, 96, "A100", 8), quota=SPOT_P)
RENTED: Product = ("cloud", "east", "g.small", "spot")


def queued(number: int, nodes: int = 1, **required: object) -> QueuedJob:
    needed = Requirements(nodes, **{"spot": "only"} | required)
    return QueuedJob(UUID(int=number), needed, (UUID(int=100 + number), UUID(int=1), UUID(int=2)), 1, number)


def decide(*queue: QueuedJob, offers: tuple[Offer, ...] = (G,), rented: int = 0) -> dict[int, Start | Wait]:
    decided = schedule(*queue, offers=offers, rented=rented)
    return {one.job.int: one for one in [*decided.starts, *decided.waits]}


def schedule(*queue: QueuedJob, offers: tuple[Offer, ...], rented: int) -> SchedulingDecision:
    accounts = {account for job in queue for account in job.account_path}
    balances = {one: AccountBalance(one, str(one.int), None, 0, 0, 0) for one in accounts}
    products = {RENTED: rented} if rented else {}
    snapshot = QueueSnapshot(1, queue, balances, {"cloud": rented}, products=products)
    return schedule_jobs(snapshot, offers, NOW, {"cloud": Timeouts()})


def test_a_job_that_the_quota_never_covers_is_told_what_to_ask_for_and_keeps_no_other_waiting():
    decided = decide(queued(1, nodes=3), queued(2))
    assert decided[1].detail.code == "quota_below_need"
    assert decided[1].reason == "quota"
    assert wording.sentence(decided[1].detail) == (
        'Needs 12 vCPUs for 3 × g.small (spot), and the quota "G" of the account at cloud in east is 8. '
        "Ask for at least 12 at the console; the job starts automatically once it is granted."
    )
    assert isinstance(decided[2], Start)


def test_a_quota_of_nothing_leaves_the_other_market_where_the_job_takes_it():
    none = replace(G, quota=replace(SPOT_G, vcpus=0))
    assert decide(queued(1), offers=(none, ON_DEMAND))[1].detail.facts["vcpus"] == 0
    assert decide(queued(1, spot="prefer"), offers=(none, ON_DEMAND))[1].offer == ON_DEMAND


def test_of_jobs_that_share_a_quota_no_more_start_than_it_has_vcpus_for():
    decided = decide(queued(1), queued(2), queued(3), rented=0)
    assert [type(decided[number]) for number in (1, 2, 3)] == [Start, Start, Wait]
    assert wording.sentence(decided[3].detail) == (
        'Needs 4 vCPUs of the quota "G" of the account at cloud in east, 0 of 8 are free. It starts automatically when '
        "machines end."
    )
    assert isinstance(decide(queued(1), rented=1)[1], Start)
    assert isinstance(decide(queued(1), rented=2)[1], Wait)


def test_a_job_that_waits_for_a_quota_is_not_overtaken_there_and_keeps_no_other_quota_from_others():
    decided = decide(
        queued(1, nodes=2, type="g.small"), queued(2, type="g.small"), queued(3, type="p"), offers=(G, P), rented=1
    )
    assert [type(decided[number]) for number in (1, 2, 3)] == [Wait, Wait, Start]
    assert "4 of 8 are free; an earlier job waits for them too." in wording.sentence(decided[2].detail)


def test_where_a_quota_is_used_up_the_next_best_offer_of_another_is_taken():
    assert decide(queued(1, spot="prefer"), offers=(G, ON_DEMAND), rented=2)[1].offer == ON_DEMAND
    assert decide(queued(1), offers=(BIG, G), rented=1)[1].offer == G


def test_machines_in_other_regions_and_markets_do_not_count():
    for other in (replace(G, region="west"), ON_DEMAND):
        assert isinstance(decide(queued(1, spot="prefer"), offers=(other,), rented=2)[1], Start)


def test_a_decision_about_quotas_can_be_recomputed_from_what_was_stored():
    (start,) = schedule(queued(1), queued(2, nodes=2), offers=(G,), rented=1).starts
    stored = StartInputs.from_json(json.loads(json.dumps(start.inputs.as_json())))
    assert stored.vcpus_in_use == {"cloud/east/G": 4}
    assert recompute_start(stored) == start
    blocked = replace(stored, quotas_blocked=("cloud/east/G",))
    assert isinstance(recompute_start(blocked), Wait)


def test_quotas_matter_only_for_launches():
    none = replace(G, quota=replace(SPOT_G, vcpus=0))
    assert rank_offers([none], Requirements()).best == none
    assert rank_offers([none], Requirements(), NOW).best is None


def test_each_quota_is_told_once_by_its_smallest_machine():
    def told(vcpus: int) -> list[str]:
        offers = [replace(offer, quota=replace(SPOT_G, vcpus=vcpus)) for offer in (BIG, G, replace(G, zone="east-2"))]
        return [wording.sentence(quota) for quota in account_quotas([*offers, replace(G, quota=None)])]

    assert told(8) == ['cloud in east, quota "G": 8 vCPUs, at most 2 × g.small at once.']
    (none,) = told(0)
    assert none.startswith('cloud in east, quota "G": 0 vCPUs, so no machine can be launched: g.small needs 4.')
