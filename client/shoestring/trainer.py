# SPDX-License-Identifier: Apache-2.0
"""Runs commands of the trainer as child processes: nothing in this package needs torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec


class TrainerNotInstalled(Exception):
    """The trainer, or a library it needs, isn't installed on this computer."""


def require(*modules: str) -> None:
    """Raise TrainerNotInstalled, with the command to type, if a module is missing (default: the trainer and torch)."""
    missing = [name for name in modules or ("shoestring_trainer", "torch") if find_spec(name) is None]
    if missing:
        raise TrainerNotInstalled(
            f"This command needs {' and '.join(missing)}, not installed on this computer. "
            "Run: pip install 'shoestring-trainer[train]'"
        )


def run(*arguments: str) -> int:
    """Run a command of the trainer in this terminal and return its exit code. Nothing is imported from the folder."""
    code = subprocess.run([sys.executable, "-P", "-m", "shoestring_trainer", *arguments], check=False).returncode
    return code if code >= 0 else 128 - code  # as a shell says it of a program that a signal ended


def plot_schedule(recipe: str, params: list[str], images: int | None, as_json: bool) -> int:
    """Plot a recipe's schedule in this terminal and return the exit code."""
    require("shoestring_trainer")
    return run("schedule", recipe, *params, *option("--num-images", images), *json_option(as_json))


def summarize_model(
    recipe: str, params: list[str], size: int | None, classes: int | None, images: int | None, as_json: bool
) -> int:
    """Print the model of a recipe in this terminal and return the exit code."""
    return run(
        "model", recipe, *params, *option("--image-size", size), *option("--classes", classes),
        *option("--num-images", images), *json_option(as_json),
    )  # fmt: skip


def json_option(as_json: bool) -> list[str]:
    return ["--json"] if as_json else []


def option(name: str, value: int | None) -> list[str]:
    return [] if value is None else [name, str(value)]
