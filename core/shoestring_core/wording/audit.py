# SPDX-License-Identifier: Apache-2.0
"""What a verification of an audit log finds."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import Reason
from shoestring_core.wording.units import counted


@dataclass(frozen=True)
class EntriesMissing(Reason):
    code = "audit_entries_missing"
    first: int
    last: int

    def text(self) -> str:
        if self.first == self.last:
            return f"Entry {self.first:,} is missing."
        return f"Entries {self.first:,} to {self.last:,} are missing."


@dataclass(frozen=True)
class EntryChanged(Reason):
    code = "audit_entry_changed"
    number: int

    def text(self) -> str:
        return f"Entry {self.number:,}, or its hash, is not what was written."


@dataclass(frozen=True)
class LogCut(Reason):
    code = "audit_log_cut"
    entries: int
    sealed: int

    def text(self) -> str:
        sealed = counted(self.sealed, "entry", "entries")
        return f"The log ends after entry {self.entries:,}, but what was sealed has {sealed}."


@dataclass(frozen=True)
class LogReplaced(Reason):
    code = "audit_log_replaced"
    sealed: int
    seal: int

    def text(self) -> str:
        return f"The log up to entry {self.sealed:,} is not the one that was sealed as number {self.seal:,}."


@dataclass(frozen=True)
class SealsLost(Reason):
    code = "audit_seals_lost"
    seal: int

    def text(self) -> str:
        return f"The database has lost seals: the object store has number {self.seal:,}."


@dataclass(frozen=True)
class SealMissing(Reason):
    code = "audit_seal_missing"
    seal: int

    def text(self) -> str:
        return f"Seal {self.seal:,} is missing from the object store."


@dataclass(frozen=True)
class SealForged(Reason):
    code = "audit_seal_forged"
    seal: int

    def text(self) -> str:
        return f"Seal {self.seal:,} in the object store is not what this service stored."


@dataclass(frozen=True)
class SealDiffers(Reason):
    code = "audit_seal_differs"
    seal: int

    def text(self) -> str:
        return f"Seal {self.seal:,} in the database differs from the one in the object store."
