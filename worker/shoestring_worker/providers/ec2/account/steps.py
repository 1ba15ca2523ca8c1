# SPDX-License-Identifier: Apache-2.0
"""Steps that make what is not there, each reported as a sentence: run again, they continue from where they stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Steps:
    """`told`: what was done, or in a dry run would be; `created`: how many of them make something."""

    report: Callable[[str], None]
    dry_run: bool = False
    told: list[str] = field(default_factory=list)
    created: int = 0

    def ensure(self, what: str, found: str | None, create: Callable[[], Any]) -> str | None:
        """The id of what there is, or of what is created now; None in a dry run that would create it."""
        if found is not None:
            self.say(f"there is  {what}: {found}")
            return found
        self.created += 1
        if self.dry_run:
            self.say(f"to create {what}")
            return None
        created = str(create())
        self.say(f"created   {what}: {created}")
        return created

    def say(self, step: str) -> None:
        self.told.append(step)
        self.report(step)
