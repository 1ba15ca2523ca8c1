# SPDX-License-Identifier: Apache-2.0
"""`shoestring recipes`: read from the installed package; needs no service and no login."""

from __future__ import annotations

from typing import Annotated

import typer
from shoestring_core import recipes, rest
from shoestring_core.exit_codes import ExitCode

from shoestring import trainer
from shoestring.cli.models import ImageCount, Params
from shoestring.cli.terminal import Json, out, print_error, print_result, print_table

app = typer.Typer()


@app.callback(invoke_without_command=True)
def group(context: typer.Context, as_json: Json = False) -> None:
    """List the training recipes, or show one.

    With its hyperparameters and the result that it claims.

    \b
    shoestring recipes
    shoestring recipes show cifar10/airbench94
    """
    if context.invoked_subcommand is None:
        list_recipes(as_json)
    elif as_json:
        raise typer.BadParameter(f"--json goes after `recipes {context.invoked_subcommand}`")


@app.command("ls")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes.

    \b
    shoestring recipes ls
    """
    known = [rest.Recipe.from_recipe(recipe) for recipe in recipes.all()]
    rows = [(recipe.name, recipe.title) for recipe in known]
    print_result(known, as_json, lambda: print_table(("RECIPE", "TITLE"), rows, "No recipes.", wrap=("TITLE",)))


@app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe name.")],
    params: Params = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Plot learning rate, momentum, batch size and image size over the run.")
    ] = False,
    images: ImageCount = None,
    as_json: Json = False,
) -> None:
    """Show a recipe's hyperparameters and its claim, or plot its schedule.

    \b
    shoestring recipes show cifar10/airbench94
    shoestring recipes show cifar10/airbench94 --plot
    shoestring recipes show imagefolder/resnet9 epochs=30 --plot --num-images 9469
    """
    if plot:
        raise typer.Exit(trainer.plot_schedule(name, params or [], images, as_json))
    if params:
        raise typer.BadParameter("KEY=VALUE needs --plot")
    found = next((recipe for recipe in recipes.all() if recipe.name == name), None)
    if found is None:
        print_error(f"There is no recipe {name}. List recipes: shoestring recipes ls")
        raise typer.Exit(ExitCode.NOT_FOUND)
    recipe = rest.Recipe.from_recipe(found)
    print_result(recipe, as_json, lambda: _print_recipe(recipe))


def _print_recipe(recipe: rest.Recipe) -> None:
    out.print(f"{recipe.name}@{recipe.version}  {recipe.title}\n{recipe.description}\n")
    rows = [
        (p.name, p.type, _as_typed(p.default), ", ".join(map(_as_typed, p.choices or [])), p.help)
        for p in recipe.params
    ]
    columns = ("PARAMETER", "TYPE", "DEFAULT", "CHOICES", "DESCRIPTION")
    wrap, drop = ("DEFAULT", "CHOICES", "DESCRIPTION"), ("CHOICES", "TYPE")
    print_table(columns, rows, "No parameters.", wrap=wrap, drop=drop, prose=True)
    if claim := recipe.claim:
        out.print(f"\nClaim    {claim.metric} {claim.value:g} in {claim.time}, on {claim.hardware}")
        if claim.cost:
            out.print(f"Cost     {claim.cost}")
        out.print(f"Source   {claim.source}")


def _as_typed(value: object) -> str:
    """A value as it is given in KEY=VALUE."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
