# SPDX-License-Identifier: Apache-2.0
"""What the trainer does beside training: answers about models. torch is imported only once the words make sense."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from shoestring_core.errors import InvalidSpec

from shoestring_trainer.training.faults import TrainerError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
PREDICT_EXAMPLES = """\
examples:
  python -m shoestring_trainer predict model.pt2 cat.jpg dog.png
  python -m shoestring_trainer predict model/ pictures/ --top 3 --json
"""
EXPORT_EXAMPLES = """\
examples:
  python -m shoestring_trainer export model.pt2 model.onnx
"""


def main(arguments: list[str]) -> int:
    """Carry out a command; every expected failure is a sentence on stderr and an exit code."""
    options = _parser().parse_args(arguments)
    if find_spec("torch") is None:
        sys.stderr.write("This needs PyTorch. Type: pip install 'shoestring-trainer[train]'\n")
        return USAGE
    try:
        code: int = options.run(options)
    except TrainerError as fault:
        sys.stderr.write(f"{fault}\n")
        return FAILED
    except InvalidSpec as invalid:
        sys.stderr.write("".join(f"{problem.message}\n" for problem in invalid.problems))
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
    predict.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="file, or folder of files")
    predict.add_argument("--top", type=_positive, default=1, help="how many classes to name (default 1)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.add_argument("--on-corrupt", choices=["error", "skip"], default="error", help="unreadable pictures")
    predict.set_defaults(run=_predict)

    export = commands.add_parser("export", epilog=EXPORT_EXAMPLES, formatter_class=as_written)
    export.add_argument("model", type=Path, help="model.pt2, or a folder with one")
    export.add_argument("file", type=Path, help="where to write, ending in .onnx")
    export.set_defaults(run=_export)
    return parser


def _predict(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.predict import print_predictions

    skip = options.on_corrupt == "skip"
    left_out = print_predictions(options.model, options.pictures, top=options.top, as_json=options.json, skip=skip)
    if left_out:
        sys.stderr.write(f"{left_out} pictures could not be read and are left out\n")
    return OK


def _export(options: argparse.Namespace) -> int:
    from shoestring_trainer.training.exports import write_onnx

    write_onnx(options.model, options.file)
    sys.stdout.write(f"{options.file}\n")
    return OK


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
