# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint can be stored between a spot machine's notice and its end, as far as that is known.

Known is the size, from checkpoints that earlier runs of the same work have stored, and the time, from how long that
took on the same type of machine, or at least from the network and disk that are offered. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.wording.notices import CheckpointOutlastsNotice

MIB = 1 << 20


@dataclass(frozen=True)
class StoredCheckpoint:
    """One that a run has stored on a type of machine.

    seconds  from a request to stop until the object store has it, with the steps trained meanwhile; None: not measured
    """

    type: str
    bytes: int
    seconds: float | None


def outlasts_notice(
    stored: Sequence[StoredCheckpoint], offer: Offer, timeouts: Timeouts
) -> CheckpointOutlastsNotice | None:
    """Why a machine of the offer could lose work after a notice; None: it wouldn't, or it isn't known.

    stored  by earlier runs of the same work; not their final ones, which have artifacts in them
    """
    if offer.market != "spot" or timeouts.notice is None or not stored:
        return None
    size = max(one.bytes for one in stored)
    took = [one.seconds for one in stored if one.type == offer.type and one.seconds is not None]
    if took:
        return _compare(size, median(took), timeouts.notice, offer.type, "measured")
    if offer.hardware is None or offer.hardware.network_mbps is None:
        return None
    least_s = size * 8 / (offer.hardware.network_mbps * 1e6)
    if offer.disk is not None:
        least_s += size / (offer.disk.mib_per_s * MIB)
    return _compare(size, least_s, timeouts.notice, offer.type, "offered")


def outlasted_notice(checkpoint: StoredCheckpoint, market: str, timeouts: Timeouts) -> CheckpointOutlastsNotice | None:
    """The same of a checkpoint that a running job has just stored."""
    if market != "spot" or timeouts.notice is None or checkpoint.seconds is None:
        return None
    return _compare(checkpoint.bytes, checkpoint.seconds, timeouts.notice, checkpoint.type, "this_run")


def _compare(size: int, seconds: float, notice: int, type_: str, basis: str) -> CheckpointOutlastsNotice | None:
    if seconds <= notice / S:
        return None
    return CheckpointOutlastsNotice(basis, type_, size, round(seconds, 1), notice / S)
