# SPDX-License-Identifier: Apache-2.0
"""Recipes."""

from __future__ import annotations

from fastapi import APIRouter
from shoestring_core import recipes, rest
from shoestring_core.errors import InvalidSpec, NotFound

from shoestring_api.dependencies import Caller

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


@router.get("")
def list_recipes(_: Caller) -> rest.RecipeList:
    """List the recipes with their parameters."""
    return rest.RecipeList(recipes=[rest.Recipe.from_recipe(recipe) for recipe in recipes.all()])


@router.get("/{name:path}")
def get_recipe(name: str, _: Caller) -> rest.Recipe:
    """Return a recipe by `name` or `name@version`."""
    try:
        return rest.Recipe.from_recipe(recipes.load(name))
    except InvalidSpec as unknown:
        raise NotFound(unknown.problems[0].message) from None
