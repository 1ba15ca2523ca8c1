# SPDX-License-Identifier: Apache-2.0
"""The audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from shoestring_core.rest.base import Resource


class AuditEntry(Resource):
    """Who did what, on what, when and from where."""

    id: str
    at: datetime
    actor: str
    action: str
    """The operation, as the OpenAPI document names it."""
    subject: str
    detail: dict[str, Any]
    address: str
    """Empty for commands of the service's operator."""
    credential: str


class AuditPage(Resource):
    entries: list[AuditEntry]
    """The newest first."""
    next_cursor: str | None = None


class AuditFault(Resource):
    entry: int
    """Its number in the chain, from 1; 0: of the seals."""
    text: str


class AuditVerification(Resource):
    """What a look at the whole audit log found."""

    intact: bool
    """No fault in what is sealed and chained."""
    chained: int
    """Entries in the chain."""
    sealed: int
    """Of these, how many the newest seal in the object store covers."""
    faults: list[AuditFault]
    fault_count: int
    """Of all; the first ones are listed."""
    unsealed: list[AuditEntry]
    """Entries that no seal covers yet, the oldest first, at most 100: a change of these can't be found."""
    unsealed_count: int
