# SPDX-License-Identifier: Apache-2.0
"""Recipes over REST."""

from __future__ import annotations

from fastapi import APIRouter
from shoestring_core import recipes, rest
from shoestring_core.errors import InvalidSpec, NotFound

from shoestring_api import views
from shoestring_api.service import Caller

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


@router.get("")
def index(_: Caller) -> rest.RecipeList:
    """Every recipe, with its parameters."""
    return rest.RecipeList(recipes=[views.recipe(recipe) for recipe in recipes.all()])


@router.get("/{name:path}")
def show(name: str, _: Caller) -> rest.Recipe:
    """One recipe, by `name` or `name@version`."""
    try:
        return views.recipe(recipes.load(name))
    except InvalidSpec as unknown:
        raise NotFound(unknown.problems[0].message) from None
