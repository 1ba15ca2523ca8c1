# SPDX-License-Identifier: Apache-2.0
"""A start is decided again from what was stored with its attempt."""

from __future__ import annotations

from shoestring_core.decide.room import Room
from shoestring_core.decide.start import Precedence, Start, StartInputs, Turn, Wait, decide_start


def recompute_start(inputs: StartInputs) -> Start | Wait:
    turn = Turn(
        inputs.queued, inputs.balances, inputs.budget_blocked_by, inputs.refused_until, inputs.gpus_blocked_by
    )  # fmt: skip
    room = Room(
        inputs.offers, inputs.machines_in_use, inputs.vcpus_in_use, inputs.now, inputs.refusals, inputs.timeouts,
        inputs.storage, inputs.slots_blocked_by, inputs.quotas_blocked,
    )  # fmt: skip
    return decide_start(turn, room, Precedence())
