# SPDX-License-Identifier: Apache-2.0
"""Commands for trained models on this computer: predict, export, model. The trainer runs them as a child process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_cache_path
from shoestring_core.exit_codes import ExitCode
from shoestring_core.wording.units import counted

from shoestring import trainer
from shoestring.cli.artifacts import explain_missing
from shoestring.cli.terminal import Json, Url, err, open_client, print_error, resolve_job_id

MODEL = "model.pt2"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A job, a model file, or a folder with one.")]
Params = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Hyperparameters of the recipe.")]
ImageCount = Annotated[
    int | None, typer.Option("--num-images", min=1, help="Number of training images, if the recipe doesn't define it.")
]


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Images, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print per image.")] = 1,
    on_corrupt: Annotated[str, typer.Option(help="What to do with unreadable images: error or skip.")] = "error",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Classify images with a trained model.

    Prints class and probability. The model is that of a job, or one on this computer.

    \b
    shoestring predict JOB cat.jpg dog.jpg
    shoestring predict model/ images/ --top 3
    shoestring predict model.onnx cat.jpg --json
    """
    if on_corrupt not in ("error", "skip"):
        raise typer.BadParameter("--on-corrupt is error or skip")
    options = ["--top", str(top), "--on-corrupt", on_corrupt, *trainer.json_option(as_json)]
    trainer.require()
    raise typer.Exit(trainer.run("predict", *options, str(find_model(model, url)), *map(str, images)))


def export(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Output file, ending in .onnx.")] = Path("model.onnx"),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Export a model to ONNX and verify its predictions.

    \b
    shoestring export JOB model.onnx
    shoestring export model/model.pt2 model.onnx
    """
    trainer.require()
    raise typer.Exit(trainer.run("export", *trainer.json_option(as_json), str(find_model(model, url)), str(file)))


def model(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe name.")],
    params: Params = None,
    size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Image size in pixels; default: the recipe's.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes; default: the dataset's, or 10.")
    ] = None,
    images: ImageCount = None,
    as_json: Json = False,
) -> None:
    """Summarize a recipe's model: shapes, parameters, FLOPs.

    And the least time that training can take on known hardware.

    \b
    shoestring model cifar10/page-resnet9
    shoestring model cifar10/page-resnet18-baseline model=timm/convnext_tiny
    """
    trainer.require()
    raise typer.Exit(trainer.summarize_model(recipe, params or [], size, classes, images, as_json))


def find_model(model: str, url: str | None) -> Path:
    """Return the path that `model` names, or the model of the job that it names, downloaded to a cache."""
    if Path(model).exists():
        return Path(model)
    if "/" in model or Path(model).suffix:
        print_error(f"File {model} does not exist. Give a model.pt2, a folder with one, or a job.")
        raise typer.Exit(ExitCode.NOT_FOUND)
    with open_client(url) as client:
        job = resolve_job_id(client, model)
        artifacts = {file.name: file for file in client.artifacts(job).artifacts}
        if MODEL not in artifacts:
            print_error(explain_missing(client.job(job), "model"))
            raise typer.Exit(ExitCode.NOT_FOUND)
        artifact = artifacts[MODEL]
        report = lambda: err.print(f"Downloading {artifact.name}, {counted(artifact.bytes, 'byte')} …")  # noqa: E731
        return client.download_cached(artifact, user_cache_path("shoestring") / "models", before_download=report)
