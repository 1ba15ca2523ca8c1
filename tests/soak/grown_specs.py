# SPDX-License-Identifier: Apache-2.0
"""Specs grown from valid ones are parsed, or refused with a sentence for each place; nothing else happens.

    python -m tests.soak.grown_specs --seed N

20,000 specs: each starts as a valid one and is changed at a few places, as a tree or as YAML text. What is parsed comes
back the same from what is stored of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import traceback
from collections import Counter
from typing import Any

from shoestring_core import recipes, spec
from shoestring_core.errors import InvalidSpec

SEEDS, COUNT, REPORTED = 1, 20_000, 10
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    faults, outcomes = parse_grown_specs(options.seed, COUNT)
    print("\n".join(faults[:REPORTED]))
    print(f"{dict(outcomes)}, {len(faults)} faults", flush=True)
    return 1 if faults else 0


def parse_grown_specs(seed: int, count: int) -> tuple[list[str], Counter[str]]:
    """Parse `count` specs; return what went wrong, and how many were parsed or refused."""
    faults, outcomes = [], Counter[str]()
    for number in range(count):
        source = grown_spec(random.Random(f"{seed}/{number}"))
        try:
            parsed = spec.parse(source)
            assert spec.JobSpec.from_stored(json.loads(json.dumps(parsed.resolved()))) == parsed
            outcomes["parsed"] += 1
        except InvalidSpec as refused:
            outcomes["refused"] += 1
            messages = [problem.message for problem in refused.problems]
            if not messages or not all(message.endswith((".", "?")) and len(message) < 3_000 for message in messages):
                faults.append(f"number {number}: {messages}")
        except BaseException:  # noqa: BLE001 - that nothing else is raised is what is tested
            faults.append(f"number {number}: {traceback.format_exc()}")
    return faults, outcomes


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


if __name__ == "__main__":
    sys.exit(main())
