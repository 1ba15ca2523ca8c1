# SPDX-License-Identifier: Apache-2.0
"""What a job has cost, and what a team has spent without result."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from shoestring_core.rest.attempts import Machine
from shoestring_core.rest.base import Cost, Money, Reason, Resource
from shoestring_core.rest.budgets import Budget
from shoestring_core.rest.quotes import KeptQuote


class Transfer(Resource):
    at: datetime
    kind: str
    amount: Money
    debit_account: str
    credit_account: str
    machine: UUID | None = None
    line: str | None = None
    actor: str
    reason: Reason


class Energy(Resource):
    """Energy that the devices of a job's machines used, by their own counters."""

    joules: float
    kwh: float
    of: list[Literal["gpu", "cpu"]]
    """Devices that were measured; other parts of the machine are not included."""


class CostReport(Resource):
    cost: Cost
    machines: list[Machine]
    transfers: list[Transfer]
    budgets: list[Budget]
    """Budgets that pay for it: the job's own first, the organization's last. Empty until a hold is placed."""
    energy: Energy | None = None
    """None if no machine could measure it."""
    quote: KeptQuote | None = None
    """None: no run said what it would take when it was submitted."""


class Waste(Resource):
    cause: Literal["set_up", "idle", "lost_steps", "failed_launch"]
    """set_up: before the first step, and each time that ranks start again; idle: in no generation after that;
    lost_steps: training after the checkpoint that was resumed from; failed_launch: machines that made no step."""
    cost: Money


class SplitCost(Resource):
    """A cost and its parts: cost = training + wasted, and wasted is the sum of its causes."""

    cost: Money
    training: Money
    """Training that was kept."""
    wasted: Money
    causes: list[Waste]


class JobWaste(Resource):
    job: UUID
    name: str
    cost: SplitCost


class WasteReport(Resource):
    """What the machines that were made since then cost by now."""

    since: datetime
    total: SplitCost
    jobs: list[JobWaste]
    """Those that wasted the most, the first ten."""
