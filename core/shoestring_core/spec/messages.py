# SPDX-License-Identifier: Apache-2.0
"""Pydantic's errors as sentences for the user, with the nearest known name."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shoestring_core import document, recipes
from shoestring_core.document import format_value
from shoestring_core.errors import Problem
from shoestring_core.wording.units import counted

MAX_PROBLEMS = 100

_SENTENCES = {
    "missing": "is required",
    "string_type": "must be text, not {given}",
    "int_type": "must be a whole number, not {given}",
    "tuple_type": "must be a list, not {given}",
    "dict_type": "must be a mapping, not {given}",
    "model_type": "must be a mapping, not {given}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "greater_than_equal": "must be at least {ge}, not {given}",
    "less_than_equal": "must be at most {le}, not {given}",
    "literal_error": "must be {expected}, not {given}",
    "not-supported-yet": "not supported yet; {instead}",
    "invalid-value": "{message}",
}
_SYNONYMS = {"project": "team"}
"""Names that other tools use for our fields."""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return why a tree failed to validate as `model`: at most MAX_PROBLEMS, then the number of the others."""
    errors = error.errors(include_url=False)
    problems = [_problem(each, model) for each in errors[:MAX_PROBLEMS]]
    if (left := len(errors) - MAX_PROBLEMS) > 0:
        problems.append(Problem("", f"There {'is' if left == 1 else 'are'} {counted(left, 'more problem')}.", "more"))
    return problems


def suggest_field(problem: Problem, model: type[BaseModel]) -> Problem:
    """Add the field that was probably meant to the problem of an unknown parameter: `nodes=2` is resources.nodes."""
    name = problem.pointer.removeprefix("/params/")
    path = _path_of(name, model) if problem.code == "unknown-parameter" else None
    if path is None or path.startswith("params."):  # another recipe's parameter: the problem names it
        return problem
    return Problem(problem.pointer, f"The recipe has no such parameter. Did you mean {path}?", problem.code, path)


def sections_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Field name → the model of its value, for the fields whose values are models."""
    sections: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                sections[field.alias or name] = kind
    return sections


def _problem(error: ErrorDetails, model: type[BaseModel]) -> Problem:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    path = list(error["loc"])
    if kind != "extra_forbidden" and len(path) > 2 and path[-1] == "[key]":
        path.pop()  # pydantic marks an invalid key this way
    pointer = ""
    for part in path:
        pointer = document.json_pointer(pointer, part)
    if kind == "extra_forbidden":
        return _unknown_field(pointer, path, model)
    sentence = _SENTENCES.get(kind, "{otherwise}").format(given=format_value(given), otherwise=error["msg"], **context)
    code = kind if kind in ("missing", "not-supported-yet") else "invalid-value"
    near = _nearest(given, re.findall(r"'([^']*)'", context["expected"])) if kind == "literal_error" else None
    return Problem(pointer, f"{sentence}." + (f" Did you mean {near}?" if near else ""), code, near)


def _unknown_field(pointer: str, path: list[int | str], model: type[BaseModel]) -> Problem:
    known = _fields_at(path[:-1], model)
    near = (_path_of(str(path[-1]), model) if len(path) == 1 else None) or _nearest(path[-1], known)
    hint = f"Did you mean {near}?" if near else f"Known: {', '.join(known)}."
    return Problem(pointer, f"There is no such field. {hint}", "unknown-field", near)


def _path_of(name: str, model: type[BaseModel]) -> str | None:
    """The dotted path of a field or parameter called `name`, if there is one a level below `model`."""
    for section, fields in sections_of(model).items():
        if name in fields.model_fields:
            return f"{section}.{name}"
    return f"params.{name}" if any(name in recipe.params for recipe in recipes.all()) else None


def _fields_at(path: list[int | str], model: type[BaseModel]) -> list[str]:
    for part in path:
        model = next(section for name, section in sections_of(model).items() if name == part)
    return [field.alias or name for name, field in model.model_fields.items()]


def _nearest(given: Any, known: list[str]) -> str | None:
    if not isinstance(given, str):
        return None
    synonyms = {word: name for word, name in _SYNONYMS.items() if name in known}
    names = {name.lower(): name for name in known} | synonyms
    near = difflib.get_close_matches(given[:64].lower(), names, n=1, cutoff=0.55)
    return names[near[0]] if near else None
