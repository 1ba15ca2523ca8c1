# SPDX-License-Identifier: Apache-2.0
"""Recipes."""

from __future__ import annotations

from fastapi import APIRouter
from shoestring_core import recipes, rest
from shoestring_core.errors import InvalidSpec, NotFound
from shoestring_core.recipes import Recipe

from shoestring_api.dependencies import Caller

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


@router.get("")
def list_recipes(_: Caller) -> rest.RecipeList:
    """List the recipes with their parameters."""
    return rest.RecipeList(recipes=[_serialize(recipe) for recipe in recipes.all()])


@router.get("/{name:path}")
def get_recipe(name: str, _: Caller) -> rest.Recipe:
    """Return a recipe by `name` or `name@version`."""
    try:
        return _serialize(recipes.load(name))
    except InvalidSpec as unknown:
        raise NotFound(unknown.problems[0].message) from None


def _serialize(recipe: Recipe) -> rest.Recipe:
    return rest.Recipe(
        name=recipe.name,
        version=recipe.version,
        title=recipe.title,
        description=recipe.description,
        data=recipe.data.kind,
        metric=recipe.metric,
        params=[
            rest.RecipeParameter(
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
        claim=recipe.claims(),
    )
