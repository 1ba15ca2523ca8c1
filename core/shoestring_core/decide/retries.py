# SPDX-License-Identifier: Apache-2.0
"""Retries: how often and how soon a job is tried again, by what its attempt ended for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shoestring_core.decide.failures import EndJob
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import EndReason
from shoestring_core.wording import Reason, attempts

MAX_ATTEMPTS_WITHOUT_STEP = 8
"""How many attempts in a row may launch machines that never train a step: bounds the money spent for nothing."""

JITTER = 0.25
"""A delay is longer by up to this part of it: jobs that failed together don't come back together."""


@dataclass(frozen=True)
class RetryRule:
    """What follows from an attempt that ended for one reason.

    condition    what the job's retry.on must include
    end_reason   what the job ends with when it is not tried again
    in_a_row     how many attempts in a row that launched machines and trained nothing may end for it
    first_delay  µs before the next attempt; doubles with each that trained nothing. 0: none, as after a preemption
    refused      a provider refused machines: jobs that need the same would be refused too
    """

    condition: Literal["capacity", "interruption"]
    end_reason: EndReason
    in_a_row: int = MAX_ATTEMPTS_WITHOUT_STEP
    first_delay: int = S // 2
    refused: bool = False


REFUSED_DELAY = 5 * S
"""What was missing a moment ago is still missing; half a gang is paid for while we retry."""

RULES = {
    "preempted": RetryRule("interruption", EndReason.INFRASTRUCTURE, first_delay=0),
    "machine_lost": RetryRule("interruption", EndReason.INFRASTRUCTURE),
    "not_ready": RetryRule("interruption", EndReason.INFRASTRUCTURE),
    "boot": RetryRule("interruption", EndReason.BOOT, in_a_row=3),
    "hardware": RetryRule("interruption", EndReason.HARDWARE, in_a_row=3),
    "capacity": RetryRule("capacity", EndReason.NO_CAPACITY, first_delay=REFUSED_DELAY, refused=True),
    "price": RetryRule("capacity", EndReason.NO_CAPACITY, first_delay=REFUSED_DELAY, refused=True),
    "quota": RetryRule("capacity", EndReason.QUOTA, first_delay=REFUSED_DELAY, refused=True),
    # what another job may do in another region, it doesn't wait for
    "region": RetryRule("capacity", EndReason.ACCOUNT, first_delay=REFUSED_DELAY),
}
"""By failures.EndAttempt.reason. What isn't here ends the job at once: a later try would fail the same way."""


def refuse_retry(
    reason: str,
    detail: Reason,
    trained_attempts: int,
    without_step: int,
    same_in_a_row: int,
    retry_on: tuple[str, ...],
    retry_max: int,
) -> EndJob | None:
    """The end of a job whose attempt ended; None if it may be queued again.

    detail            why the attempt ended
    trained_attempts  attempts in which a step ran and that were interrupted, this one included; a pause, or an
                      eviction, interrupts none
    without_step      the latest attempts in a row that launched machines and never trained a step
    same_in_a_row     those of them that ended for this reason, up to this one
    """
    rule = RULES[reason]
    if rule.condition not in retry_on:
        return EndJob(rule.end_reason, attempts.RetryNotAllowed(reason, rule.condition))
    if trained_attempts > retry_max:
        return EndJob(EndReason.INFRASTRUCTURE, attempts.RetriesExhausted(trained_attempts, retry_max))
    if same_in_a_row >= rule.in_a_row:
        return EndJob(rule.end_reason, attempts.NeverTrained(same_in_a_row, detail))
    if without_step >= MAX_ATTEMPTS_WITHOUT_STEP:
        return EndJob(EndReason.INFRASTRUCTURE, attempts.NeverTrained(without_step, detail))
    return None


def backoff(failures: int, timeouts: Timeouts, first: int = S // 2) -> int:
    """µs to wait before the next try after `failures` in a row: doubles from `first` up to the launch window."""
    return min(first * 2 ** min(failures - 1, 20), timeouts.launch_window) if failures else 0


def retry_delay(job: UUID, reason: str, failures: int, timeouts: Timeouts) -> int:
    """µs until a job's next attempt, after `failures` attempts in a row that trained nothing.

    The jitter is a function of the job and the number of failures, so that the decision can be recomputed.
    """
    delay = backoff(failures, timeouts, RULES[reason].first_delay)
    digest = hashlib.blake2b(job.bytes + failures.to_bytes(4, "big"), digest_size=4).digest()
    return delay + round(delay * JITTER * int.from_bytes(digest, "big") / 2**32)


def delays(reason: str | None) -> bool:
    """Whether a job whose attempt ended for this reason waits before its next one."""
    return reason in RULES and RULES[reason].first_delay > 0
