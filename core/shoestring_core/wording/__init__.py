# SPDX-License-Identifier: Apache-2.0
"""Sentences for users. Decisions give reasons, a code with typed facts; only this package puts them into English.

Rows, events and the wire carry code and facts. A sentence is rendered when it is shown, so that programs decide by
codes, and rewording a sentence changes no stored row and no client. Each module has the reasons of one subject, and
each reason words itself; to add one, add a class.

Two kinds of sentences are worded elsewhere, because they quote what a client sent: problems of a job spec
(`spec.messages`), and errors about requests that are malformed or name nothing (raised where they are noticed).
Messages of exceptions in training code are data: a reason quotes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring_core.wording import (
    agents,
    attempts,
    audit,
    bills,
    budget,
    deadlines,
    jobs,
    machines,
    notices,
    offers,
    people,
    queue,
    quotes,
    sizing,
    waits,
)
from shoestring_core.wording.reason import NestedReason, Reason, load, parse

__all__ = [
    "NestedReason", "Reason", "agents", "attempts", "audit", "bills", "budget", "deadlines", "jobs", "load", "machines",
    "notices", "offers", "parse", "people", "queue", "quotes", "render", "sentence", "sizing", "waits",
]  # fmt: skip


def sentence(reason: Reason) -> str:
    """The sentence for a reason."""
    return render(reason.code, reason.facts)


def render(code: str, facts: Mapping[str, Any]) -> str:
    """The sentence for a reason as it was stored: `render(**row.reason)`. Never raises."""
    return load(code, facts).text()
