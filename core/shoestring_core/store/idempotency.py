# SPDX-License-Identifier: Apache-2.0
"""Idempotency keys: the response to the first request with a key, stored for those that repeat it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select, update

from shoestring_core.errors import IdempotencyConflict, IdempotencyInFlight, InvalidRequest
from shoestring_core.store.tables import IdempotencyRow
from shoestring_core.store.transactions import Write

S = 1_000_000
RESPONSE_TTL = 48 * 3_600 * S
"""A response is repeated at least so long, until `delete_expired`."""
IN_FLIGHT_TTL = 60 * S
"""A request without a response by then died with its process; its key may be used again."""


@dataclass(frozen=True)
class StoredResponse:
    """The response to the first request with a key."""

    status: int
    body: str


def begin_request(db: Write, principal: str, key: str, body_sha: str) -> StoredResponse | None:
    """Claim an Idempotency-Key. Returns None for the first request, whose response must be stored; else that response.

    principal  whose key it is: different principals may use the same key
    body_sha   hash of method, path and body
    Raises IdempotencyConflict for another request under the same key, IdempotencyInFlight while the first still runs.
    """
    if not 1 <= len(key) <= 200 or not key.isprintable():
        raise InvalidRequest("An Idempotency-Key must have 1 to 200 printable characters.", hint="Use a fresh UUID.")

    if db.insert_new(
        IdempotencyRow, principal=principal, key=key, body_sha=body_sha, status=None, body=None, begun_at=db.now
    ):
        return None
    row = (IdempotencyRow.principal == principal, IdempotencyRow.key == key)
    first = db.sql.execute(select(IdempotencyRow).where(*row)).scalar_one()
    if first.body_sha != body_sha:
        raise IdempotencyConflict(
            "This Idempotency-Key was used with another request.", hint="Use a fresh key for each new request."
        )
    if first.status is not None:
        return StoredResponse(first.status, first.body or "")
    stale = (
        IdempotencyRow.status.is_(None),
        IdempotencyRow.begun_at == first.begun_at,
        IdempotencyRow.begun_at < db.now - IN_FLIGHT_TTL,
    )
    if db.execute(update(IdempotencyRow).where(*row, *stale).values(begun_at=db.now)) == 1:
        return None
    raise IdempotencyInFlight(
        "The first request with this Idempotency-Key is still running.", hint="Retry in a moment."
    )


def store_response(db: Write, principal: str, key: str, status: int, body: str) -> None:
    """Store the response for repeated requests, at the transaction's end."""
    db.defer(_STORE_RESPONSE, {"of": principal, "under": key, "status": status, "body": body})


def delete_expired(db: Write) -> None:
    """Delete the responses of more than RESPONSE_TTL ago; their keys may then be used for new requests."""
    db.execute(delete(IdempotencyRow).where(IdempotencyRow.begun_at < db.now - RESPONSE_TTL))


_STORE_RESPONSE = (
    update(IdempotencyRow)
    .where(
        IdempotencyRow.principal == bindparam("of"),
        IdempotencyRow.key == bindparam("under"),
        IdempotencyRow.status.is_(None),
    )
    .values(status=bindparam("status"), body=bindparam("body"))
)
