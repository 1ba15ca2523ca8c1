# SPDX-License-Identifier: Apache-2.0
"""What people read, built from rows: the one place where a state becomes a sentence and a machine's time money."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal, overload
from uuid import UUID

from shoestring_core import money, rest, results
from shoestring_core.decide import nan_recovery
from shoestring_core.decide.billing import Evidence, bill
from shoestring_core.decide.sizing import Case, Choice, Option
from shoestring_core.recipes import Recipe
from shoestring_core.states import (
    SUCCESS,
    AttemptState,
    DesiredState,
    EndReason,
    GenerationState,
    JobState,
    MachineState,
)
from shoestring_core.store import events, metrics
from shoestring_core.store.checkpoints import Part
from shoestring_core.store.logs import LogLine
from shoestring_core.store.rows import JobRows
from shoestring_core.store.tables import (
    AccountRow,
    AttemptRow,
    EventRow,
    GenerationRow,
    JobRow,
    KeyRow,
    MachineRow,
    TransferRow,
)

SIMULATED = ("local", "sim")


# --- jobs -------------------------------------------------------------------------------------------------


def job(rows: JobRows, now: int) -> rest.Job:
    row = rows.job
    ended = EndReason(row.end_reason) if row.end_reason else None
    return rest.Job(
        id=row.id,
        name=row.name,
        team=rows.team,
        user=rows.user,
        recipe=row.spec.get("recipe"),
        state=JobState(row.state),
        sentence=sentence(row),
        wait_reason=wait_reason(row),
        end_reason=ended,
        desired_state=DesiredState(row.desired_state),
        attempt=row.attempt,
        generation=row.generation,
        progress=progress(row, rows.generations, now),
        latest={name: float(value) for name, value in row.latest.items()},
        result=row.result,
        cost=cost(rows, now),
        spec=row.spec,
        sizing=sizing(row),
        tags=row.spec.get("tags") or {},
        retried_from=row.retried_from,
        created_at=moment(row.created_at),
        started_at=moment(row.started_at),
        first_step_at=moment(row.first_step_at),
        ended_at=moment(row.ended_at),
        settled_at=moment(row.settled_at),
    )


WAITS = {
    "money": "Waiting for money",
    "slots": "Waiting for machines",
    "turn": "Waiting its turn",
    "capacity": "Waiting for capacity",
    "ending": "Waiting for earlier machines to end",
}

ENDS = {
    EndReason.SUCCEEDED: "Finished",
    EndReason.GOAL_REACHED: "Finished: the goal was reached",
    EndReason.USER_STOP: "Stopped",
    EndReason.BUDGET: "Stopped: its money ran out",
    EndReason.TIME_LIMIT: "Stopped: its time limit was reached",
    EndReason.USER_CODE: "Failed: the training code raised an error",
    EndReason.OUT_OF_MEMORY: "Failed: out of memory",
    EndReason.NAN: "Failed: the loss is not a number any more",
    EndReason.DATA: "Failed: the data could not be read",
    EndReason.IMAGE: "Failed: the machine image could not be used",
    EndReason.NO_CAPACITY: "Failed: no machines could be had",
    EndReason.QUOTA: "Failed: the provider's quota is used up",
    EndReason.ACCOUNT: "Failed: the provider's account was refused",
    EndReason.INFRASTRUCTURE: "Failed: the machines kept failing",
}

STOPPING = {
    "user": "Stopping: somebody asked for it",
    "budget": "Stopping: its money runs out",
    "time_limit": "Stopping: its time limit is reached",
    "goal": "Stopping: the goal is reached",
}


def wait_reason(row: JobRow) -> str | None:
    """What a queued or paused job waits for. One that its budget paused waits for a grant."""
    if row.state == JobState.PAUSED:
        return "grant" if row.stop_reason == "budget" else "resume"
    return row.wait_reason if row.state == JobState.QUEUED else None


def sentence(row: JobRow) -> str:
    """State and reason in words a user can act on."""
    match JobState(row.state):
        case JobState.AWAITING_APPROVAL:
            return "Waiting for an admin's approval."
        case JobState.QUEUED:
            head = WAITS.get(row.wait_reason or "", "Waiting to start")
            return _with(head, row.wait_text)
        case JobState.LAUNCHING:
            return (
                "Starting machines." if row.first_step_at is None else "Starting machines again, to go on where it was."
            )
        case JobState.RUNNING:
            head = "Getting ready to train: data, then processes" if row.first_step_at is None else "Training"
            return f"{head}{_without(row)}."
        case JobState.STOPPING:
            saving = "It saves a checkpoint and its machines end."
            return f"{STOPPING.get(row.stop_reason, 'Stopping')}. {saving}"
        case JobState.PAUSED:
            if row.stop_reason == "budget":
                return (
                    "Paused: its money ran out. It goes on when the budget is raised: `shoestring budget set`, "
                    "with --job for its own limit."
                )
            return "Paused: resume it to go on."
        case JobState.ENDED:
            reason = EndReason(row.end_reason or "")
            return _with(ENDS[reason] + (_without(row) if reason in SUCCESS else ""), row.end_text)


def _without(row: JobRow) -> str:
    """What it has not learned from."""
    spans = [(int(first), int(last)) for first, last in row.skips or ()]
    return f", without {nan_recovery.describe_spans(spans)}, where its numbers broke" if spans else ""


def sizing(row: JobRow) -> str | None:
    """Why it runs on these machines, and no faster ones."""
    if row.sizing is None:
        return None
    choice = Choice.from_json(row.sizing["choice"])
    return f"{choice.text} {choice.why}".strip()


def _with(head: str, text: str | None) -> str:
    text = (text or "").strip()
    return f"{head}: {text}" if text and ":" not in head else f"{head}. {text}".strip()


def progress(row: JobRow, generations: list[GenerationRow], now: int) -> rest.Progress:
    """By the merged curve: where the current generation is, not how far a lost one came."""
    current = generations[-1] if generations else None
    step = max(current.start_step, current.last_step or 0) if current else 0
    epoch = row.last_epoch_milli / 1000 if row.last_epoch_milli is not None else None
    total = row.steps_total
    eta_s = None
    if total and current and current.first_step_at and current.state == GenerationState.FORMED:
        done, spent_s = step - current.start_step, (now - current.first_step_at) / 1e6
        eta_s = round(max(0, total - step) * spent_s / done, 1) if done >= 2 and spent_s > 0 else None
    fraction = min(1.0, step / total) if total else None
    return rest.Progress(step=step, steps_total=total, epoch=epoch, fraction=fraction, eta_s=eta_s)


ABOUT_MACHINES = frozenset({"machine", "generation", "cost"})
"""Kinds of events that refer to a machine."""


def event(row: EventRow) -> rest.Event:
    return rest.Event(
        cursor=events.cursor(row.team, row.seq),
        at=moment(row.at),
        job=row.job,
        attempt=row.attempt,
        generation=row.generation,
        kind=row.kind,
        actor=row.actor,
        reason=row.reason,
        data=({"machine": row.ref} if row.kind in ABOUT_MACHINES and row.ref else {}) | row.data,
    )


# --- plans ------------------------------------------------------------------------------------------------


def plan(case: Case, choice: Choice) -> rest.Plan:
    return rest.Plan(
        verdict=choice.verdict,
        nodes=choice.nodes,
        type=choice.type,
        text=choice.text,
        why=choice.why,
        expected=_option(choice.option) if choice.option else None,
        limit_s=case.limit_s,
        enough_s=choice.enough_s,
        options=[_option(one) for one in choice.options],
        runs=len({one.job for one in case.measurements}),
    )


def _option(option: Option) -> rest.PlanOption:
    return rest.PlanOption(
        type=option.type,
        market=option.market,
        nodes=option.nodes,
        basis=option.basis,
        run_s=round(option.run_s, 3),
        sure_s=round(option.sure_s, 3),
        cost=rest.Money.of(option.cost),
        need=rest.Money.of(option.need),
        obstacle=option.obstacle or None,
    )


# --- attempts ---------------------------------------------------------------------------------------------


def attempts(rows: JobRows, attempts: Iterable[AttemptRow], now: int) -> rest.AttemptList:
    shown = generations(rows.generations)
    return rest.AttemptList(
        attempts=[
            rest.Attempt(
                no=row.no,
                state=AttemptState(row.state),
                reason=row.reason,
                trained=row.trained,
                machines=[machine(one, rows.posted, now) for one in rows.machines if one.attempt == row.no],
                generations=[one for one in shown if one.attempt == row.no],
                opened_at=moment(row.opened_at),
                closed_at=moment(row.closed_at),
            )
            for row in attempts
        ],
        steps=progress(rows.job, rows.generations, now).step,
        steps_lost=sum(one.steps_lost for one in shown),
    )


def generations(rows: list[GenerationRow]) -> list[rest.Generation]:
    owned = metrics.owned_steps(rows)
    return [_generation(row, owned[row.no].last) for row in rows]


def _generation(row: GenerationRow, next_start: int | None) -> rest.Generation:
    """`next_start`: where the work that replaced its own began; None, if nothing did."""
    last = row.last_step
    kept = last if next_start is None or last is None else min(last, next_start)
    return rest.Generation(
        no=row.no,
        attempt=row.attempt,
        state=GenerationState(row.state),
        world=row.world,
        start_step=row.start_step,
        last_step=last,
        kept_through=kept,
        steps_lost=0 if last is None or kept is None else last - kept,
        formed_at=moment(row.formed_at),
        first_step_at=moment(row.first_step_at),
        over_at=moment(row.over_at),
        over_reason=row.over_reason,
    )


def machine(row: MachineRow, posted: Mapping[UUID, int], now: int) -> rest.Machine:
    spent = max(posted.get(row.id, 0), _so_far(row, row.price, now))
    return rest.Machine(
        id=row.id,
        attempt=row.attempt,
        slot=row.slot,
        ordinal=row.ordinal,
        provider=row.provider,
        region=row.region,
        zone=row.zone,
        type=row.type,
        market=row.market,
        state=MachineState(row.state),
        provider_id=row.provider_id,
        price_per_hour=rest.Money.of(money.from_decimal(row.price)),
        on_demand_per_hour=rest.Money.of(money.from_decimal(row.on_demand_price)),
        launched_at=moment(row.launched_at),
        ended_at=moment(row.ended_at),
        end_cause=row.end_cause,
        last_report_at=moment(row.last_report_at),
        cost=rest.Money.of(posted.get(row.id, 0) if row.billed_at else spent),
        posted=row.billed_at is not None,
    )


# --- money ------------------------------------------------------------------------------------------------


def cost(rows: JobRows, now: int) -> rest.Cost:
    account = rows.account
    running = sum(
        max(0, _so_far(row, row.price, now) - rows.posted.get(row.id, 0)) for row in rows.machines if not row.billed_at
    )
    return rest.Cost(
        spent=rest.Money.of(account.posted if account else 0),
        running=rest.Money.of(running),
        held=rest.Money.of(account.held if account else 0),
        on_demand=rest.Money.of(sum(_so_far(row, row.on_demand_price, now) for row in rows.machines)),
        limit=rest.Money.of(account.limit_micro) if account and account.limit_micro is not None else None,
        settled=rows.job.settled_at is not None,
        price_basis=_price_basis(rows),
    )


def _so_far(row: MachineRow, price: str, now: int) -> int:
    """What the machine's time costs at a price per hour, micro-dollars."""
    evidence = Evidence(row.provider, row.type, row.market, price, row.launched_at, row.ended_at, row.end_cause)
    return sum(line.amount for line in bill(evidence, now))


