# SPDX-License-Identifier: Apache-2.0
"""Training without a service: a recipe or a job spec becomes a task in a folder of its own.

What only such a start needs is imported there: ranks of a service come with a task, and in a hurry.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring_trainer.training.errors import NonFiniteError, UserError

TASK = "task.json"
OF_THE_SERVICE = ("resources", "limits", "retry", "notify", "on_budget", "priority", "after", "team")
KEPT_IN_THE_CHECKPOINT = {"model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"}
EXAMPLES = """\
examples:
  python -m shoestring_trainer train digits/quickstart epochs=5
  python -m shoestring_trainer train job.yaml --to runs/mine
  python -m shoestring_trainer train runs/mine                  go on where it stopped
  torchrun --nproc-per-node 2 -m shoestring_trainer train digits/quickstart --to runs/two
"""


def prepare(words: Sequence[str]) -> Path:
    """The task file that the command's words ask for, written if they name a recipe, a job spec or a stopped run.

    Raises UserError, or InvalidSpec with every mistake of a spec.
    """
    options = _parser().parse_args(words)
    given = Path(options.what)
    if given.is_dir():
        _require_nothing_else(options, "a run's folder")
        return _resumed(given)
    if given.is_file() and (given.name == TASK or _is_task(given)):
        _require_nothing_else(options, "a task file")
        return given
    return _from_spec(given, options.params, options.to)


def go_back(task: Path, broken: NonFiniteError) -> Path:
    """The task of a run whose numbers broke: it goes on from a checkpoint before that, without the batches that did it.

    Raises `broken`, in more words, when enough was tried.
    """
    from shoestring_core.decide import nan_recovery

    folder, content = task.parent, _json_object(task, "start the run anew")
    before: list[nan_recovery.Span] = [(first, last) for first, last in content.get("skip", [])]
    span = nan_recovery.next_skip(broken.since, before)
    if span is None:
        raise NonFiniteError(nan_recovery.failure_text(str(broken), before), broken.since) from broken
    sys.stdout.write(f"\n{broken}; rolling back and skipping {nan_recovery.describe_spans([span])}\n")
    good = [manifest for manifest in _manifests(folder) if _step(manifest) < span[0]]
    for manifest in set(_manifests(folder)) - set(good):
        manifest.unlink()
        manifest.with_suffix(".data").unlink(missing_ok=True)
    return _write_task(folder, _from_newest(folder, content) | {"skip": [*before, span]})


def unpack_model(folder: Path) -> Path | None:
    """Lay the files of a finished run's model beside its task, in `model/`; None if it saved none."""
    from shoestring_trainer.training.checkpoint.files import read_checkpoint

    if not (manifests := _manifests(folder)):
        return None
    parts = read_checkpoint(manifests[-1].with_suffix(".data"), manifests[-1])
    model = folder / "model"
    model.mkdir(exist_ok=True)
    for name in parts.keys() - KEPT_IN_THE_CHECKPOINT:
        (model / name).write_bytes(parts[name])
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shoestring_trainer train", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", metavar="WHAT", help="recipe, job spec, task, or folder of a stopped run")
    parser.add_argument("params", nargs="*", metavar="KEY=VALUE", help="parameters; dotted keys set the spec")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to write; default: a new folder below runs/")
    return parser


def _require_nothing_else(options: argparse.Namespace, what: str) -> None:
    if options.params or options.to:
        raise UserError(f"{options.what} is {what}, which says everything; leave the rest out")


def _is_task(file: Path) -> bool:
    try:
        text = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(text, dict) and "format" in text


def _from_spec(given: Path, params: Sequence[str], to: Path | None) -> Path:
    from shoestring_core import spec, task

    tree = _tree(given, params)
    wanted = spec.parse(tree)
    if wanted.init_job_id:
        get = f"shoestring artifacts get {wanted.init_job_id} --to DIR"
        raise UserError(f"{wanted.init} lies with a service; fetch it with `{get}`, then give init=/path/to/DIR")
    folder = to or _free_folder(str(wanted.name))
    folder.mkdir(parents=True, exist_ok=True)
    if ignored := [name for name in OF_THE_SERVICE if name in tree]:
        sys.stderr.write(f"{', '.join(ignored)}: the service's business, without effect here\n")
    return _write_task(folder, _with_data_here(task.of_spec(wanted, job=folder.name, generation=1)))


def _tree(given: Path, params: Sequence[str]) -> dict[str, Any]:
    from shoestring_core import spec
    from shoestring_core.document import read
    from shoestring_core.errors import InvalidSpec

    if not given.is_file():
        return spec.from_arguments(str(given), list(params))
    if params:
        raise UserError(f"KEY=VALUE goes with a recipe's name; put it into {given} instead")
    tree, problems = read(given.read_bytes())
    if problems:
        raise InvalidSpec(problems)
    if not isinstance(tree, dict):
        raise UserError(f"{given} is no job spec, which is a mapping such as `recipe: digits/quickstart`")
    return tree


def _free_folder(name: str) -> Path:
    if "RANK" in os.environ:
        raise UserError("ranks that torchrun starts have to meet in one folder; name it with --to DIR")
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _resumed(folder: Path) -> Path:
    """The folder's task, going on from its newest checkpoint. Points of steps after that are taken out."""
    file = folder / TASK
    if not file.is_file():
        raise UserError(f"{folder} holds no {TASK}; give the folder of a run")
    return _write_task(folder, _with_data_here(_from_newest(folder, _json_object(file, "start the run anew"))))


def _with_data_here(task: dict[str, Any]) -> dict[str, Any]:
    """The task with its data on this disk: those in a bucket are brought, or brought up to date, in a cache."""
    from shoestring_trainer.data_sync.datasets import NoData, bring, is_remote

    data = task.get("data") or {}
    source = data.get("source") or data.get("train", "")
    if not is_remote(source):
        return task
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoestring"
    try:
        here = asyncio.run(bring(source, cache, os.environ, _say, _say))
    except NoData as error:
        raise UserError(str(error)) from error
    return task | {"data": {**data, "train": str(here), "source": source}}


def _say(news: str) -> None:
    print(news, flush=True)


def _from_newest(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The task, going on from the newest checkpoint in its folder; without one, from where it began."""
    resume = task.get("resume")
    if manifests := _manifests(folder):
        newest = manifests[-1].resolve()
        resume = {"data": str(newest.with_suffix(".data")), "manifest": str(newest)}
    elif resume and not Path(resume["manifest"]).exists():
        resume = None
    step = _step(Path(resume["manifest"])) if resume else 0
    points = folder / "metrics.jsonl"
    lines = points.read_text().splitlines(keepends=True) if points.exists() else []
    points.write_text("".join(line for line in lines if _is_kept(line, step)))
    return task | {"resume": resume}


def _step(manifest: Path) -> int:
    return int(_json_object(manifest, "remove it, to go on from the checkpoint before").get("step", 0))


def _is_kept(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):  # the power went as it was written
        return False


def _json_object(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged; {remedy}")
    return content


def _write_task(folder: Path, content: dict[str, Any]) -> Path:
    for old in ("order", *(path.name for path in folder.glob("exit-*.json"))):
        (folder / old).unlink(missing_ok=True)
    draft = folder / f".{TASK}.{os.getpid()}"
    draft.write_text(json.dumps(content, indent=1))
    return draft.replace(folder / TASK)


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("ckpt/step-*.json"))
