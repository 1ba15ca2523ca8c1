# SPDX-License-Identifier: Apache-2.0
"""Specs grown from valid ones are parsed, or refused with a sentence that names the place; nothing else happens.

    python -m tests.soak.grown_specs --case specs --seed N

5,000 specs a seed: each starts as a valid one and is changed at a few places, as a tree or as YAML text. What is parsed
comes back the same from what is stored of it.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from typing import Any

from shoestring_core import recipes, spec
from shoestring_core.errors import InvalidSpec, Problem

from tests.fuzzing import Case, Findings, main, summarise, try_each

__all__ = ["CASES", "SEEDS", "summarise"]

SEEDS = 4
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 10**18, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "0",
    "auto", "none", "true", "1h", "-5m", "9" * 400, "0:1 1:0", "1/0:1",
    "x" * 5000, "a\tb", "\0", "\u2028", "\ud800", "2..4",
    "s3://b/c", "/", "/data/a-{0..99999999999}.tar", "job/0", [], [[]], ["a", "a"], {}, {"": 1}, {"a": {"b": []}},
    b"bytes", (1, 2), object,
)  # fmt: skip
ODD_TEXT = (
    "\t",
    "\0",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "{",
    "]",
    ": ",
    "\u2028",
    "- ",
    "<<: ",
    "'",
    '"',
    "#",
    "%",
)
SECTIONS: dict[str, Any] = {
    "resources": {"nodes": 2, "procs": 2, "min": 1, "spot": "only"},
    "limits": {"cost": "2.50", "time": "2h"},
    "goal": {"metric": "val/acc", "reach": 0.9},
    "checkpoint": {"every": "30s"},
    "retry": {"max": 3, "on": ["interruption"]},
    "outputs": {"export": ["onnx"]},
    "tags": {"team": "vision"},
    "name": "a job",
    "on_budget": "stop",
    "init": "/models/a",
}


def parse_grown_specs(seed: int, count: int) -> Findings:
    """Parse specs."""

    def parse(number: int) -> str:
        source = grown_spec(random.Random(f"{seed}/{number}"))
        try:
            parsed = spec.parse(source)
        except InvalidSpec as error:
            return _refused(error, source)
        assert spec.JobSpec.from_stored(json.loads(json.dumps(parsed.resolved()))) == parsed
        return "parsed"

    return try_each(parse, count)


def _refused(error: InvalidSpec, source: dict[str, Any] | str) -> str:
    assert error.problems
    assert not (unclear := [problem for problem in error.problems if not _is_clear(problem, source)]), unclear
    return "refused"


def _is_clear(problem: Problem, source: dict[str, Any] | str) -> bool:
    """Whether it is a sentence about a field, about a line of text that can't be parsed, or about the whole spec."""
    whole = problem.code in ("invalid-key", "invalid-type")
    unparsed = isinstance(source, str) and "line" in problem.message.lower()
    return (
        (problem.pointer.startswith("/") or whole or unparsed)
        and problem.message.endswith((".", "?"))
        and len(problem.message) < 3_000
    )


def grown_spec(draw: random.Random) -> dict[str, Any] | str:
    """Return a valid spec with a few changes, as a tree or as text."""
    recipe = draw.choice(recipes.all())
    tree: dict[str, Any] = {"recipe": recipe.name}
    if recipe.data.kind != "digits":
        tree["data"] = {"train": "/data/images"}
    sections = copy.deepcopy(SECTIONS)
    tree |= {name: sections[name] for name in draw.sample(list(SECTIONS), draw.randrange(5))}
    names = draw.sample(list(recipe.params), draw.randrange(6))
    tree["params"] = {name: recipe.params[name].default for name in names if recipe.params[name].default is not None}
    if draw.random() < 0.3:
        text = json.dumps(tree, indent=1)
        for _ in range(draw.randrange(4)):
            place = draw.randrange(len(text) + 1)
            text = text[:place] + draw.choice((*ODD_TEXT, "")) + text[place + draw.randrange(3) :]
        return text
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
        _change(tree, draw)
    return tree


def _change(tree: dict[str, Any], draw: random.Random) -> None:
    """Change one value, key or section somewhere in the tree."""
    node: Any = tree
    while True:
        below = [
            value for value in (node.values() if isinstance(node, dict) else node) if isinstance(value, dict | list)
        ]
        if not below or draw.random() < 0.3:
            break
        node = draw.choice(below)
    if not node:
        node.update(new=copy.deepcopy(draw.choice(ODD_VALUES))) if isinstance(node, dict) else node.append(
            copy.deepcopy(draw.choice(ODD_VALUES))
        )
        return
    key: Any = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
    match draw.randrange(4):
        case 0 if isinstance(node, dict):
            node[draw.choice((f"{key}s", "", "new", 3, None))] = copy.deepcopy(draw.choice(ODD_VALUES))
        case 1:
            del node[key]
        case 2:
            node[key] = copy.deepcopy(draw.choice(list(SECTIONS.values())))
        case _:
            node[key] = copy.deepcopy(draw.choice(ODD_VALUES))


CASES = {"specs": Case(parse_grown_specs, 5_000)}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
