# SPDX-License-Identifier: Apache-2.0
"""Whatever is changed in a sealed log is found, at the place where it is."""

from __future__ import annotations

import random
from dataclasses import astuple, fields, replace

import pytest
from shoestring_core.decide.audit import (
    FIRST_HASH,
    Entry,
    Link,
    Seal,
    hash_entry,
    read_seal,
    sign_seal,
    verify_chain,
)
from shoestring_core.wording import audit as wording

COUNT = 60
SEALED = 50


@pytest.fixture
def links() -> list[Link]:
    made, previous = [], FIRST_HASH
    for number in range(1, COUNT + 1):
        entry = Entry(f"{number:032x}", "t" * 32, number, "ada", "grant", "budget of ben", "{}", "10.0.0.1", "key 1")
        previous = hash_entry(previous, entry)
        made.append(Link(number, entry, previous))
    return made


@pytest.fixture
def seal(links: list[Link]) -> Seal:
    return Seal("t" * 32, 3, SEALED, links[SEALED - 1].hash, 1)


def test_what_was_written_is_intact_and_the_unsealed_end_may_be_missing(links: list[Link], seal: Seal) -> None:
    for end in range(SEALED, COUNT + 1):
        verdict = verify_chain(links[:end], seal)
        assert (verdict.faults, verdict.chained, verdict.sealed) == ([], end, SEALED)
    assert verify_chain([], None).faults == []


def test_every_edited_byte_is_found_at_its_entry(links: list[Link], seal: Seal, seed: int) -> None:
    randomly = random.Random(seed)
    for column in fields(Entry):
        number = randomly.randrange(COUNT)
        entry = links[number].entry
        assert entry is not None
        value = getattr(entry, column.name)
        edited = value + 1 if isinstance(value, int) else _edit(value, randomly)
        changed = [*links]
        changed[number] = replace(links[number], entry=replace(entry, **{column.name: edited}))
        assert [fault.number for fault in verify_chain(changed, seal).faults] == [number + 1], column.name


def test_every_edited_hash_is_found(links: list[Link], seal: Seal, seed: int) -> None:
    randomly = random.Random(seed)
    number = randomly.randrange(COUNT - 1)
    changed = [*links]
    changed[number] = replace(links[number], hash=_edit(links[number].hash, randomly))
    assert verify_chain(changed, seal).faults[0].number == number + 1


def test_every_removed_row_is_found(links: list[Link], seal: Seal) -> None:
    for number in range(COUNT - 1):
        without = links[:number] + links[number + 1 :]
        assert verify_chain(without, seal).faults[0].number == number + 1
        gone = [*links]
        gone[number] = replace(links[number], entry=None)
        assert [fault.number for fault in verify_chain(gone, seal).faults] == [number + 1]


def test_every_cut_end_before_the_seal_is_found(links: list[Link], seal: Seal) -> None:
    for end in range(SEALED):
        assert verify_chain(links[:end], seal).faults[-1].reason == wording.LogCut(end, SEALED)


def test_a_log_that_was_written_anew_is_not_the_one_that_was_sealed(links: list[Link], seal: Seal) -> None:
    anew, previous = [], FIRST_HASH
    for link in links[1:]:
        assert link.entry is not None
        previous = hash_entry(previous, link.entry)
        anew.append(Link(len(anew) + 1, link.entry, previous))
    verdict = verify_chain(anew, seal)
    assert [fault.number for fault in verdict.faults] == [SEALED]
    assert verdict.faults[0].reason == wording.LogReplaced(SEALED, 3)


def test_only_the_service_signs_seals(seal: Seal) -> None:
    content = sign_seal("secret", seal)
    assert read_seal("secret", content) == seal
    forged = content.replace(b"50", b"51", 1)
    for secret, given in (("other", content), ("secret", forged), ("secret", b"{}"), ("secret", b"\xff")):
        with pytest.raises(ValueError, match=r"signed|decode|codec"):
            read_seal(secret, given)


def test_no_text_moves_from_one_column_to_the_next_unseen(links: list[Link]) -> None:
    entry = links[0].entry
    assert entry is not None
    moved = replace(entry, actor=f'{entry.actor}", "{entry.action}', action="")
    assert astuple(moved) != astuple(entry)
    assert hash_entry(FIRST_HASH, moved) != hash_entry(FIRST_HASH, entry)


def _edit(text: str, randomly: random.Random) -> str:
    at = randomly.randrange(len(text))
    return text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
