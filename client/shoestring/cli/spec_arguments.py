# SPDX-License-Identifier: Apache-2.0
"""The arguments that name a job spec: a recipe with parameters, or a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from shoestring_core import document, spec
from shoestring_core.regular_files import MAX_TEXT_BYTES, read_regular

RecipeName = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE|FILE", help="Recipe name, e.g. digits/quickstart; or a job spec, e.g. job.yaml."),
]
Params = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Hyperparameters; dotted keys set fields of the spec.")
]
SpecFile = Annotated[Path | None, typer.Option("-f", "--file", help="Job spec, YAML or JSON; - reads stdin.")]


class SpecCommand(typer.core.TyperCommand):
    """A command that takes parameters of the spec as KEY=VALUE, and says so to whoever gives one as an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            name = str(getattr(error, "option_name", "")).lstrip("-")
            if name and not getattr(error, "possibilities", None):
                instead = f"A parameter has no dashes: {name}=VALUE"
                raise typer.BadParameter(f"no such option: --{name}. {instead}") from error
            raise


def spec_tree(recipe: str | None, params: list[str] | None, file: Path | None) -> str | dict[str, Any]:
    """Return the spec that the arguments of `submit` and `quote` give."""
    if (recipe is None) == (file is None):
        raise typer.BadParameter("give either a recipe name or a file")
    if recipe is not None and recipe.endswith((".yaml", ".yml", ".json")):
        file, recipe = Path(recipe), None
    if recipe is not None:
        return spec.from_arguments(recipe, params or [])
    assert file is not None
    if params:
        raise typer.BadParameter("KEY=VALUE needs a recipe name; with a file, set it there")
    try:
        return document.decode_text(sys.stdin.buffer.read(MAX_TEXT_BYTES) if str(file) == "-" else read_regular(file))
    except OSError as error:
        raise typer.BadParameter(f"can't read {file}: {error.strerror}") from error
