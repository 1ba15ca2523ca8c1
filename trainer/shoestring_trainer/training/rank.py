# SPDX-License-Identifier: Apache-2.0
"""One rank from start to exit code: its log, its stop listener, its training and its exit file.

Without RANK in the environment a process trains standalone: it writes to its terminal instead of a log, and stops at
Ctrl-C.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from shoestring_core import terminal_text
from shoestring_core.errors import InvalidSpec

from shoestring_trainer.run_files import ExitFile, Outcome, RankError, printable
from shoestring_trainer.terminal import escape_unencodable
from shoestring_trainer.training.cli.standalone import extract_model, prepare_task, roll_back
from shoestring_trainer.training.errors import (
    EXPLAINED,
    HookError,
    NonFiniteError,
    TrainerError,
    classify_error,
    error_message,
    explain_os_error,
)
from shoestring_trainer.training.stop_listener import STOP_SIGNALS, StopListener
from shoestring_trainer.training.task import LocalTask, StepCounter, read_task

USAGE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str]) -> NoReturn:
    """Train what the arguments name; write exit-{rank}.json beside the task; exit 0 if finished or drained, else 1."""
    escape_unencodable()
    try:
        task = prepare_task(arguments)
    except InvalidSpec as invalid:
        text = "".join(f"{problem.pointer or '/'}: {problem.message}\n" for problem in invalid.problems)
        sys.stderr.write(terminal_text.printable(text))
        sys.exit(USAGE)
    except TrainerError as error:
        sys.stderr.write(f"{terminal_text.printable(str(error))}\n")
        sys.exit(USAGE)
    except OSError as error:
        sys.stderr.write(f"{terminal_text.printable(explain_os_error(error))}\n")
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
    standalone = "RANK" not in os.environ
    counter = StepCounter()

    def exit_before_training() -> NoReturn:
        _write_exit(folder, rank, "drained", counter.step)
        os._exit(0)

    try:
        if not standalone:
            _log_to(folder / f"log-rank{rank}.txt")
        signals = (*STOP_SIGNALS, signal.SIGINT) if standalone else STOP_SIGNALS
        stop_listener = StopListener(folder / "order", exit_before_training, signals)
        task = read_task(spec)
        train = _load_training()  # imports torch, if the rank server has not; a stop request is handled meanwhile
        while True:
            try:
                outcome = train(task, stop_listener, counter)
                break
            except NonFiniteError as broken:
                if not standalone:
                    raise  # the service decides
                task = read_task(roll_back(spec, broken))
                counter.start_step = counter.step = 0
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank is classified and reported
        if "stop_listener" in locals() and stop_listener.stop_requested and counter.step == counter.start_step:
            # its peers stopped before the first step: there is nothing to save
            _write_exit(folder, rank, "drained", counter.step)
            return 0
        _report_error(folder, rank, counter.step, error, standalone)
        return 1
    _write_exit(folder, rank, outcome, counter.step)
    if standalone:
        _print_result(folder, outcome)
    return 0


def _load_training() -> Callable[[LocalTask, StopListener, StepCounter], Outcome]:
    """Import the training loop, and torch with it.

    Imported objects are never garbage. Searching them would take the collector a fifth of the start, so it is off
    meanwhile and ignores them afterwards.
    """
    gc.disable()
    try:
        from shoestring_trainer.training.loop import train
    finally:
        gc.freeze()
        gc.enable()
    return train


def _print_result(folder: Path, outcome: Outcome) -> None:
    if outcome == "drained":
        print(f"\nStopped; resume with: python -m shoestring_trainer train {_short(folder)}")
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
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    escape_unencodable()


def _report_error(folder: Path, rank: int, step: int, error: BaseException, standalone: bool) -> None:
    kind = classify_error(error, has_peers=int(os.environ.get("WORLD_SIZE", "1")) > 1)
    message = error_message(error, kind)
    # A message that says what is wrong and what to do needs no traceback of our own code beside it.
    explained = isinstance(error, EXPLAINED) and not isinstance(error, HookError)
    trace = "" if explained else "".join(traceback.format_exception(error))
    sys.stderr.write(f"\n{kind}: {terminal_text.printable(message)}\n" if standalone or explained else trace)
    since = error.since if isinstance(error, NonFiniteError) else None
    record = RankError(kind=kind, message=printable(message), traceback=printable(trace), since=since)
    _write_exit(folder, rank, "error", step, record)


def _write_exit(folder: Path, rank: int, outcome: Outcome, step: int, error: RankError | None = None) -> None:
    content = ExitFile(rank=rank, outcome=outcome, step=step, t=time.time(), error=error)
    path = folder / f"exit-{rank}.json"
    try:
        draft = path.with_suffix(".tmp")
        draft.write_text(content.model_dump_json())
        draft.replace(path)
    except OSError as failed:  # a missing exit file reads as death by signal; the log keeps the reason
        sys.stderr.write(f"cannot write {path}: {failed}\n")
