# SPDX-License-Identifier: Apache-2.0
"""The trainer's commands beside `train`. torch is imported only where it is used."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shoestring_core import spec
from shoestring_core.errors import InvalidSpec
from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import counted

from shoestring_trainer.terminal import escape_unencodable
from shoestring_trainer.training.errors import TrainerError, UserError, explain_os_error

TRACE_POINTS = 1001
UNCOUNTED = 100_000
"""Images to plan for where only the sizes in a schedule matter, and their number is unknown."""
OK, USAGE, INTERRUPTED = 0, 2, 130
"""As of `shoestring`, which runs these commands: see shoestring_core.exit_codes."""
PREDICT_EXAMPLES = """\
examples:
  python -m shoestring_trainer predict model.pt2 cat.jpg dog.png
  python -m shoestring_trainer predict model/ images/ --top 3 --json
"""
LR_FIND_EXAMPLES = """\
examples:
  python -m shoestring_trainer lr-find digits/quickstart
  python -m shoestring_trainer lr-find cifar10/page-resnet9 data.train=/data/cifar10 --end-lr 4
"""
SCHEDULE_EXAMPLES = """\
examples:
  python -m shoestring_trainer schedule cifar10/airbench94
  python -m shoestring_trainer schedule imagefolder/resnet9 epochs=30 --num-images 9469
"""
MODEL_EXAMPLES = """\
examples:
  python -m shoestring_trainer model cifar10/page-resnet9
  python -m shoestring_trainer model cifar10/page-resnet18-baseline model=timm/convnext_tiny
"""
EXPORT_EXAMPLES = """\
examples:
  python -m shoestring_trainer export model.pt2 model.onnx
"""
PREPARE_EXAMPLES = """\
examples:
  python -m shoestring_trainer prepare /data/imagenet /data/imagenet-shards
  python -m shoestring_trainer prepare photos/ shards/ --side 256 --on-corrupt skip
  python -m shoestring_trainer prepare s3://raw/imagenet s3://data/imagenet-shards
