# SPDX-License-Identifier: Apache-2.0
"""The arguments that name a job spec: a recipe with parameters, or a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from shoestring_core import document, spec
from shoestring_core.errors import InvalidSpec, Problem
from shoestring_core.exit_codes import ExitCode
from shoestring_core.regular_files import MAX_TEXT_BYTES, read_regular

from shoestring import exit_codes
from shoestring.client import ServiceError

RecipeName = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE|FILE", help="Recipe name, e.g. digits/quickstart; or a job spec, e.g. job.yaml."),
]
Params = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Hyperparameters; dotted keys set fields of the spec.")
]
SpecFile = Annotated[Path | None, typer.Option("-f", "--file", help="Job spec, YAML or JSON; - reads stdin.")]


class SpecCommand(typer.core.TyperCommand):
    """A command that takes parameters of the spec as KEY=VALUE, and says so if one is given as an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            name = str(getattr(error, "option_name", "")).lstrip("-")
            if name and not getattr(error, "possibilities", None):
                instead = f"A parameter has no dashes: {name}=VALUE"
                raise typer.BadParameter(f"no such option: --{name}. {instead}") from error
            raise


class SpecText(str):
    """The text of a job spec, and the file that it comes from."""

    def __new__(cls, text: str, file: str) -> SpecText:
        made = super().__new__(cls, text)
        made.file = file
        return made

    file: str


class InvalidSpecFile(Exception):
    """A job spec in a file is invalid: `sentences` say where in the file, and what."""

    def __init__(self, title: str, hint: str | None, sentences: list[str], exit_code: int) -> None:
        super().__init__(title)
        self.hint, self.sentences, self.exit_code = hint, sentences, exit_code


@contextmanager
def errors_by_line(tree: str | dict[str, Any]) -> Iterator[None]:
    """Raises InvalidSpecFile for what the service finds wrong in a spec that comes from a file."""
    try:
        yield
    except ServiceError as error:
        if not isinstance(tree, SpecText) or not error.problem.errors:
            raise
        sentences = [_in_file(tree.file, str(tree), problem) for problem in error.problem.errors]
        title, exit_code = f"{error.problem.title}.", exit_codes.of_problem(error.code)
        raise InvalidSpecFile(title, error.problem.hint, sentences, exit_code) from error


def _in_file(file: str, text: str, problem: Problem) -> str:
    """Such as "job.yaml:3: resources.gpu: …", as editors and terminals follow it."""
    place = document.locate(text, problem.pointer) if problem.pointer or problem.code == "syntax" else None
    return f"{':'.join(map(str, (file, *(place or ())[:1])))}: {problem.sentence}"


def spec_tree(recipe: str | None, params: list[str] | None, file: Path | None) -> str | dict[str, Any]:
    """Return the spec that the arguments of `submit` and `quote` give: a tree, or a file's SpecText."""
    if (recipe is None) == (file is None):
        raise typer.BadParameter("give either a recipe name, such as digits/quickstart, or a file")
    if recipe is not None and recipe.endswith((".yaml", ".yml", ".json")):
        file, recipe = Path(recipe), None
    if recipe is not None:
        return spec.from_arguments(recipe, params or [])
    assert file is not None
    if params:
        raise typer.BadParameter("KEY=VALUE needs a recipe name; with a file, set it there")
    name = "stdin" if str(file) == "-" else str(file)
    try:
        raw = sys.stdin.buffer.read(MAX_TEXT_BYTES) if str(file) == "-" else read_regular(file)
        return SpecText(document.decode_text(raw), name)
    except OSError as error:
        raise typer.BadParameter(f"can't read {file}: {error.strerror}") from error
    except InvalidSpec as error:
        sentences = [f"{name}: {problem.sentence}" for problem in error.problems]
        raise InvalidSpecFile("The job spec is invalid.", None, sentences, ExitCode.USAGE) from error
