# SPDX-License-Identifier: Apache-2.0
"""Recipes: files of parameters and the claim they make. `digits/quickstart` is the file digits/quickstart.yaml here.

parameters.yaml holds type, bounds and help of the parameters that recipes share; a recipe's file gives the defaults.
`load` and `all` return recipes, `resolve` the full set of parameters of a run, with which the trainer trains.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shoestring_core import document
from shoestring_core.document import format_value
from shoestring_core.errors import InvalidSpec, Problem

ParamValue = bool | int | float | str | None


def load(name: str) -> Recipe:
    """The recipe called `name`, or `name@version`. Raises InvalidSpec, with the nearest name, when there is none."""
    plain, _, version = name.partition("@")
    known = _shipped()
    if plain not in known:
        raise InvalidSpec([_unknown_recipe(plain)])
    recipe = known[plain]
    if version not in ("", str(recipe.version)):
        message = f"Version {version[:20]!r} of {plain} isn't known. Use {plain}@{recipe.version}."
        raise InvalidSpec([Problem("/recipe", message, "unknown-recipe", f"{plain}@{recipe.version}")])
    return recipe


def all() -> list[Recipe]:  # noqa: A001 - read as recipes.all()
    """Every recipe, by name."""
    return list(_shipped().values())


def resolve(name: str, params: Mapping[str, Any]) -> dict[str, ParamValue]:
    """Every parameter of recipe `name` with its value: the given one, else the default.

    Raises InvalidSpec that lists each unknown parameter and each value of a wrong type or out of range.
    """
    values, problems = load(name).resolve(params)
    if problems:
        raise InvalidSpec(problems)
    return values


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Param(_Frozen):
    """One parameter. `default: null` means that it may be left unset."""

    type: Literal["int", "float", "bool", "str"]
    default: ParamValue
    min: float | None = None
    max: float | None = None
    choices: tuple[ParamValue, ...] | None = None
    help: str

    def value(self, given: Any) -> ParamValue:
        """`given` as this parameter's type. Raises ValueError with a sentence for the user."""
        if given is None and self.default is None:
            return None
        value: ParamValue = _TYPES[self.type](given)
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"must be one of {', '.join(map(str, self.choices))}, not {format_value(given)}")
        if isinstance(value, int | float) and self.min is not None and value < self.min:
            raise ValueError(f"must be at least {self.min:.10g}, not {format_value(given)}")
        if isinstance(value, int | float) and self.max is not None and value > self.max:
            raise ValueError(f"must be at most {self.max:.10g}, not {format_value(given)}")
        return value

    def json_schema(self) -> dict[str, Any]:
        kind = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}[self.type]
        schema: dict[str, Any] = {"type": [kind, "null"] if self.default is None else kind}
        schema |= {"default": self.default, "description": self.help}
        if self.choices is not None:
            schema["enum"] = list(self.choices)
        if self.min is not None:
            schema["minimum"] = self.min
        if self.max is not None:
            schema["maximum"] = self.max
        return schema


class Data(_Frozen):
    """What a recipe trains on: `digits` come with scikit-learn, an `imagefolder` and `cifar10` are named by the job."""

    kind: Literal["digits", "imagefolder", "cifar10"]


class Defaults(_Frozen):
    """The recipe's defaults for fields that a job's spec does not set."""

    nodes: Annotated[int, Field(ge=1)] = 1
    procs: Annotated[int, Field(ge=1)] = 1


class Claim(_Frozen):
    """The claimed result of the recipe, the hardware, and the source."""

    metric: str
    value: float
    time: str
    hardware: str
    cost: Annotated[str | None, BeforeValidator(lambda cost: None if cost is None else str(cost))] = None
    source: str


class VariantClaim(Claim):
    """What is claimed where parameters have the values of `when`."""

    when: dict[str, ParamValue]


class RecipeClaim(Claim):
    variants: tuple[VariantClaim, ...] = ()


class Variant(_Frozen):
    """What changes when parameters have certain values: other defaults, and what is claimed for them."""

    when: dict[str, ParamValue]
    params: dict[str, ParamValue] = {}
    claim: Claim | None = None


