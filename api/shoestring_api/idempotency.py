# SPDX-License-Identifier: Apache-2.0
"""Idempotency keys: a repeated request gets the first response again instead of a second effect."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from fastapi import Response
from shoestring_core import rest
from shoestring_core.store import idempotency
from shoestring_core.store.identity import Principal
from shoestring_core.store.transactions import Write

from shoestring_api.app_state import AppState


def run_once(
    state: AppState,
    caller: Principal,
    key: str | None,
    request: str,
    status: int,
    work: Callable[[Write], rest.Job | rest.Budget | rest.BudgetRequest],
    collection: str = "/v1/jobs",
    *,
    only_inserts: bool = False,
) -> Response:
    """Run `work` in one transaction, at most once for each Idempotency-Key, and respond with what it returns.

    request       text that identifies what was requested; another request under the same key is rejected
    collection    path below which the returned resource has its id
    only_inserts  see Store.write
    """
    principal, sha = f"{caller.team}:{caller.user}", hashlib.sha256(request.encode()).hexdigest()

    def transact(db: Write) -> tuple[int, str, str, bool]:
        if key is not None and (first := idempotency.begin_request(db, principal, key, sha)) is not None:
            return first.status, first.body, json.loads(first.body)["id"], True
        made = work(db)
        body = made.model_dump_json()
        if key is not None:
            idempotency.store_response(db, principal, key, status, body)
        return status, body, str(made.id), False

    code, body, made_id, replayed = state.store.write(transact, batch=True, only_inserts=only_inserts)
    response = Response(body, status_code=code, media_type="application/json")
    response.headers["Location"] = f"{collection}/{made_id}"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response