def _price_basis(rows: JobRows) -> Literal["simulated", "live", "snapshot"]:
    provider = (rows.job.spec.get("resources") or {}).get("provider", "local")
    return "simulated" if provider in SIMULATED else "live"


def cost_report(
    rows: JobRows, transfers: Iterable[TransferRow], names: Mapping[UUID, str], budgets: list[rest.Budget],
    meters: Iterable[metrics.Curve], now: int,
) -> rest.CostReport:  # fmt: skip
    return rest.CostReport(
        cost=cost(rows, now),
        machines=[machine(row, rows.posted, now) for row in rows.machines],
        transfers=[
            rest.Transfer(
                at=moment(row.at),
                kind=row.kind,
                amount=rest.Money.of(row.amount),
                debit=names.get(row.debit, str(row.debit)),
                credit=names.get(row.credit, str(row.credit)),
                machine=row.machine,
                line=row.line,
                actor=row.actor,
                reason=row.reason,
            )
            for row in transfers
        ],
        budgets=budgets,
        energy=_energy(rows, meters),
    )


def _energy(rows: JobRows, meters: Iterable[metrics.Curve]) -> rest.Energy | None:
    """Machines of the local cloud are one computer: what they read are the same meters."""
    hosts = {row.id: "here" if row.provider in SIMULATED else str(row.id) for row in rows.machines}
    seen: dict[tuple[str, str], list[results.Curve]] = defaultdict(list)
    for one in meters:
        if one.machine in hosts:
            seen[hosts[one.machine], one.name].append(results.Curve(one.steps, one.times, one.values))
    joules = results.energy(seen.values())
    if joules is None:
        return None
    of: list[Literal["gpu", "cpu"]] = sorted({"gpu" if "/gpu" in name else "cpu" for _, name in seen})
    return rest.Energy(joules=joules, kwh=joules / 3_600_000, of=of)


