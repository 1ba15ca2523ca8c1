# SPDX-License-Identifier: Apache-2.0
"""The documents of the repository: their links lead somewhere, and the README tells a new user what they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_that_exists_and_to_a_heading_in_it(page: Path) -> None:
    for path, heading in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{path} is not there"
        if heading and target.suffix == ".md":
            assert heading in headings(target), f"{path}#{heading} is no heading"


@pytest.mark.parametrize(
    "told",
    [
        "`.venv/bin` after `make demo`",
        "source .venv/bin/activate",
        "JOB: its id as `ls` shows it, or its name",
        "`--budget` is the first limit",
        "[invites teammates by a link](docs/operations/teams.md#invitations-and-class-lists)",
        "unverified on AWS itself",
        "Your **own training script**",
    ],
)
def test_the_readme_tells_what_a_new_user_needs_to_know(told: str) -> None:
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    lines = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in lines)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}
