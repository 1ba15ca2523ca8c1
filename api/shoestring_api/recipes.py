# SPDX-License-Identifier: Apache-2.0
"""Recipes over REST."""

from __future__ import annotations

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


def _not_yet() -> Unavailable:
    return Unavailable("The store is being built.")


@router.get("")
def index() -> rest.RecipeList:
    """Every recipe, with its parameters."""
    raise _not_yet()


@router.get("/{name:path}")
def show(name: str) -> rest.Recipe:
    """One recipe."""
    raise _not_yet()