"""


def main(arguments: list[str]) -> int:
    """Run a command; every expected error is a message on stderr and an exit code."""
    escape_unencodable()
    options = _parser().parse_args(arguments)
    if options.needs_torch and find_spec("torch") is None:
        sys.stderr.write("This needs PyTorch. Run: pip install 'shoestring-trainer[train]'\n")
        return USAGE
    try:
        code: int = options.run(options)
    except TrainerError as error:
        sys.stderr.write(f"{printable(str(error))}\n")
        return USAGE
    except OSError as error:  # a folder that can't be written, or that is gone
        sys.stderr.write(f"{printable(explain_os_error(error))}\n")
        return USAGE
    except InvalidSpec as invalid:
        sys.stderr.write("".join(f"{printable(problem.message)}\n" for problem in invalid.problems))
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shoestring_trainer")
    commands = parser.add_subparsers(required=True)
    as_written = argparse.RawDescriptionHelpFormatter

    predict = commands.add_parser("predict", epilog=PREDICT_EXAMPLES, formatter_class=as_written)
    predict.add_argument("model", type=Path, help="model.pt2, model.onnx, or a folder with one of them")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="file, or folder of files")
    predict.add_argument("--top", type=_positive, default=1, help="how many classes to name (default 1)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.add_argument("--on-corrupt", choices=["error", "skip"], default="error", help="unreadable images")
    predict.set_defaults(run=_predict, needs_torch=True)

    export = commands.add_parser("export", epilog=EXPORT_EXAMPLES, formatter_class=as_written)
    export.add_argument("model", type=Path, help="model.pt2, or a folder with one")
    export.add_argument("file", type=Path, help="where to write, ending in .onnx")
    export.add_argument("--json", action="store_true", help="print JSON")
    export.set_defaults(run=_export, needs_torch=True)

    find = commands.add_parser("lr-find", epilog=LR_FIND_EXAMPLES, formatter_class=as_written)
    find.add_argument("what", metavar="WHAT", help="recipe, or job spec")
    find.add_argument("params", nargs="*", metavar="KEY=VALUE", help="parameters; dotted keys set the spec")
    find.add_argument("--start-lr", type=float, default=1e-5, help="first learning rate (default 0.00001)")
    find.add_argument("--end-lr", type=float, default=10.0, help="last learning rate (default 10)")
    find.add_argument("--steps", type=_positive, default=100, help="number of steps (default 100)")
    find.add_argument("--json", action="store_true", help="print JSON")
    find.set_defaults(run=_find, needs_torch=True)

    schedule = commands.add_parser("schedule", epilog=SCHEDULE_EXAMPLES, formatter_class=as_written)
    _add_recipe(schedule)
    schedule.set_defaults(run=_schedule, needs_torch=False)

    model = commands.add_parser("model", epilog=MODEL_EXAMPLES, formatter_class=as_written)
    _add_recipe(model)
    model.add_argument("--image-size", dest="size", type=_positive, help="pixels a side; default: the recipe's")
    model.add_argument("--classes", type=_positive, help="default: the data set's, or 10")
    model.set_defaults(run=_model, needs_torch=True)

    prepare = commands.add_parser("prepare", epilog=PREPARE_EXAMPLES, formatter_class=as_written)
    prepare.add_argument(
        "source", help="folder of class folders (with train and val above them), or of tars; here, or s3://BUCKET/…"
    )
    prepare.add_argument(
        "destination", help="new or empty folder, or one whose preparation was interrupted; here, or s3://BUCKET/…"
    )
    prepare.add_argument("--side", type=_positive, default=400, help="longest shorter side, in pixels (default 400)")
    prepare.add_argument("--quality", type=_quality, default=90, help="of images that are scaled down (default 90)")
    prepare.add_argument("--images-per-shard", dest="per_shard", type=_positive, default=2000, help="(default 2000)")
    prepare.add_argument("--processes", type=_positive, help="default: one for each core")
    prepare.add_argument("--on-corrupt", choices=["error", "skip"], default="error", help="damaged images")
    prepare.add_argument("--json", action="store_true", help="print JSON")
    prepare.set_defaults(run=_prepare, needs_torch=False)
    return parser


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="name of a recipe")
    command.add_argument("params", nargs="*", metavar="KEY=VALUE", help="its parameters")
    command.add_argument(
        "--num-images", dest="images", type=_positive, help="training images, where the recipe doesn't know"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _predict(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.cli.predict import print_predictions

    skip = options.on_corrupt == "skip"
    skipped = print_predictions(options.model, options.images, top=options.top, as_json=options.json, skip=skip)
    if skipped:
        sys.stderr.write(f"skipped {counted(skipped, 'image')} that could not be read\n")
    return OK


def _export(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.results.exports import write_onnx

    write_onnx(options.model, options.file)
    summary = json.dumps({"file": str(options.file), "bytes": options.file.stat().st_size})
    sys.stdout.write(f"{summary if options.json else options.file}\n")
    return OK


def _find(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.cli.lr_find import print_lr_search

    arguments = [options.what, *options.params]
    print_lr_search(
        arguments, start_lr=options.start_lr, end_lr=options.end_lr, steps=options.steps, as_json=options.json
    )
    return OK


def _schedule(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.cli.schedule_plot import plot_schedule, preview_schedule, sample_schedule

    preview = preview_schedule(options.recipe, _params(options), options.images)
    sys.stdout.write(
        (json.dumps(sample_schedule(preview, TRACE_POINTS)) if options.json else plot_schedule(preview)) + "\n"
    )
    return OK


def _model(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.cli.schedule_plot import count_images, preview_schedule
    from shoestring_trainer.training.models.summary import (
        ModelSummary,
        format_min_training_time,
        format_summary,
        summarize_model,
        to_json,
        training_flop,
    )

    def summary_at(size: int) -> ModelSummary:
        return summarize_model(options.recipe, params, size=options.size or size or None, classes=options.classes)

    params = _params(options)
    counted = options.images or count_images(options.recipe)
    preview = preview_schedule(options.recipe, params, counted or UNCOUNTED)
    summary = summary_at(preview.schedule.phases[-1].image_size)
    if options.json:
        sys.stdout.write(json.dumps(to_json(summary)) + "\n")
        return OK
    sys.stdout.write(format_summary(summary) + "\n")
    if counted:
        sys.stdout.write(
            f"\n{format_min_training_time(preview, training_flop(preview, lambda size: summary_at(size).flop))}\n"
        )
    return OK


def _prepare(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.cli.prepare import print_preparation
    from shoestring_trainer.training.data.shard_plan import PrepareOptions

    what = PrepareOptions(options.side, options.quality, options.per_shard, options.on_corrupt == "skip")
    processes = options.processes or len(os.sched_getaffinity(0))
    try:
        print_preparation(options.source, options.destination, what, processes=processes, as_json=options.json)
    except KeyboardInterrupt:
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # Python's own end would wait for the pool, which a second Ctrl-C has left half closed
    return OK


def _params(options: argparse.Namespace) -> dict[str, Any]:
    tree = spec.from_arguments(options.recipe, options.params)
    if elsewhere := sorted(set(tree) - {"recipe", "params"}):
        raise UserError(f"{elsewhere[0]} is a field of the spec; only recipe parameters can be given here")
    return dict(tree.get("params", {}))


def _quality(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 95:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 95")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
