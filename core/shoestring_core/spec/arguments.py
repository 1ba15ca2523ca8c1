# SPDX-License-Identifier: Apache-2.0
"""From the arguments of `submit RECIPE key=value …` to a spec tree."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from shoestring_core import document
from shoestring_core.document import format_value
from shoestring_core.errors import InvalidSpec, Problem
from shoestring_core.spec.model import JobSpec

_TEXT_FIELDS = ("name", "team", "limits", "data", "tags", "env", "init")
"""Fields whose values are text or, like money, must keep every digit."""
_FLAGS = [["data", "stream"]]
"""Fields in them that are true or false."""


def from_arguments(recipe: str, arguments: list[str]) -> dict[str, Any]:
    """Return the spec tree of a recipe and key=value arguments, JSON-serializable, for `parse` or for the API.

    A key is a parameter of the recipe; a dotted one (`limits.cost=3`) or the name of a field (`team=vision`) sets that
    field of the spec.
    Raises InvalidSpec for an argument that isn't key=value, or a key given twice.
    """
    tree: dict[str, Any] = {"recipe": recipe}
    problems: list[Problem] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            message = f"{format_value(argument)} isn't of the form key=value, such as epochs=3 or limits.cost=2.50."
            problems.append(Problem("", message, "invalid-argument"))
            continue
        path = key.split(".") if "." in key or key in JobSpec.model_fields else ["params", key]
        if not _insert(tree, path, _parse_value(text, is_text=path[0] in _TEXT_FIELDS and path not in _FLAGS)):
            message = f"{format_value(key)} is given twice. Keep one."
            problems.append(Problem("/" + "/".join(path), message, "duplicate-key"))
    if problems:
        raise InvalidSpec(problems)
    return tree


def _parse_value(text: str, *, is_text: bool) -> Any:
    """Return the value as YAML would read it, JSON-serializable; unchanged if `is_text`."""
    if is_text:
        return text
    if text.startswith(("[", "{")):
        tree, problems = document.read(text)
        if problems:
            raise InvalidSpec(problems)
        return _to_json(tree)
    return "" if text == "" else _to_json(document.parse_scalar(text))


def _to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return float(value) if isinstance(value, Decimal) else value


def _insert(tree: dict[str, Any], path: list[str], value: Any) -> bool:
    """Set `value` at `path`. Returns False if there is a value already."""
    parent: Any = tree
    for key in path[:-1]:
        parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            return False
    if path[-1] in parent:
        return False
    parent[path[-1]] = value
    return True