def budget(row: AccountRow, title: str) -> rest.Budget:
    """`title`: what people call it, such as `team vision`."""
    left = None if row.limit_micro is None else max(0, row.limit_micro + row.overdraft - row.posted - row.held)
    return rest.Budget(
        id=row.id,
        kind=row.kind,
        owner=title.removeprefix(f"{row.kind} ").removeprefix("organisation "),
        limit=None if row.limit_micro is None else rest.Money.of(row.limit_micro),
        posted=rest.Money.of(row.posted),
        held=rest.Money.of(row.held),
        overdraft=rest.Money.of(row.overdraft),
        left=None if left is None else rest.Money.of(left),
        etag=f'"{row.version}"',
    )


# --- the rest ---------------------------------------------------------------------------------------------


def curves(points: Iterable[metrics.Curve]) -> list[rest.Curve]:
    return [
        rest.Curve(
            name=one.name,
            generation=one.generation,
            machine=one.machine,
            lost=one.lost,
            steps=one.steps,
            times=one.times,
            values=one.values,
        )
        for one in points
    ]


def lines(found: Iterable[LogLine], machines: Mapping[UUID, MachineRow]) -> list[rest.LogLine]:
    return [
        rest.LogLine(
            machine=one.machine, slot=machines[one.machine].slot, rank=one.rank, offset=one.offset, text=one.text
        )
        for one in found
    ]