class Recipe(_Frozen):
    name: str
    version: int
    title: str
    description: str
    task: Literal["classification"]
    data: Data
    model: dict[str, Any]
    params: dict[str, Param]
    defaults: Defaults = Defaults()
    metric: str
    claim: Claim | None = None
    variants: tuple[Variant, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    def resolve(self, given: Mapping[str, Any]) -> tuple[dict[str, ParamValue], list[Problem]]:
        """The full parameters, and what is wrong with the given ones (pointers below /params)."""
        chosen: dict[str, ParamValue] = {}
        problems: list[Problem] = []
        for name, value in given.items():
            at = document.json_pointer("/params", name)
            if name not in self.params:
                problems.append(_unknown_param(at, name, self))
                continue
            try:
                chosen[name] = self.params[name].value(value)
            except ValueError as wrong:
                problems.append(Problem(at, f"{wrong}.", "invalid-value"))
        defaults = {name: param.value(param.default) for name, param in self.params.items()}
        for variant in self.variants:
            if variant.when.items() <= (defaults | chosen).items():
                defaults |= {name: self.params[name].value(value) for name, value in variant.params.items()}
        return defaults | chosen, problems

    def claim_with_variants(self) -> RecipeClaim | None:
        """The claim, with those of its variants."""
        if self.claim is None:
            return None
        variants = [
            VariantClaim(**variant.claim.model_dump(), when=variant.when) for variant in self.variants if variant.claim
        ]
        return RecipeClaim(**self.claim.model_dump(), variants=tuple(variants))

    def params_schema(self) -> dict[str, Any]:
        """JSON Schema of `params`, for forms and editors."""
        properties = {name: param.json_schema() for name, param in self.params.items()}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for name in ("seed", "precision"):
            if name not in self.params:
                raise ValueError(f"every recipe has the parameter {name!r}")
        for name, param in self.params.items():
            if param.value(param.default) != param.default:
                raise ValueError(f"the default of {name!r} isn't of its type")
        for variant in self.variants:
            for name, value in (variant.when | variant.params).items():
                if name not in self.params or self.params[name].value(value) != value:
                    raise ValueError(f"a variant's value of {name!r} isn't one of the recipe's")
        return self


@functools.cache
def _shipped() -> dict[str, Recipe]:
    vocabulary = document.read((resources.files(__name__) / "parameters.yaml").read_text(encoding="utf-8"))[0]
    return {name: _read(text, vocabulary) for name, text in sorted(_files().items())}


def _files() -> dict[str, str]:
    """Recipe name → text, of the files in this package."""
    return {
        f"{folder.name}/{file.name.removesuffix('.yaml')}": file.read_text(encoding="utf-8")
        for folder in resources.files(__name__).iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }


def _read(text: str, vocabulary: Mapping[str, Any]) -> Recipe:
    tree, problems = document.read(text)
    if problems:
        raise InvalidSpec(problems)
    return Recipe.model_validate(_floats(tree | {"params": _full_params(tree["params"], vocabulary)}))


def _full_params(own: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's parameters with the fields that the vocabulary has for them, then those that it has by rule."""
    of_optimizer, every_recipe = vocabulary["of_optimizer"], vocabulary["every_recipe"]
    shared = vocabulary["parameters"] | of_optimizer | every_recipe
    full = {name: shared.get(name, {}) | _param_fields(given) for name, given in own.items()}
    by_rule = (of_optimizer if "optimizer" in own else {}) | every_recipe
    return full | {name: fields for name, fields in by_rule.items() if name not in own}


def _param_fields(given: Any) -> dict[str, Any]:
    """Fields of a parameter in a recipe's file: a mapping of those that differ, or the default alone."""
    return given if isinstance(given, dict) else {"default": given}


def _floats(tree: Any) -> Any:
    """Decimals as floats: a recipe file holds settings and claims, its only money is text."""
    if isinstance(tree, dict):
        return {key: _floats(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_floats(value) for value in tree]
    return float(tree) if isinstance(tree, Decimal) else tree


def _unknown_recipe(name: str) -> Problem:
    known = list(_shipped())
    near = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.5)
    then = f"Did you mean {near[0]}?" if near else f"Known recipes: {', '.join(known)}."
    message = f"There is no recipe {format_value(name)}. {then}"
    return Problem("/recipe", message, "unknown-recipe", near[0] if near else None)


def _unknown_param(at: str, name: str, recipe: Recipe) -> Problem:
    near = difflib.get_close_matches(name[:64], recipe.params, n=1)
    having = [other.name for other in all() if name in other.params]
    elsewhere = f" Recipes that have it: {', '.join(having)}." if having else ""
    then = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(recipe.params)}."
    message = f"{recipe.name} has no parameter {format_value(name)}.{elsewhere} {then}"
    return Problem(at, message, "unknown-parameter", near[0] if near else None)


def _int(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal) or not math.isfinite(given):
        raise ValueError(f"must be a whole number, not {format_value(given)}")
    if given != int(given):
        raise ValueError(f"must be a whole number, not {format_value(given)}")
    return int(given)


def _float(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal) or not math.isfinite(given):
        raise ValueError(f"must be a number, not {format_value(given)}")
    return float(given)


def _bool(given: Any) -> bool:
    if not isinstance(given, bool):
        raise ValueError(f"must be true or false, not {format_value(given)}")
    return given


def _str(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"must be text, not {format_value(given)}")
    return given


_TYPES: dict[str, Any] = {"int": _int, "float": _float, "bool": _bool, "str": _str}
