# SPDX-License-Identifier: Apache-2.0
"""What `shoestring simulate schedule` reads: machines, teams, and when which jobs come; YAML or JSON."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from shoestring_core import document, money
from shoestring_core.decide import simulation
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.queue import MAX_CAP, MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.decide.requirements import Requirements
from shoestring_core.durations import format_duration, parse_duration
from shoestring_core.errors import InvalidSpec, Problem
from shoestring_core.regular_files import read_regular

MAX_JOBS = 10_000
MAX_NODES = 64
PROBLEMS_TOLD = 5


class ScenarioError(Exception):
    """A scenario can't be used; the message says what it should be."""


def _as_text(value: object) -> object:
    """A number as a person wrote it."""
    return str(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else value


def _microseconds(value: object) -> object:
    text = _as_text(value)
    return round(parse_duration(text) * 1e6) if isinstance(text, str) else value


def _dollars(text: str) -> str:
    money.from_decimal(text)
    return text


Time = Annotated[int, BeforeValidator(_microseconds)]
"""A duration such as 2h, or seconds."""
Dollars = Annotated[str, BeforeValidator(_as_text), AfterValidator(_dollars)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Machines(_Part):
    """`price`: dollars an hour of one. `slots`: that there are; None: no limit."""

    provider: str = "machines"
    type: str = "machine"
    price: Dollars
    slots: Annotated[int, Field(ge=1)] | None = None


class _Team(_Part):
    """`guaranteed_rate`: dollars an hour. `max_jobs`: that run at once; None: no cap."""

    weight: Annotated[int, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] = 1
    guaranteed_rate: Dollars = "0"
    max_jobs: Annotated[int, Field(ge=0, le=MAX_CAP)] | None = None


class _Job(_Part):
    """It comes `at`, and trains for `work` on all its machines; `limit` is what its limits.time says."""

    name: str
    team: str
    member: str = "member"
    at: Time = 0
    work: Time
    limit: Time | None = None
    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    provider: str | None = None


class _Scenario(_Part):
    machines: list[_Machines] = Field(min_length=1)
    teams: dict[str, _Team]
    jobs: list[_Job] = Field(max_length=MAX_JOBS)
    startup: Time = 60_000_000
    drain: Time = 15_000_000

    @model_validator(mode="after")
    def _teams_exist(self) -> Self:
        for job in self.jobs:
            if job.team not in self.teams:
                raise ValueError(f"job {job.name}: there is no team {job.team}")
            if job.limit is not None and job.work > job.limit:
                raise ValueError(f"job {job.name}: its work takes longer than its limit")
        return self


def read_scenario(file: Path) -> simulation.Scenario:
    """Raises ScenarioError."""
    try:
        read = _Scenario.model_validate(_tree(file))
    except OSError as error:
        raise ScenarioError(f"can't read {file}: {error.strerror}") from error
    except InvalidSpec as error:
        raise ScenarioError(f"{file}: {error}") from error
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors()[:PROBLEMS_TOLD]]
        raise ScenarioError(f"{file}: {'; '.join(told)}") from error
    return simulation.Scenario(
        tuple(_offer(one) for one in read.machines),
        tuple(
            simulation.Team(name, team.weight, money.from_decimal(team.guaranteed_rate), team.max_jobs)
            for name, team in read.teams.items()
        ),
        tuple(_job(one) for one in read.jobs),
        read.startup,
        read.drain,
    )


def _job(job: _Job) -> simulation.Job:
    needed = Requirements(job.nodes, job.provider)
    return simulation.Job(job.name, job.team, job.member, job.at, job.work, needed, job.limit)


def _tree(file: Path) -> Any:
    """JSON of any length; YAML as long as a job spec may be."""
    content = read_regular(file)
    if file.suffix == ".json":
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidSpec([Problem("", f"This is not JSON: {error}", "invalid-json")]) from error
    tree, problems = document.read(content)
    if problems:
        raise InvalidSpec(problems)
    return tree


def _offer(machines: _Machines) -> Offer:
    price = machines.price
    return Offer(
        machines.provider, "", "", machines.type, "on_demand", price, price, machines.slots, "scenario", simulated=True
    )


class ScheduleSummary:
    """What each team got: how long its jobs waited for their first start, evictions, and dollars."""

    def __init__(self, scenario: simulation.Scenario) -> None:
        self._scenario = scenario
        self._waited: dict[str, list[int]] = {team.name: [] for team in scenario.teams}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._cost: Counter[str] = Counter()
        self._running: dict[simulation.Job, simulation.Step] = {}

    def add(self, step: simulation.Step) -> None:
        job = step.job
        self._counts[job.team, step.kind] += 1
        if step.kind == "start":
            self._running[job] = step
            if step.attempt == 1:
                self._waited[job.team].append(step.at - job.at)
            return
        start = self._running.pop(job)
        ended = step.at + (self._scenario.drain if step.kind == "evict" else 0)
        assert start.offer is not None
        self._cost[job.team] += money.cost(start.offer.price, ended - start.at) * job.requirements.nodes

    @staticmethod
    def line(step: simulation.Step) -> dict[str, Any]:
        job = step.job
        told = {"at_s": step.at / 1e6, "event": step.kind, "job": job.name, "team": job.team, "attempt": step.attempt}
        if step.offer is not None:
            told |= {"provider": step.offer.provider, "type": step.offer.type, "nodes": job.requirements.nodes}
        return told | ({"reason": step.reason.text()} if step.reason else {})

    def rows(self) -> list[tuple[str, ...]]:
        jobs = Counter(job.team for job in self._scenario.jobs)
        return [
            (
                team, str(jobs[team]), str(self._counts[team, "end"]),
                format_duration(sum(waited) / len(waited) / 1e6) if waited else "",
                str(self._counts[team, "evict"]), f"${self._cost[team] / money.MICRO:.2f}",
            )
            for team, waited in self._waited.items()
        ]  # fmt: skip