def recipe(found: Recipe) -> rest.Recipe:
    return rest.Recipe(
        name=found.name,
        version=found.version,
        title=found.title,
        description=found.description,
        data=found.data.kind,
        metric=found.metric,
        params=[
            rest.RecipeParameter(
                name=name,
                type=param.type,
                default=param.default,
                minimum=param.min,
                maximum=param.max,
                choices=None if param.choices is None else list(param.choices),
                help=param.help,
            )
            for name, param in found.params.items()
        ],
        claim=found.claims(),
    )


def key(row: KeyRow) -> rest.Key:
    return rest.Key(
        id=row.id,
        kind="svc" if row.kind == "svc" else "pat",
        created_at=moment(row.created_at),
        expires_at=moment(row.expires_at),
        revoked_at=moment(row.revoked_at),
    )


def artifacts(job: JobRow, step: int, parts: Iterable[Part]) -> rest.ArtifactList:
    return rest.ArtifactList(
        artifacts=[
            rest.Artifact(
                name=part.name,
                bytes=part.bytes,
                sha256=part.sha256,
                step=step,
                url=f"/v1/jobs/{job.id}/artifacts/{part.name}",
            )
            for part in parts
        ]
    )


@overload
def moment(at: int) -> datetime: ...
@overload
def moment(at: int | None) -> datetime | None: ...
def moment(at: int | None) -> datetime | None:
    """µs UTC as a time."""
    return None if at is None else datetime.fromtimestamp(at // 1_000_000, UTC).replace(microsecond=at % 1_000_000)
