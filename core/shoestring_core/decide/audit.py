# SPDX-License-Identifier: Apache-2.0
"""The audit log's chain: what each hash covers, and what a look at the whole chain finds.

The hash of an entry covers the entry and the hash before it, so the last one stands for the whole log. A seal is a
number of entries and the hash of the last of them, signed and kept outside of the database: someone who changes the
database can compute new hashes, but no other seals.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from shoestring_core.wording import Reason
from shoestring_core.wording import audit as wording

FIRST_HASH = "0" * 64
"""Stands before the first entry."""
MAX_FAULTS = 100
"""Faults that are named; more are only counted."""


@dataclass(frozen=True)
class Entry:
    """Who did what, on what, when, and from where.

    id          of the entry, in hex; later ones sort after earlier ones of the same process
    team        in hex
    at          µs UTC
    action      the operation, as the API names it
    subject     what it was done to, in words and with its id
    detail      facts of the change, as JSON
    address     the host that the request came from; "" for commands of the operator
    credential  how the actor was authenticated
    """

    id: str
    team: str
    at: int
    actor: str
    action: str
    subject: str
    detail: str
    address: str
    credential: str


@dataclass(frozen=True)
class Link:
    """A place in the chain: the entry's, and its hash. entry None: the entry is gone."""

    number: int
    entry: Entry | None
    hash: str


@dataclass(frozen=True)
class Seal:
    """The first `entries` entries of a team's log end with this hash. `number` counts the team's seals from 1."""

    team: str
    number: int
    entries: int
    hash: str
    at: int


@dataclass(frozen=True)
class Fault:
    """What is wrong, at an entry by its number from 1, or with the seals: 0."""

    number: int
    reason: Reason


@dataclass(frozen=True)
class Verdict:
    """What was found. sealed: how many entries the newest seal covers; the rest of `chained` is not sealed yet."""

    chained: int
    sealed: int
    faults: list[Fault]
    fault_count: int


def hash_entry(previous: str, entry: Entry) -> str:
    return hashlib.sha256(json.dumps([previous, *astuple(entry)], default=repr).encode()).hexdigest()


def verify_chain(links: Iterable[Link], seal: Seal | None) -> Verdict:
    """Compare a whole chain, in order, with its hashes and with the newest seal; None: there is no seal.

    Behind a fault the stored hash counts, so that each is found where it is.
    """
    faults: list[Fault] = []
    previous, expected = FIRST_HASH, 1
    at_seal: str | None = FIRST_HASH
    for link in links:
        if link.number != expected:
            faults.append(Fault(expected, wording.EntriesMissing(expected, link.number - 1)))
        elif link.entry is None:
            faults.append(Fault(link.number, wording.EntriesMissing(link.number, link.number)))
        elif hash_entry(previous, link.entry) != link.hash:
            faults.append(Fault(link.number, wording.EntryChanged(link.number)))
        if seal is not None and link.number == seal.entries:
            at_seal = link.hash
        previous, expected = link.hash, link.number + 1
    chained = expected - 1
    if seal is not None and chained < seal.entries:
        faults.append(Fault(expected, wording.LogCut(chained, seal.entries)))
    elif seal is not None and at_seal != seal.hash:
        faults.append(Fault(seal.entries, wording.LogReplaced(seal.entries, seal.number)))
    return Verdict(chained, seal.entries if seal else 0, faults[:MAX_FAULTS], len(faults))


def sign_seal(secret: str, seal: Seal) -> bytes:
    """The object that keeps a seal, signed with the service's secret."""
    body = json.dumps(astuple(seal))
    return json.dumps({"seal": body, "signature": _signature(secret, body)}).encode()


def read_seal(secret: str, content: bytes) -> Seal:
    """Raises ValueError if it isn't a seal that `sign_seal` made with this secret."""
    try:
        document = json.loads(content)
        body, signature = str(document["seal"]), str(document["signature"])
        if hmac.compare_digest(_signature(secret, body).encode(), signature.encode()):
            return Seal(*json.loads(body))
    except (KeyError, TypeError, UnicodeDecodeError):
        pass
    raise ValueError("not signed here")


def _signature(secret: str, body: str) -> str:
    return hmac.new(f"audit seal:{secret}".encode(), body.encode(), hashlib.sha256).hexdigest()
