# SPDX-License-Identifier: Apache-2.0
"""API keys, without their secrets."""

from __future__ import annotations

from typing import cast

from shoestring_core import rest
from shoestring_core.decide.access import SCOPES, KeyKind, Scope
from shoestring_core.store import identity
from shoestring_core.store.tables import KeyRow

from shoestring_api.serializers.times import to_datetime


def serialize_key(row: KeyRow) -> rest.Key:
    return rest.Key(
        id=row.id,
        kind=cast("KeyKind", row.kind),
        name=row.name,
        scopes=listed_scopes(identity.load_scopes(row.scopes)),
        job=row.job,
        created_at=to_datetime(row.created_at),
        expires_at=to_datetime(row.expires_at),
        revoked_at=to_datetime(row.revoked_at),
        last_used_at=to_datetime(row.last_used_at),
    )


def listed_scopes(scopes: frozenset[Scope] | None) -> list[Scope] | None:
    return None if scopes is None else [scope for scope in SCOPES if scope in scopes]
