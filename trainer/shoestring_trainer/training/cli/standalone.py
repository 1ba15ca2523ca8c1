# SPDX-License-Identifier: Apache-2.0
"""Training without a service: a recipe or a job spec becomes a task in a folder of its own.

What only such a start needs is imported inside functions: ranks that a service starts have a task, and start faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from shoestring_core.regular_files import MAX_RUN_BYTES, make_folder, read_regular, read_regular_text
from shoestring_core.task import CheckpointFiles, RecipeTask, TaskData

from shoestring_trainer import processes
from shoestring_trainer.training.errors import NonFiniteError, UserError

TASK_FILE, STARTED_BY_FILE = "task.json", "started-by"
SERVICE_FIELDS = ("resources", "limits", "retry", "notify", "on_budget", "priority", "after", "team")
CHECKPOINT_ONLY_PARTS = {
    "model.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
    "files.json.gz",
}
RUN_FILES = ("metrics.jsonl", "events.jsonl", "ckpt/step-*", "model/*", "samples-rank*.bin")
"""What a run writes from its first step on."""
EXAMPLES = """\
examples:
  python -m shoestring_trainer train digits/quickstart epochs=5
  python -m shoestring_trainer train job.yaml --output-dir runs/mine
  python -m shoestring_trainer train runs/mine                  # resumes a stopped run
  torchrun --nproc-per-node 2 -m shoestring_trainer train digits/quickstart --output-dir runs/two
"""


def prepare_task(arguments: Sequence[str]) -> Path:
    """Return the task file for the command's arguments; it is written for a recipe, a job spec or a stopped run.

    Raises UserError, or InvalidSpec with every error of a spec.
    """
    options = _parser().parse_intermixed_args(arguments)
    given = Path(options.what)
    if given.is_dir():
        _require_no_other_arguments(options, "a run's folder")
        return _resume(given)
    if given.is_file() and (given.name == TASK_FILE or _is_task(given)):
        _require_no_other_arguments(options, "a task file")
        return given
    return _from_spec(given, options.params, options.output_dir)


def roll_back(task: Path, error: NonFiniteError) -> Path:
    """Write the task that resumes after NaN or Inf: from a checkpoint before it, skipping the batches that caused it.

    Raises NonFiniteError, with a longer message, if that was tried too often.
    """
    from shoestring_core import wording
    from shoestring_core.decide import nan_recovery
    from shoestring_core.wording import attempts

    folder, broken = task.parent, _stored_task(task)
    span = nan_recovery.next_skip(error.since, broken.skip)
    if span is None:
        reason = attempts.NanPersisted(str(error), tuple(broken.skip))
        raise NonFiniteError(wording.sentence(reason), error.since) from error
    sys.stdout.write(f"\n{wording.sentence(attempts.RolledBack(str(error), *span))}\n")
    good = [manifest for manifest in _manifests(folder) if _step(manifest) < span[0]]
    for manifest in set(_manifests(folder)) - set(good):
        manifest.unlink()
        manifest.with_suffix(".data").unlink(missing_ok=True)
    return _write_task(folder, _from_newest(folder, broken).model_copy(update={"skip": (*broken.skip, span)}))


def extract_model(folder: Path) -> Path | None:
    """Write the model files of a finished run to `model/` beside its task; None if it has no checkpoint."""
    from shoestring_trainer.training.checkpoint.files import read_checkpoint

    if not (manifests := _manifests(folder)):
        return None
    parts = read_checkpoint(manifests[-1].with_suffix(".data"), manifests[-1])
    model = folder / "model"
    model.mkdir(exist_ok=True)
    for name in parts.keys() - CHECKPOINT_ONLY_PARTS:
        (model / name).write_bytes(parts[name])
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shoestring_trainer train", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", metavar="WHAT", help="recipe, job spec, task, or folder of a stopped run")
    parser.add_argument("params", nargs="*", metavar="KEY=VALUE", help="parameters; dotted keys set the spec")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="where to write; default: a new folder below runs/"
    )
    return parser


def _require_no_other_arguments(options: argparse.Namespace, what: str) -> None:
    if options.params or options.output_dir:
        raise UserError(f"{options.what} is {what}, which has all parameters; leave the other arguments out")


def _is_task(file: Path) -> bool:
    try:
        text = json.loads(read_regular(file))
    except (ValueError, RecursionError):
        return False
    return isinstance(text, dict) and "format" in text


def _from_spec(given: Path, params: Sequence[str], output_dir: Path | None) -> Path:
    from shoestring_core import spec, task

    tree = _tree(given, params)
    parsed = spec.parse(tree)
    if parsed.init_job_id:
        get = f"shoestring artifacts get {parsed.init_job_id} --to DIR"
        raise UserError(
            f"{parsed.init} is an artifact of a service; download it with `{get}`, then pass init=/path/to/DIR"
        )
    folder = output_dir or _free_folder(str(parsed.name))
    torchrun = _torchrun()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and torchrun in _started_by(folder):
        return _resume(folder)
    _require_unused(folder)
    make_folder(folder)
    if torchrun:
        with (folder / STARTED_BY_FILE).open("a") as file:
            file.write(f"{torchrun}\n")
    if ignored := [name for name in SERVICE_FIELDS if name in tree]:
        sys.stderr.write(f"{', '.join(ignored)}: used by the service only, ignored here\n")
    return _write_task(folder, _with_local_data(task.from_spec(parsed, job=folder.name, generation=1)))


def _torchrun() -> str | None:
    """Identify the torchrun that started this rank, and starts it again if it fails; None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return " ".join(map(str, astuple(processes.identify(os.getppid()))))


