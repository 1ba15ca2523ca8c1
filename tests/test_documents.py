# SPDX-License-Identifier: Apache-2.0
"""The documents of the repository: what they link and name is there, and the README tells a new user what they need."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
SOURCES = ("core", "api", "worker", "trainer", "client", "web/src", "tests", "bench", "scripts")
FILE = re.compile(r"`([\w./-]+\.(?:py|tsx?))(?:: ([\w.]+))?[`,;]")
"""A file, or a file and what is in it, such as `control_loop.py: ControlLoop.tick`."""
REST_PATH = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) (/(?:v1|agent)/[\w/{}:-]+)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_that_exists_and_to_a_heading_in_it(page: Path) -> None:
    for path, heading in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{path} is not there"
        if heading and target.suffix == ".md":
            assert heading in headings(target), f"{path}#{heading} is no heading"


def test_every_file_that_a_page_names_exists_and_has_what_it_is_named_for() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for folder in SOURCES for path in (ROOT / folder).rglob("*.*")}
    named = {(page.name, *found) for page in PAGES for found in FILE.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 50
    for page, name, content in named:
        paths = [path for place, path in files.items() if f"/{place}".endswith(f"/{name}")]
        assert paths, (page, name)
        if content:
            defined = re.compile(rf"\b(?:def|class|function|const) {content.rpartition('.')[2]}\b")
            assert any(defined.search(path.read_text(encoding="utf-8")) for path in paths), (page, name, content)


def test_every_operation_that_a_page_names_is_in_the_openapi_document() -> None:
    paths = json.loads((ROOT / "web/openapi.json").read_text(encoding="utf-8"))["paths"]
    known = {
        (verb.upper(), re.sub(r"\{\w+\}", "ID", path)) for path, operations in paths.items() for verb in operations
    }
    pages = [page for page in PAGES if page.parent.name != "decisions"]  # these tell of the past, too
    named = {
        (page.name, verb, path) for page in pages for verb, path in REST_PATH.findall(page.read_text(encoding="utf-8"))
    }
    assert len(named) > 8
    for page, verb, path in named:
        assert (verb, re.sub(r"\{\w+\}|\bJOB\b", "ID", path)) in known, (page, verb, path)


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
