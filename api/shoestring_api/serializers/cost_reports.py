# SPDX-License-Identifier: Apache-2.0
"""A job's cost report: its machines, ledger entries, budgets and energy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal
from uuid import UUID

from shoestring_core import rest, results
from shoestring_core.store import metrics
from shoestring_core.store.queries import JobRows
from shoestring_core.store.tables import TransferRow
from shoestring_core.wording.reason import UnknownReason

from shoestring_api.serializers.attempts import serialize_machine
from shoestring_api.serializers.costs import serialize_cost
from shoestring_api.serializers.times import to_datetime


def serialize_cost_report(
    rows: JobRows, transfers: Iterable[TransferRow], names: Mapping[UUID, str], budgets: list[rest.Budget],
    meters: Iterable[metrics.StoredCurve], quote: rest.KeptQuote | None, now: int,
) -> rest.CostReport:  # fmt: skip
    return rest.CostReport(
        cost=serialize_cost(rows, now),
        machines=[serialize_machine(row, rows.posted, now) for row in rows.machines],
        transfers=[
            rest.Transfer(
                at=to_datetime(row.at),
                kind=row.kind,
                amount=rest.Money.of(row.amount),
                debit_account=names.get(row.debit_account, str(row.debit_account)),
                credit_account=names.get(row.credit_account, str(row.credit_account)),
                machine=row.machine,
                line=row.line,
                actor=row.actor,
                reason=rest.Reason.from_stored(row.reason) or rest.Reason.of(UnknownReason("damaged")),
            )
            for row in transfers
        ],
        budgets=budgets,
        energy=_sum_energy(rows, meters),
        quote=quote,
    )


def _sum_energy(rows: JobRows, meters: Iterable[metrics.StoredCurve]) -> rest.Energy | None:
    """Return the energy of all machines. Those with the same address share one computer, and so its meters."""
    hosts = {row.id: (row.provider, row.region, row.address) for row in rows.machines}
    curves: dict[tuple[tuple[str, str, str | None], str], list[results.Curve]] = defaultdict(list)
    for points in meters:
        if points.machine in hosts:
            curves[hosts[points.machine], points.name].append(results.Curve(points.steps, points.times, points.values))
    joules = results.energy_joules(curves.values())
    if joules is None:
        return None
    of: list[Literal["gpu", "cpu"]] = sorted({"gpu" if "/gpu" in name else "cpu" for _, name in curves})
    return rest.Energy(joules=joules, kwh=joules / 3_600_000, of=of)
