# SPDX-License-Identifier: Apache-2.0
"""Whether the local cloud isolates training processes, as the machine host says in machinehost.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WITHOUT_REMEDY = "docs/security.md says what isolation needs"


@dataclass(frozen=True)
class IsolationStatus:
    """Why training processes can't be isolated, "" if they are; and a line to type, if one helps."""

    problem: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, machinehost: Mapping[str, Any]) -> IsolationStatus:
        """From the content of machinehost.json."""
        found = machinehost.get("isolation", {"problem": "the machine host is of an older version"})
        return IsolationStatus(found.get("problem", ""), found.get("remedy", ""))

    def warning(self) -> str:
        """For the operator, who may change it."""
        consequence = "they run with this user's rights, and hooks are refused"
        return f"Jobs aren't isolated ({self.problem}): {consequence}. {self._advice()}"

    def hooks_refusal(self) -> str:
        """For the user whose hooks don't run."""
        return f"Hooks run only where jobs are isolated, and here they can't be ({self.problem}). {self._advice()}"

    def _advice(self) -> str:
        return f"To change that: {self.remedy}" if self.remedy else f"{WITHOUT_REMEDY}."
