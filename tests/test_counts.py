# SPDX-License-Identifier: Apache-2.0
"""No sentence says "1 images": whatever may be one is counted by `wording.units.counted`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from shoestring_core.wording.units import counted

from tests.test_architecture import PACKAGES, ROOT

NOUNS = (
    "accounts", "artifacts", "attempts", "batches", "budgets", "bytes", "characters", "checkpoints", "classes",
    "days", "entries", "epochs", "errors", "events", "fields", "files", "folders", "generations", "hours", "images",
    "instances", "intervals", "items", "jobs", "keys", "labels", "lines", "machines", "members", "minutes", "nodes",
    "offers", "options", "parameters", "points", "problems", "processes", "ranks", "regions", "requests", "rows",
    "runs", "samples", "shards", "slots", "steps", "streams", "teams", "tensors", "threads", "times", "vCPUs",
    "values", "viewers",
)  # fmt: skip
COUNT = re.compile(
    rf" (?:(?!(?:and|has|holds|contains|in|needs|of|takes|that|with)\b)[a-z-]+ ){{0,2}}(?:{'|'.join(NOUNS)})\b(?!/s)"
)
NEVER_ONE = {
    "classes": ("len(classes)", "len(index.classes)", "len(train.classes)"),
    "several, as it is refused": ("len(added) + len(surplus)", "len(found)", "nodes * procs", "self.processes"),
    "of a gang or a job": ("distributed.world_size", "epoch.expected", "len(self.shards)", "threads"),
    "large": (
        "limit",
        "self._limit",
        "self.limit",
        "self._max_bytes",
        "len(raw)",
        "len(content)",
        "member.size",
        "size",
    ),
    "measured": ("intervals", "job.intervals", "settings.epochs", "epochs", "len(dataset.targets)", "len(labels)"),
    "words": (
        "account",
        "self.type",
        "self.name",
        "rank.rank",
        "array.dtype",
        "CLASS_NAME_FILES[0]",
        "folder / INDEX_FILE",
    ),
}


def uncounted(source: str) -> Iterator[tuple[int, str]]:
    """Line and expression of what stands before a noun in the plural in an f-string."""
    known = {expression for group in NEVER_ONE.values() for expression in group}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    expression = ast.unparse(value.value)
                    is_constant = re.fullmatch(r"(\w+\.)*[A-Z_]+", expression)
                    if COUNT.match(str(text.value)) and not is_constant and expression not in known:
                        yield node.lineno, expression


def test_a_noun_agrees_with_its_count() -> None:
    assert [counted(count, "step") for count in (0, 1, 2, 1200)] == ["0 steps", "1 step", "2 steps", "1,200 steps"]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]


def test_sentences_count_what_may_be_one() -> None:
    paths = [path for folder, package in PACKAGES.items() for path in (ROOT / folder / package).rglob("*.py")]
    found = [(str(path.relative_to(ROOT)), *each) for path in paths for each in uncounted(path.read_text())]
    assert not found
    assert not [path for path in paths if re.search(r"machine\(s\)|step\(s\)|file\(s\)", path.read_text())]
    assert len(list(uncounted('f"{count:,} small images"; f"{counted(n, \'image\')} more"; f"{MAX_FILES} files"'))) == 1