def _started_by(folder: Path) -> list[str]:
    """The torchruns that started the run in a folder: one on each machine. Empty until it has a task."""
    file = folder / STARTED_BY_FILE
    return read_regular_text(file).splitlines() if file.exists() and (folder / TASK_FILE).exists() else []


def _require_unused(folder: Path) -> None:
    """Raise UserError if the folder holds a run, whose files would be mixed with those of a new one.

    A task alone is none: ranks that torchrun starts together write the same.
    """
    if found := next((path for pattern in RUN_FILES for path in folder.glob(pattern)), None):
        raise UserError(
            f"{folder} holds a run already ({found.relative_to(folder)}). To go on with it: python -m "
            f"shoestring_trainer train {folder}. For a new run, name another folder with --output-dir, or empty it"
        )


def _tree(given: Path, params: Sequence[str]) -> dict[str, Any]:
    from shoestring_core import spec
    from shoestring_core.document import read
    from shoestring_core.errors import InvalidSpec

    if not given.exists():
        return spec.from_arguments(str(given), list(params))
    if params:
        raise UserError(f"KEY=VALUE arguments go with a recipe's name; write them into {given} instead")
    tree, problems = read(read_regular(given))
    if problems:
        raise InvalidSpec(problems)
    if not isinstance(tree, dict):
        raise UserError(f"{given} is no job spec, which is a mapping such as `recipe: digits/quickstart`")
    return tree


def _free_folder(name: str) -> Path:
    if "RANK" in os.environ:
        raise UserError("ranks that torchrun starts need a common folder; name it with --output-dir DIR")
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _resume(folder: Path) -> Path:
    """Write the folder's task so that it resumes from the newest checkpoint; metrics of later steps are removed."""
    file = folder / TASK_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no {TASK_FILE}; give the folder of a run")
    return _write_task(folder, _with_local_data(_from_newest(folder, _stored_task(file))))


def _with_local_data(task: RecipeTask) -> RecipeTask:
    """Return the task with local data: data in a bucket are downloaded to a cache, or updated there."""
    from shoestring_trainer.data_sync.errors import SCHEME, DataUnavailable

    if task.data is None or not (source := task.data.source or task.data.train).startswith(SCHEME):
        return task
    from shoestring_trainer.data_sync.datasets import sync_dataset  # and an HTTP client, which local data don't need

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoestring"
    try:
        if task.data.stream:
            return task.model_copy(update={"data": _stream(task.data, source, cache)})
        local = asyncio.run(sync_dataset(source, cache, os.environ, _print, _print))
    except DataUnavailable as error:
        raise UserError(str(error)) from error
    return task.model_copy(update={"data": task.data.model_copy(update={"train": str(local), "source": source})})


def _stream(data: TaskData, source: str, cache: Path) -> TaskData:
    """Begin to stream shards in a process that ends with this one; one for all ranks of a machine."""
    from shoestring_trainer.data_sync.shard_streamer import open_stream

    stream = asyncio.run(open_stream(source, cache, os.environ, _print, cache_bytes=data.cache_bytes))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        arguments = (source, str(cache), str(data.cache_bytes or ""), str(os.getpid()))
        subprocess.Popen([sys.executable, "-m", "shoestring_trainer", "stream", *arguments], stdin=subprocess.DEVNULL)
    local = {"train": str(stream.folder), "source": source, "requests": str(stream.requests)}
    return data.model_copy(update=local)


def _print(message: str) -> None:
    print(message, flush=True)


def _from_newest(folder: Path, task: RecipeTask) -> RecipeTask:
    """Return the task, resuming from the newest checkpoint in its folder; without one, from its original start."""
    resume = task.resume
    if manifests := _manifests(folder):
        newest = manifests[-1].resolve()
        resume = CheckpointFiles(newest.with_suffix(".data"), newest)
    elif resume and not resume.manifest.exists():
        resume = None
    step = _step(resume.manifest) if resume else 0
    points = folder / "metrics.jsonl"
    if points.exists():
        lines = read_regular(points, MAX_RUN_BYTES).splitlines(keepends=True)
        _replace(points, b"".join(line for line in lines if _is_kept(line, step)))
    return task.model_copy(update={"resume": resume})


def _step(manifest: Path) -> int:
    remedy = "remove it to resume from the previous checkpoint"
    step = _json_object(manifest, remedy).get("step", 0)
    if not isinstance(step, int):
        raise UserError(f"{manifest} is damaged: its step is {step!r}; {remedy}")
    return step


def _is_kept(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a power failure
        return False


def _stored_task(file: Path) -> RecipeTask:
    try:
        return RecipeTask.model_validate(_json_object(file, "start a new run"))
    except ValidationError as error:
        raise UserError(f"{file} is not a task of this version ({error}); start a new run") from error


def _json_object(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged; {remedy}")
    return content


def _write_task(folder: Path, task: RecipeTask) -> Path:
    for old in ("order", *(path.name for path in folder.glob("exit-*.json"))):
        (folder / old).unlink(missing_ok=True)
    return _replace(folder / TASK_FILE, task.model_dump_json(indent=1).encode())


def _replace(file: Path, content: bytes) -> Path:
    """Write a file that other ranks may read, and write alike, at the same time."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content)
    return temporary.replace(file)


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("ckpt/step-*.json"))
