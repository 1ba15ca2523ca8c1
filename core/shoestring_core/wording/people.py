# SPDX-License-Identifier: Apache-2.0
"""Why a class list or an invitation is refused."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import Reason
from shoestring_core.wording.units import counted


@dataclass(frozen=True)
class OddColumns(Reason):
    code = "class_list_columns"
    columns: str

    def text(self) -> str:
        return f"The first line must name the columns: name, and optionally role and limit. It has: {self.columns}."


@dataclass(frozen=True)
class EmptyList(Reason):
    code = "class_list_empty"

    def text(self) -> str:
        return "The list names nobody."


@dataclass(frozen=True)
class TooManyLines(Reason):
    code = "class_list_too_long"
    limit: int

    def text(self) -> str:
        return f"A list names at most {self.limit:,} members: split it."


@dataclass(frozen=True)
class OddCells(Reason):
    code = "class_list_cells"
    cells: int
    columns: int

    def text(self) -> str:
        return f"This line has {counted(self.cells, 'cell')}, but the list has {counted(self.columns, 'column')}."


@dataclass(frozen=True)
class NotCsv(Reason):
    code = "class_list_not_csv"
    message: str

    def text(self) -> str:
        return f"This is not CSV: {self.message}."


@dataclass(frozen=True)
class NameRepeated(Reason):
    code = "class_list_name_repeated"
    name: str
    line: int

    def text(self) -> str:
        return f"{self.name} is already in line {self.line}."


@dataclass(frozen=True)
class NameTaken(Reason):
    code = "name_taken"
    name: str

    def text(self) -> str:
        return f"The name {self.name} is taken. Choose another."


@dataclass(frozen=True)
class OddName(Reason):
    code = "name_odd"
    limit: int

    def text(self) -> str:
        return f"A name is 1 to {self.limit} printable characters, without spaces around it."


@dataclass(frozen=True)
class OddRole(Reason):
    code = "role_odd"
    role: str
    roles: str

    def text(self) -> str:
        return f"{self.role} is not a role. Roles: {self.roles}."


@dataclass(frozen=True)
class OddLimit(Reason):
    code = "limit_odd"
    message: str

    def text(self) -> str:
        return f"The limit: {self.message}."


@dataclass(frozen=True)
class InvitationUsed(Reason):
    code = "invitation_used"

    def text(self) -> str:
        return "This invitation was used already."

    def hint(self) -> str:
        return "Sign in with your API key, or ask an admin of the team for another invitation."


@dataclass(frozen=True)
class InvitationExpired(Reason):
    code = "invitation_expired"

    def text(self) -> str:
        return "This invitation has expired."

    def hint(self) -> str:
        return "Ask an admin of the team for another one."


@dataclass(frozen=True)
class InvitationRevoked(Reason):
    code = "invitation_revoked"

    def text(self) -> str:
        return "This invitation was revoked."

    def hint(self) -> str:
        return "Ask an admin of the team for another one."
