# SPDX-License-Identifier: Apache-2.0
"""Domain errors, each with a message and a hint for the user. The API maps `code` to an HTTP status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoestring_core import wording


@dataclass(frozen=True)
class Problem:
    """A mistake in an input: where (JSON pointer), what, and the value that was probably meant."""

    pointer: str
    message: str
    code: str = "invalid"
    suggestion: str | None = None

    @property
    def sentence(self) -> str:
        """Such as "resources.nodes: Give at least 1."; the message alone, where it is about the whole input."""
        place = dotted(self.pointer)
        return f"{place}: {self.message}" if place else self.message


def dotted(pointer: str) -> str:
    """A JSON pointer as people write it: resources.gpu. Empty: the whole input."""
    parts = pointer.removeprefix("/").split("/")
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in parts)


class ShoestringError(Exception):
    """Base class of domain errors. `code` is stable, `title` describes the class, the message the single case."""

    code = "internal"
    title = "Internal error"
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields
        """Extension members of the problem document, JSON-serializable (money as decimal strings)."""


class InvalidSpec(ShoestringError):
    """The job spec is invalid; lists all problems."""

    code = "invalid-spec"
    title = "The job spec is invalid"

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(problem.sentence for problem in problems))


class InvalidList(ShoestringError):
    """A class list has odd lines; lists all problems."""

    code = "invalid-list"
    title = "The class list is invalid: nobody was added"

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.pointer}: {problem.message}" for problem in problems[:5]))


class InvalidRequest(ShoestringError):
    code = "invalid-request"
    title = "Invalid request"


class DecisionError(ShoestringError):
    """What a decision refuses: worded from a reason, whose facts are members of the problem document."""

    def __init__(self, reason: wording.Reason, **fields: Any) -> None:
        fields = {"reason": reason.code, **reason.facts, **fields}
        super().__init__(wording.sentence(reason), hint=reason.hint(), **fields)
        self.reason = reason


class NotFound(ShoestringError):
    """It does not exist, or belongs to another team: callers can't tell which."""

    code = "not-found"
    title = "Not found"


class Unauthenticated(ShoestringError):
    code = "unauthenticated"
    title = "Authentication required"


class Forbidden(ShoestringError):
    code = "forbidden"
    title = "Permission denied"


class BudgetExceeded(DecisionError):
    """A limit of the job, its team or the organization is too low for it, however much is spent already."""

    code = "budget-exceeded"
    title = "Budget exceeded"


class BudgetUnmovable(DecisionError):
    """Dollars that can't be granted or transferred so."""

    code = "budget-unmovable"
    title = "The budget can't be moved so"


class TimeLimitUnmet(DecisionError):
    """No available machines are estimated to finish the job within limits.time."""

    code = "time-limit-unmet"
    title = "limits.time can't be met"


class DeadlineUnmet(DecisionError):
    """limits.deadline can't be promised."""

    code = "deadline-unmet"
    title = "limits.deadline can't be met"


class InvalidState(DecisionError):
    code = "invalid-state"
    title = "Not possible in this state"


class StaleTransition(InvalidState):
    """A guarded UPDATE matched no row: the state has changed since it was read."""

    code = "stale"


class IdempotencyConflict(ShoestringError):
    """The Idempotency-Key was used with another request body."""

    code = "idempotency-mismatch"
    title = "This Idempotency-Key was used with another request"


class IdempotencyInFlight(ShoestringError):
    """The first request with this Idempotency-Key has not finished."""

    code = "idempotency-in-flight"
    title = "The first request with this Idempotency-Key is still running"
    retryable = True


class PreconditionFailed(ShoestringError):
    """If-Match names another version."""

    code = "precondition-failed"
    title = "The resource has changed since it was read"


class TooMany(ShoestringError):
    """As many exist as docs/limits.md allows."""

    code = "too-many"
    title = "Too many"


class TooLarge(ShoestringError):
    code = "too-large"
    title = "Too large"


class BatchGap(ShoestringError):
    """A batch has the wrong number; `fields['expected']` is the next one."""

    code = "batch-gap"
    title = "Batches are missing"


class AgentRefused(ShoestringError):
    """The boot token or session does not belong to the machine."""

    code = "agent-refused"
    title = "Machine not authenticated"


class CheckpointAheadOfBatches(ShoestringError):
    """A checkpoint was committed before the batches up to its step were stored."""

    code = "batches-missing"
    title = "Batches before the checkpoint are missing"
    retryable = True


class StoreTooNew(ShoestringError):
    """The database schema is newer than this version."""

    code = "store-too-new"
    title = "This data folder belongs to a newer version"


class Unavailable(ShoestringError):
    """A required service did not respond in time."""

    code = "unavailable"
    title = "Service unavailable"
    retryable = True


class DatabaseUnavailable(Unavailable):
    """The database did not respond in time, or can't be written: nothing can be done without it."""


def explain_setting(place: Sequence[int | str], message: str) -> str:
    """What is wrong with a setting of a process, by the name of its variable. `place`: of pydantic, () for several."""
    name = "__".join(str(part) for part in place if isinstance(part, str)).upper()
    said = message.removeprefix("Value error, ")  # pydantic's, before a validator's own words
    if name and message == "Field required":  # pydantic's
        return f"SHOESTRING_{name} is not set."
    return f"SHOESTRING_{name}: {said}" if name else said
