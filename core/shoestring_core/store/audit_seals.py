# SPDX-License-Identifier: Apache-2.0
"""Seals of audit logs in the object store: written once each, and found without the database's help."""

from __future__ import annotations

from uuid import UUID

from shoestring_core.decide.audit import Fault, Seal, read_seal, sign_seal
from shoestring_core.errors import NotFound, PreconditionFailed, TooLarge
from shoestring_core.store.objects import Objects
from shoestring_core.wording import audit as wording

MAX_SEAL_BYTES = 4_096


def store_seal(objects: Objects, secret: str, seal: Seal) -> None:
    """Store a seal; again: no effect. Raises Unavailable."""
    try:
        objects.put(_key(seal.team, seal.number), sign_seal(secret, seal))
    except PreconditionFailed:
        return


def newest_seal(objects: Objects, secret: str, team: UUID, known: Seal | None) -> tuple[Seal | None, list[Fault]]:
    """The newest seal of a team that is stored, and what is wrong with the seals.

    known: the newest one that the database has. The store may lack it for some seconds. Seals are stored one after
    another, so that later ones than the database knows are found by their numbers. Raises Unavailable.
    """
    number = known.number if known else 0
    faults = []
    if _is_stored(objects, team, number + 1):
        number = _last_stored(objects, team, number + 1)
        faults.append(Fault(0, wording.SealsLost(number)))
    elif number and not _is_stored(objects, team, number):
        number -= 1
        if number and not _is_stored(objects, team, number):
            return None, [Fault(0, wording.SealMissing(number))]
    if not number:
        return None, faults
    try:
        seal = read_seal(secret, objects.read(_key(team.hex, number), MAX_SEAL_BYTES))
    except (ValueError, NotFound, TooLarge):
        return None, [*faults, Fault(0, wording.SealForged(number))]
    if (seal.team, seal.number) != (team.hex, number):
        return None, [*faults, Fault(0, wording.SealForged(number))]
    if known is not None and known.number == number and known != seal:
        faults.append(Fault(0, wording.SealDiffers(number)))
    return seal, faults


def _last_stored(objects: Objects, team: UUID, stored: int) -> int:
    """The last number behind one that is stored, found in logarithmic time."""
    step = 1
    while _is_stored(objects, team, stored + step):
        stored, step = stored + step, step * 2
    while step > 1:
        step //= 2
        if _is_stored(objects, team, stored + step):
            stored += step
    return stored


def _is_stored(objects: Objects, team: UUID, number: int) -> bool:
    return objects.head(_key(team.hex, number)) is not None


def _key(team: str, number: int) -> str:
    return f"audit/{team}/{number}.json"
