# SPDX-License-Identifier: Apache-2.0
"""`shoestring data`: data sets on this computer. The trainer prepares them as a child process."""

from __future__ import annotations

from typing import Annotated

import typer

from shoestring import trainer
from shoestring.cli.terminal import Json

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Prepare data sets for training.

\b
shoestring data prepare /data/imagenet /data/imagenet-shards
""",
)


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of class folders, with or without train and val above them; or of tars. Here, or s3://…",
        ),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION", help="A new folder, or one whose preparation was interrupted. Here, or s3://…"
        ),
    ],
    side: Annotated[
        int, typer.Option(min=1, help="Pixels that the shorter side has at most; larger images are scaled.")
    ] = 400,
    quality: Annotated[int, typer.Option(min=1, max=95, help="JPEG quality of images that are scaled.")] = 90,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Number of images in a tar file.")] = 2000,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one for each core.")] = None,
    on_corrupt: Annotated[str, typer.Option(help="What to do with damaged images: error or skip.")] = "error",
    as_json: Json = False,
) -> None:
    """Pack images into shards, which a job decodes as it needs them.

    Images within --side are stored byte for byte. Interrupted, the same command goes on where it stopped; at the end
    all shards are read again and verified. WebDataset reads them too. What comes from S3 or goes there lies below
    ~/.cache (or XDG_CACHE_HOME) until then; credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

    \b
    shoestring data prepare /data/imagenet /data/imagenet-shards
    shoestring data prepare photos/ shards/ --side 256 --on-corrupt skip
    shoestring data prepare s3://raw/imagenet s3://data/imagenet-shards
    shoestring submit imagenet/rn50-16 data.train=/data/imagenet-shards
    """
    if on_corrupt not in ("error", "skip"):
        raise typer.BadParameter("--on-corrupt is error or skip")
    trainer.require("shoestring_trainer", "numpy", "PIL")
    options = [
        "--side", str(side), "--quality", str(quality), "--images-per-shard", str(images_per_shard),
        "--on-corrupt", on_corrupt, *trainer.option("--processes", processes), *trainer.json_option(as_json),
    ]  # fmt: skip
    raise typer.Exit(trainer.run("prepare", *options, source, destination))
