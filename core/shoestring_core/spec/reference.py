# SPDX-License-Identifier: Apache-2.0
"""docs/spec.md, generated from the model: `python -m shoestring_core.spec.reference > docs/spec.md`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shoestring_core import recipes
from shoestring_core.spec import JobSpec, NotSupportedYet, sections_of

_INTRODUCTION = """\
# The job spec

[Fields](#fields) · [Recipes](#recipes)

A job spec is YAML or JSON. The smallest one is `recipe: digits/quickstart`. A fuller one:

```yaml
name: digits-overnight
recipe: digits/quickstart
params: {epochs: 80, lr: 0.05, seed: 7}
resources: {nodes: 2, spot: only}
limits: {cost: 3.00, time: 2h}
goal: {metric: val/acc, reach: 0.97}
checkpoint: {every: 30s}
retry: {max: 8}
tags: {assignment: hw3}
on_budget: pause
```

On the command line: `shoestring submit digits/quickstart epochs=80 seed=7 resources.nodes=2 limits.cost=3.00`.
Plain keys are parameters of the recipe; dotted keys and names of fields set the fields below.
Over REST, `POST /v1/jobs` takes it as `{"spec": {"recipe": "digits/quickstart"}}`.
`shoestring submit digits/quickstart init=job/JOB` initializes the weights from another job of the team.

- Money is read exactly as written, up to six decimals.
- Durations are `90s`, `5m`, `2h`, `1d`, `1h30m` or plain seconds.
- An unknown field or parameter is an error that names the nearest one.
- All mistakes are reported at once, each with the path of its field.
- A field that is *not yet* supported is validated and then refused, with what to do instead. It is never ignored.
- Anchors, aliases, tags, repeated keys, more than one document and files over 256 KiB are refused.

This page is generated: `python -m shoestring_core.spec.reference > docs/spec.md`.
"""


def page() -> str:
    """The whole page in Markdown."""
    parts = [_INTRODUCTION, "## Fields", "", *_fields(), "", "## Recipes", "", _contents(), *_recipes()]
    return "\n".join(parts) + "\n"


def _fields() -> Iterator[str]:
    yield "| field | default | supported | meaning |"
    yield "|---|---|---|---|"
    yield from _rows(JobSpec, "", supported="yes")


def _rows(model: type[BaseModel], prefix: str, supported: str) -> Iterator[str]:
    nested = sections_of(model)
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        support = supported if supported != "yes" else _support(field)
        is_section = name in nested and not field.is_required() and field.default is not None
        default = "" if is_section else f"`{_default(field)}`"
        yield f"| `{prefix}{name}` | {default} | {support} | {_description(field)} |"
        if name in nested:
            yield from _rows(nested[name], f"{prefix}{name}.", support)


def _support(field: FieldInfo) -> str:
    unsupported = next((mark for mark in field.metadata if isinstance(mark, NotSupportedYet)), None)
    if unsupported is None:
        return "yes"
    supported = [value for value in unsupported.supported if value not in (None, (), {})]
    return "only " + ", ".join(f"`{value}`" for value in supported) if supported else "not yet"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default: Any = field.get_default(call_default_factory=True)
    return "null" if default is None else default if isinstance(default, str) else json.dumps(default)


def _description(field: FieldInfo) -> str:
    words = " ".join((field.description or "").split()).replace("|", "\\|")
    choices = list(_choices(field.annotation))
    return f"{words} One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else words


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _contents() -> str:
    """Links to the recipes, by the anchors that GitHub makes of headings."""
    anchors = {recipe.name: re.sub(r"[^a-z0-9-]", "", recipe.reference) for recipe in recipes.all()}
    return " · ".join(f"[{name}](#{anchor})" for name, anchor in anchors.items())


def _recipes() -> Iterator[str]:
    for recipe in recipes.all():
        yield f"\n### {recipe.reference}\n\n{recipe.title}. {recipe.description}\n"
        yield "| parameter | type | default | range | meaning |"
        yield "|---|---|---|---|---|"
        for name, param in recipe.params.items():
            default = json.dumps(param.default) if not isinstance(param.default, str) else param.default
            yield f"| `{name}` | {param.type} | `{default}` | {_range(param)} | {param.help} |"


def _range(param: recipes.Param) -> str:
    if param.choices is not None:
        return ", ".join(f"`{choice}`" for choice in param.choices)
    if param.min is None and param.max is None:
        return ""
    low = "" if param.min is None else f"{param.min:.10g}"
    return f"{low}…" + ("" if param.max is None else f"{param.max:.10g}")


if __name__ == "__main__":
    sys.stdout.write(page())
