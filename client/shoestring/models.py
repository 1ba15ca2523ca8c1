# SPDX-License-Identifier: Apache-2.0
"""Trained models on this computer. The trainer answers, as a child process: nothing here needs torch."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_cache_path
from shoestring_core import rest

from shoestring import exits
from shoestring.client import Client
from shoestring.terminal import Json, Url, complain, connect, err, resolve

MODEL = "model.pt2"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A job, a model file, or a folder with one.")]


Params = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="The recipe's parameters.")]
Pictures = Annotated[int | None, typer.Option(min=1, help="Training pictures, where the recipe can't know.")]


class NoTrainer(Exception):
    """The trainer, or what it stands on, isn't installed on this computer."""


def predict(
    model: Model,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE…", help="Pictures, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 1,
    on_corrupt: Annotated[str, typer.Option(help="Pictures that can't be read: error or skip.")] = "error",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Say what is on pictures: class and probability, by a job's model or one on this computer.

    \b
    shoestring predict 0193 cat.jpg dog.jpg
    shoestring predict model/ pictures/ --top 3
    shoestring predict model.onnx cat.jpg --json
    """
    if on_corrupt not in ("error", "skip"):
        raise typer.BadParameter("--on-corrupt is error or skip")
    options = ["--top", str(top), "--on-corrupt", on_corrupt, *_json(as_json)]
    require_trainer()
    raise typer.Exit(run_trainer("predict", *options, str(find_model(model, url)), *map(str, pictures)))


def export(
    model: Model,
    file: Annotated[Path, typer.Argument(help="Where to write, ending in .onnx.")] = Path("model.onnx"),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, checked in ONNX Runtime to predict the same.

    \b
    shoestring export 0193 model.onnx
    shoestring export model/model.pt2 model.onnx
    """
    require_trainer()
    raise typer.Exit(run_trainer("export", *_json(as_json), str(find_model(model, url)), str(file)))


def model(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe.")],
    params: Params = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side; default: the recipe's.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Default: the data set's, or 10.")] = None,
    pictures: Pictures = None,
    as_json: Json = False,
) -> None:
    """Print the network that a recipe trains: output shapes, parameters and FLOP, and what training takes at least.

    \b
    shoestring model cifar10/page-resnet9
    shoestring model cifar10/page-resnet18-baseline model=timm/convnext_tiny
    """
    require_trainer()
    raise typer.Exit(
        run_trainer(
            "model", recipe, *(params or []), *_option("--size", size), *_option("--classes", classes),
            *_option("--pictures", pictures), *_json(as_json),
        )
    )  # fmt: skip


def plot_schedule(recipe: str, params: list[str], pictures: int | None, as_json: bool) -> int:
    """Draw a recipe's schedule at this terminal; the exit code."""
    require_trainer("shoestring_trainer")
    return run_trainer("schedule", recipe, *params, *_option("--pictures", pictures), *_json(as_json))


def find_model(model: str, url: str | None) -> Path:
    """The path that `model` names, or the model of the job that it names, fetched once and kept."""
    if Path(model).exists():
        return Path(model)
    if "/" in model or Path(model).suffix:
        complain(f"There is no file {model}. Give a model.pt2, a folder with one, or a job.")
        raise typer.Exit(exits.NOT_FOUND)
    with connect(url) as client:
        job = resolve(client, model)
        found = {file.name: file for file in client.artifacts(job).artifacts}
        if MODEL not in found:
            complain(f"The job {model} has left no model yet; see: shoestring show {model}")
            raise typer.Exit(exits.NOT_FOUND)
        return fetch(client, found[MODEL], user_cache_path("shoestring") / "models")


def fetch(client: Client, artifact: rest.Artifact, folder: Path) -> Path:
    """An artifact in a folder of such, under its hash; downloaded if it isn't there whole."""
    target = folder / f"{artifact.sha256}-{artifact.name}"
    if not _is_whole(target, artifact.sha256):
        folder.mkdir(parents=True, exist_ok=True)
        err.print(f"Fetching {artifact.name}, {artifact.bytes:,} bytes …")
        client.download(artifact, target)
    return target


def require_trainer(*modules: str) -> None:
    """Raise NoTrainer, with what to type, unless these are installed here: the trainer and torch if none is named."""
    missing = [name for name in modules or ("shoestring_trainer", "torch") if find_spec(name) is None]
    if missing:
        raise NoTrainer(
            f"This is the trainer's work, and {' and '.join(missing)} isn't installed on this computer. "
            "Type: pip install 'shoestring-trainer[train]'"
        )


def run_trainer(*arguments: str) -> int:
    """Run one of the trainer's commands at this terminal; its exit code."""
    return subprocess.run([sys.executable, "-m", "shoestring_trainer", *arguments], check=False).returncode


def _option(name: str, value: int | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def _json(wanted: bool) -> list[str]:
    return ["--json"] if wanted else []


def _is_whole(file: Path, sha256: str) -> bool:
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
