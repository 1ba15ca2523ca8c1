# SPDX-License-Identifier: Apache-2.0
"""Inputs of a quote: what the choice of machines depends on, budgets, refusals, how long spot machines lasted, and what
earlier runs needed to store a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select

from shoestring_core.decide.notices import StoredCheckpoint
from shoestring_core.decide.predictions import SpotHistory
from shoestring_core.decide.quotes import Balance, QuoteInputs
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.sizing import SizingInputs
from shoestring_core.spec import JobSpec
from shoestring_core.store import ledger
from shoestring_core.store.fleet.launches import load_refusals
from shoestring_core.store.tables import AccountRow, CheckpointRow, MachineRow, MemberRow
from shoestring_core.store.transactions import Read

MAX_MACHINES = 500
"""Of this service's newest machines, whose interruptions are counted."""

MAX_CHECKPOINTS = 50
"""Of earlier runs of the same work, whose size and time to store are looked at."""

SPOT_HISTORY = timedelta(days=30)
"""Older ones say nothing of today."""


def load_quote_inputs(
    db: Read,
    paying: Iterable[AccountRow],
    spec: JobSpec,
    sizing: SizingInputs,
    chosen_type: str | None,
    machine_counts: Iterable[int] = (),
) -> QuoteInputs:
    """Inputs of a quote for a spec with its number of machines.

    paying       the accounts that pay for the job, the member's first
    chosen_type  the type of machine that was chosen for it
    """
    return QuoteInputs(
        sizing=sizing,
        requirements=Requirements.of(spec.resources, chosen_type, spec.reserved_time, spec.limits.rate),
        machine_counts=tuple(machine_counts),
        cost_limit=spec.limits.cost,
        balances=_load_balances(db, list(paying)),
        refusals=load_refusals(db),
        spot_histories=load_spot_histories(db),
        now=db.now,
        checkpoints=load_stored_checkpoints(db, {measurement.job for measurement in sizing.measurements}),
    )


def load_stored_checkpoints(db: Read, jobs: Collection[UUID]) -> tuple[StoredCheckpoint, ...]:
    """The newest of these jobs' checkpoints, with the machines that stored them; not their final ones."""
    if not jobs:
        return ()
    stored = (
        select(MachineRow.type, CheckpointRow.bytes, CheckpointRow.save_ms)
        .join(MemberRow, (MemberRow.job == CheckpointRow.job) & (MemberRow.generation == CheckpointRow.generation))
        .join(MachineRow, MachineRow.id == MemberRow.machine)
        .where(CheckpointRow.job.in_(jobs), CheckpointRow.final.is_(False), MemberRow.node_rank == 0)
    )
    newest = db.sql.execute(stored.order_by(CheckpointRow.stored_at.desc()).limit(MAX_CHECKPOINTS))
    return tuple(
        StoredCheckpoint(row.type, row.bytes, None if row.save_ms is None else row.save_ms / 1000) for row in newest
    )


def load_spot_histories(db: Read) -> dict[tuple[str, str], SpotHistory]:
    """How long spot machines lasted and how long replacements took, by provider and type, over all teams."""
    columns = (
        MachineRow.job, MachineRow.slot, MachineRow.provider, MachineRow.type, MachineRow.market,
        MachineRow.launched_at, MachineRow.ended_at, MachineRow.end_cause,
    )  # fmt: skip
    launched = select(*columns).where(MachineRow.launched_at.is_not(None))
    newest = db.sql.execute(launched.order_by(MachineRow.id.desc()).limit(MAX_MACHINES)).all()
    since = db.now - SPOT_HISTORY // timedelta(microseconds=1)
    rows = [row for row in newest if row.launched_at > since]
    tallies: dict[tuple[str, str], _Tally] = defaultdict(_Tally)
    lost_at: dict[tuple[UUID, int], tuple[_Tally, int]] = {}
    for row in reversed(rows):  # in the order in which they were launched
        if lost := lost_at.pop((row.job, row.slot), None):
            tally, ended_at = lost
            tally.outages += 1
            tally.outage_us += max(0, row.launched_at - ended_at)
        if row.market != "spot":
            continue
        tally = tallies[row.provider, row.type]
        tally.up_us += max(0, (row.ended_at or db.now) - row.launched_at)
        if row.end_cause == "preempted" and row.ended_at is not None:
            tally.losses += 1
            lost_at[row.job, row.slot] = tally, row.ended_at
    return {product: tally.history for product, tally in tallies.items()}


@dataclass
class _Tally:
    up_us: int = 0
    losses: int = 0
    outages: int = 0
    outage_us: int = 0

    @property
    def history(self) -> SpotHistory:
        return SpotHistory(self.up_us / 1e6, self.losses, self.outages, self.outage_us / 1e6)


def _load_balances(db: Read, paying: list[AccountRow]) -> tuple[Balance, ...]:
    titles = ledger.titles(db, paying)
    return tuple(
        Balance(titles[row.id], None if row.limit_micro is None else row.limit_micro - row.posted - row.held)
        for row in paying
    )
