# SPDX-License-Identifier: Apache-2.0
"""Recipes and their parameters."""

from __future__ import annotations

from typing import Any

from shoestring_core import recipes
from shoestring_core.rest.base import Resource


class RecipeParameter(Resource):
    name: str
    type: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: list[Any] | None = None
    help: str = ""


class Recipe(Resource):
    name: str
    version: int
    title: str
    description: str
    data: str
    metric: str
    params: list[RecipeParameter]
    claim: recipes.RecipeClaim | None = None

    @classmethod
    def from_recipe(cls, recipe: recipes.Recipe) -> Recipe:
        return cls(
            name=recipe.name,
            version=recipe.version,
            title=recipe.title,
            description=recipe.description,
            data=recipe.data.kind,
            metric=recipe.metric,
            params=[
                RecipeParameter(
                    name=name,
                    type=param.type,
                    default=param.default,
                    minimum=param.min,
                    maximum=param.max,
                    choices=None if param.choices is None else list(param.choices),
                    help=param.help,
                )
                for name, param in recipe.params.items()
            ],
            claim=recipe.claim_with_variants(),
        )


class RecipeList(Resource):
    recipes: list[Recipe]
