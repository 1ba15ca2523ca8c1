# SPDX-License-Identifier: Apache-2.0
"""One rank from first breath to exit code: its log, its orders, its training, and the word it leaves behind.

Without torchrun a process trains alone, and speaks at its terminal instead of in a log: Ctrl-C is its order to stop.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shoestring_core.errors import InvalidSpec

from shoestring_trainer.training.cli.standalone import extract_model, prepare_task, roll_back
from shoestring_trainer.training.errors import NonFiniteError, TrainerError, classify_error, error_message
from shoestring_trainer.training.orders import TOLD_BY, Orders
from shoestring_trainer.training.task import Outcome, StepCounter, Task, read_task

USAGE, INTERRUPTED = 2, 130


def main(words: Sequence[str]) -> NoReturn:
    """Train what the words ask for; leave exit-{rank}.json beside the task; exit 0 if finished or drained, else 1."""
    try:
        task = prepare_task(words)
    except InvalidSpec as invalid:
        sys.stderr.write("".join(f"{problem.pointer or '/'}: {problem.message}\n" for problem in invalid.problems))
        sys.exit(USAGE)
    except TrainerError as fault:
        sys.stderr.write(f"{fault}\n")
        sys.exit(USAGE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    code = _run(task)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not through the interpreter's end: it would join gloo's threads, which may wait for its lock


def _run(spec: Path) -> int:
    folder = spec.resolve().parent
    rank = int(os.environ.get("RANK", "0"))
    alone = "RANK" not in os.environ
    counter = StepCounter()

    def leave_before_training() -> NoReturn:
        _write_exit(folder, rank, "drained", counter.step)
        os._exit(0)

    try:
        if not alone:
            _log_to(folder / f"log-rank{rank}.txt")
        orders = Orders(folder / "order", leave_before_training, (*TOLD_BY, signal.SIGINT) if alone else TOLD_BY)
        task = read_task(spec)
        train = _load_training()  # a second of torch; orders are watched meanwhile
        while True:
            try:
                outcome = train(task, orders, counter)
                break
            except NonFiniteError as broken:
                if not alone:
                    raise  # the service decides
                task = read_task(roll_back(spec, broken))
                counter.start_step = counter.step = 0
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank is classified and reported
        if "orders" in locals() and orders.stop_requested and counter.step == counter.start_step:
            # the others left before the first step, and there is nothing to save
            _write_exit(folder, rank, "drained", counter.step)
            return 0
        _report_error(folder, rank, counter.step, error, alone)
        return 1
    _write_exit(folder, rank, outcome, counter.step)
    if alone:
        _say_what_is_there(folder, outcome)
    return 0


def _load_training() -> Callable[[Task, Orders, StepCounter], Outcome]:
    """The training loop, and torch with it.

    What that loads is never garbage. The collector, which would look through it again and again, would take a fifth of
    the start, so it stands still meanwhile and leaves it alone afterwards.
    """
    gc.disable()
    try:
        from shoestring_trainer.training.loop import train
    finally:
        gc.freeze()
        gc.enable()
    return train


def _say_what_is_there(folder: Path, outcome: Outcome) -> None:
    if outcome == "drained":
        print(f"\nStopped; go on with: python -m shoestring_trainer train {_short(folder)}")
    elif model := extract_model(folder):
        print(f"{_short(model)}: {', '.join(sorted(path.name for path in model.iterdir()))}")


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _log_to(path: Path) -> None:
    """Send this process's stdout and stderr, C libraries' too, to one file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _report_error(folder: Path, rank: int, step: int, error: BaseException, alone: bool) -> None:
    kind = classify_error(error)
    message, trace = error_message(error, kind), "".join(traceback.format_exception(error))
    sys.stderr.write(f"\n{kind}: {message}\n" if alone else trace)
    since = {"since": error.since} if isinstance(error, NonFiniteError) else {}
    _write_exit(folder, rank, "error", step, {"kind": kind, "message": message, "traceback": trace, **since})


def _write_exit(folder: Path, rank: int, outcome: Outcome, step: int, error: dict[str, Any] | None = None) -> None:
    word = {"rank": rank, "outcome": outcome, "step": step, "t": time.time(), "error": error}
    path = folder / f"exit-{rank}.json"
    try:
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(word))
        draft.replace(path)
    except OSError as failed:  # a missing exit file reads as death by signal; the log keeps the reason
        sys.stderr.write(f"cannot write {path}: {failed}\n")
