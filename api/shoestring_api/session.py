# SPDX-License-Identifier: Apache-2.0
"""Who is asking: sign-in, sign-out, API keys."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response
from shoestring_core import rest
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/v1", tags=["people"])


def _not_yet() -> Unavailable:
    return Unavailable("The store is being built.")


@router.get("/me")
def me() -> rest.Me:
    """The caller."""
    raise _not_yet()


@router.post("/session")
def sign_in(body: rest.Login, response: Response) -> rest.Me:
    """Sign a browser in by an API key or a one-time code: sets a same-site cookie."""
    raise _not_yet()


@router.delete("/session", status_code=204)
def sign_out() -> None:
    """End the browser's session."""
    raise _not_yet()


@router.get("/keys")
def keys() -> rest.KeyList:
    """The caller's API keys."""
    raise _not_yet()


@router.post("/keys", status_code=201)
def create_key(body: rest.NewKey) -> rest.CreatedKey:
    """Make an API key. Its secret is shown this once."""
    raise _not_yet()


@router.delete("/keys/{key_id}", status_code=204)
def revoke_key(key_id: UUID) -> None:
    """Revoke an API key."""
    raise _not_yet()
