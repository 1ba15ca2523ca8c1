# SPDX-License-Identifier: Apache-2.0
"""What agents report from their machines. The facts are the data of their events; what a machine sends may lack any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import FiniteFloat

from shoestring_core.wording.reason import NestedReason, Reason, parse
from shoestring_core.wording.units import counted

MAX_MESSAGE = 1_000
"""Characters of a message that are kept; the event's data has all of it."""


def of_event(event: str, data: Mapping[str, Any]) -> Reason:
    """The reason that an agent's event gives, whatever its data contains."""
    try:
        return parse(f"agent_{event}", data)
    except ValueError:
        return AgentMessage(event, str(data.get("message") or "")[:MAX_MESSAGE])


@dataclass(frozen=True)
class TrainingStarted(Reason):
    code = "agent_started"
    steps_total: int | None = None
    world: int | None = None
    precision: str | None = None

    def text(self) -> str:
        facts = [
            counted(self.steps_total, "step") if self.steps_total else "",
            counted(self.world, "process", "processes") if self.world else "",
            self.precision or "",
        ]
        return f"{', '.join(filter(None, facts))}." if any(facts) else ""


@dataclass(frozen=True)
class BootPhase(Reason):
    """`phase`, `message` and `failure`: as in wire.BootReport."""

    code = "agent_boot"
    phase: str = "boot"
    message: str = ""
    failure: str | None = None
    seconds: FiniteFloat = 0.0

    def text(self) -> str:
        if self.failure:
            return f"{self.phase.capitalize()} failed after {self.seconds:.0f} s: {self.message}. It powers off."
        return f"{self.phase.capitalize()}, {self.seconds:.1f} s: {self.message}."


@dataclass(frozen=True)
class GradientOverflow(Reason):
    code = "agent_gradient_overflow"
    scale: FiniteFloat | None = None

    def text(self) -> str:
        scale = f", loss scale {self.scale:.0f}" if self.scale else ""
        return f"The step is skipped on all ranks{scale}."


@dataclass(frozen=True)
class BatchSkipped(Reason):
    code = "agent_skipped"

    def text(self) -> str:
        return "It caused NaN/Inf before."


@dataclass(frozen=True)
class ModelExporting(Reason):
    code = "agent_exporting"

    def text(self) -> str:
        return "Training is complete; the model and its results are written and uploaded."


@dataclass(frozen=True)
class PreemptionNotice(Reason):
    code = "agent_preemption_notice"

    def text(self) -> str:
        return "All ranks save a checkpoint and stop."


@dataclass(frozen=True)
class AgentMessage(Reason):
    """Any other event, such as warning, rejected or log_quota. The message is the machine's own."""

    code = "agent_message"
    event: str
    message: str

    def text(self) -> str:
        return self.message or f"{self.event.replace('_', ' ').capitalize()}."


@dataclass(frozen=True)
class CheckpointSaved(Reason):
    """`trigger`: periodic | order | final; adopted: found uploaded after its machine had terminated. `outlasts_notice`:
    why an interruption would lose work, with the first of a generation."""

    code = "checkpoint_saved"
    trigger: str
    step: int
    outlasts_notice: NestedReason | None = None

    def text(self) -> str:
        saved = _TRIGGERS.get(self.trigger, f"{self.trigger.capitalize()}.")
        return f"{saved} {self.outlasts_notice.text()}" if self.outlasts_notice else saved


_TRIGGERS = {
    "periodic": "Saved periodically.",
    "order": "Saved before stopping.",
    "final": "Final checkpoint.",
    "adopted": "Its upload was found after its machine had terminated.",
}
