# SPDX-License-Identifier: Apache-2.0
"""What the service wants of a machine now. Stateless: the same rows give the same order, however often it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoestring_core.states import AttemptState, GenerationState, JobState, MachineState


@dataclass(frozen=True)
class Part:
    """The machine's part in the job's current generation."""

    state: GenerationState
    exited: bool


@dataclass(frozen=True)
class Standing:
    """Where a machine stands.

    current    it belongs to the job's latest attempt
    part       None, if it has none
    newcomers  machines wait to be let into the next generation
    """

    machine: MachineState
    job: JobState
    current: bool
    attempt: AttemptState
    generation: int
    part: Part | None
    reason: str = ""
    newcomers: bool = False


@dataclass(frozen=True)
class Directive:
    kind: Literal["wait", "form", "run", "drain", "end"]
    generation: int = 0
    reason: str = ""


def order_for(standing: Standing) -> Directive:
    """The order for one machine.

    A stopping job's ranks are drained before their machine is ended; an attempt that is winding down for any other
    reason needs no more of its ranks, only what was begun to upload.
    """
    part, generation = standing.part, standing.generation
    if standing.machine in (MachineState.ENDING, MachineState.GONE, MachineState.VOID):
        return Directive("end", reason="the machine is ending")
    if not standing.current or standing.job not in (JobState.LAUNCHING, JobState.RUNNING, JobState.STOPPING):
        return Directive("end", reason=standing.reason or f"the job is {standing.job}")
    if standing.job is JobState.STOPPING:
        if part and part.state is GenerationState.FORMED and not part.exited:
            return Directive("drain", generation, standing.reason)
        return Directive("end", reason=standing.reason)
    if standing.attempt is not AttemptState.OPEN:
        return Directive("end", reason=standing.reason)
    if part is None:
        return Directive("wait", reason="waiting for the other machines")
    if part.state is GenerationState.FORMING:
        return Directive("form", generation)
    if part.exited:
        return Directive("wait", generation)
    if standing.newcomers:
        return Directive("drain", generation, "machines join")
    return Directive("run", generation)
