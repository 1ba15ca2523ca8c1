# SPDX-License-Identifier: Apache-2.0
"""Domain errors: what was wrong and what to do next. They know no HTTP; the API maps `code` to a status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where (JSON pointer), what, and what was probably meant."""

    pointer: str
    message: str
    code: str = "invalid"
    suggestion: str | None = None

    def as_json(self) -> dict[str, str]:
        fields = {"pointer": self.pointer, "message": self.message, "code": self.code}
        return fields | ({"suggestion": self.suggestion} if self.suggestion else {})


class ShoestringError(Exception):
    """Base of all domain errors. `code` is stable; `title` names the kind; the message is for the user."""

    code = "internal"
    title = "Something went wrong"
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields
        """Further members of the problem document, JSON-able (money as decimal strings)."""


class InvalidSpec(ShoestringError):
    """A job spec that can't be accepted; lists every problem at once."""

    code = "invalid-spec"
    title = "The job spec has mistakes"

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.message}" for p in problems))


class InvalidRequest(ShoestringError):
    code = "invalid-request"
    title = "The request is not valid"


class NotFound(ShoestringError):
    """Missing, or another team's: the two look the same."""

    code = "not-found"
    title = "Not found"


class Unauthenticated(ShoestringError):
    code = "unauthenticated"
    title = "Sign in first"


class Forbidden(ShoestringError):
    code = "forbidden"
    title = "Not allowed"


class BudgetExceeded(ShoestringError):
    """The limit on the path could never cover it."""

    code = "budget-exceeded"
    title = "The budget cannot cover this"


class TimeLimitUnmet(ShoestringError):
    """By what was measured no machines that can be had finish the job within limits.time."""

    code = "time-limit-unmet"
    title = "No machines finish it within limits.time"


class WrongState(ShoestringError):
    code = "wrong-state"
    title = "The job is not in a state for that"


class StaleTransition(WrongState):
    """A guarded update matched no row: somebody else moved it first."""

    code = "stale"


class IdempotencyConflict(ShoestringError):
    """The same Idempotency-Key with another body."""

    code = "idempotency-mismatch"
    title = "This Idempotency-Key was used with another request"


class IdempotencyInFlight(ShoestringError):
    """The same Idempotency-Key, whose first request has not finished."""

    code = "idempotency-in-flight"
    title = "The first request with this Idempotency-Key is still running"
    retryable = True


class PreconditionFailed(ShoestringError):
    """If-Match named another version."""

    code = "precondition-failed"
    title = "It has changed since you read it"


class TooLarge(ShoestringError):
    code = "too-large"
    title = "The request body is too large"


class BatchGap(ShoestringError):
    """A numbered batch came out of order; `fields['expected']` says which number is next."""

    code = "batch-gap"
    title = "Batches are missing"


class AgentRefused(ShoestringError):
    """A boot token or a session that is not this machine's."""

    code = "agent-refused"
    title = "This machine is not known"


class PointsMissing(ShoestringError):
    """A checkpoint came before the batches it stands on."""

    code = "points-missing"
    title = "Send the batches before the checkpoint"
    retryable = True


class StoreTooNew(ShoestringError):
    """The data folder was written by a newer version."""

    code = "store-too-new"
    title = "This data folder belongs to a newer version"


class Unavailable(ShoestringError):
    """A service that is needed did not answer in time."""

    code = "unavailable"
    title = "A service is not available"
    retryable = True
