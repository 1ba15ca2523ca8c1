# SPDX-License-Identifier: Apache-2.0
"""The order for a machine: what its agent should do now. Stateless: the same rows always give the same order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoestring_core.states import AttemptState, GenerationState, JobState, MachineState


@dataclass(frozen=True)
class Membership:
    """The machine's membership in the job's current generation."""

    state: GenerationState
    exited: bool


@dataclass(frozen=True)
class OrderInputs:
    """What the order for a machine depends on.

    in_latest_attempt  it belongs to the job's latest attempt
    membership         None if it is no member of the current generation
    admit_waiting      other machines wait to join the next generation
    """

    machine: MachineState
    job: JobState
    in_latest_attempt: bool
    attempt: AttemptState
    generation: int
    membership: Membership | None
    reason: str = ""
    admit_waiting: bool = False


@dataclass(frozen=True)
class OrderDecision:
    """`reason` is a code, for the log of the agent."""

    kind: Literal["wait", "prepare", "run", "drain", "shutdown"]
    generation: int = 0
    reason: str = ""


def decide_order(inputs: OrderInputs) -> OrderDecision:
    """The order for one machine.

    The ranks of a stopping job drain before their machine ends. An attempt that closes for any other reason needs
    nothing more from its ranks; only uploads that have begun are finished.
    """
    membership, generation = inputs.membership, inputs.generation
    if inputs.machine in (MachineState.TERMINATING, MachineState.TERMINATED, MachineState.NEVER_LAUNCHED):
        return OrderDecision("shutdown", reason="machine_terminating")
    if not inputs.in_latest_attempt or inputs.job not in (JobState.LAUNCHING, JobState.RUNNING, JobState.STOPPING):
        return OrderDecision("shutdown", reason=inputs.reason or f"job_{inputs.job}")
    if inputs.job is JobState.STOPPING:
        if membership and membership.state is GenerationState.FORMED and not membership.exited:
            return OrderDecision("drain", generation, inputs.reason)
        return OrderDecision("shutdown", reason=inputs.reason)
    if inputs.attempt is not AttemptState.OPEN:
        return OrderDecision("shutdown", reason=inputs.reason)
    if membership is None:
        return OrderDecision("wait", reason="waiting_for_machines")
    if membership.state is GenerationState.FORMING:
        return OrderDecision("prepare", generation)
    if membership.exited:
        return OrderDecision("wait", generation)
    if inputs.admit_waiting:
        return OrderDecision("drain", generation, "machines_join")
    return OrderDecision("run", generation)
