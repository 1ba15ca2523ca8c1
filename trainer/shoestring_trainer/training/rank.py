# SPDX-License-Identifier: Apache-2.0
"""One rank from first breath to exit code: its log, its orders, its training, and the word it leaves behind."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from shoestring_trainer.training.faults import classify, explain
from shoestring_trainer.training.orders import Orders
from shoestring_trainer.training.task import Outcome, Standing, read_task


def main(spec: str) -> NoReturn:
    """Train what `spec` asks for, leave exit-{rank}.json beside it, exit 0 when finished or drained, 1 on error."""
    code = _run(spec)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not through the interpreter's end: it would join gloo's threads, which may wait for its lock


def _run(spec: str) -> int:
    folder = Path(spec).resolve().parent
    rank = int(os.environ.get("RANK", "0"))
    alone_at_a_terminal = "RANK" not in os.environ and sys.stdout.isatty()
    standing = Standing()

    def leave_before_training() -> NoReturn:
        _write_exit(folder, rank, "drained", standing.step)
        os._exit(0)

    try:
        if not alone_at_a_terminal:
            _log_to(folder / f"log-rank{rank}.txt")
        orders = Orders(folder / "order", leave_before_training)
        task = read_task(Path(spec))
        from shoestring_trainer.training.loop import train  # a second of torch; orders are watched meanwhile

        outcome = train(task, orders, standing)
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank is classified and reported
        if "orders" in locals() and orders.stop_asked and standing.step == standing.start_step:
            # the others left before the first step, and there is nothing to save
            _write_exit(folder, rank, "drained", standing.step)
            return 0
        _report_error(folder, rank, standing.step, error, alone_at_a_terminal)
        return 1
    _write_exit(folder, rank, outcome, standing.step)
    return 0


def _log_to(path: Path) -> None:
    """Send this process's stdout and stderr, C libraries' too, to one file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _report_error(folder: Path, rank: int, step: int, error: BaseException, at_a_terminal: bool) -> None:
    kind = classify(error)
    message, trace = explain(error, kind), "".join(traceback.format_exception(error))
    if at_a_terminal:
        sys.stderr.write(f"\n{kind}: {message}\n")
    else:
        sys.stderr.write(trace)
    _write_exit(folder, rank, "error", step, {"kind": kind, "message": message, "traceback": trace})


def _write_exit(folder: Path, rank: int, outcome: Outcome, step: int, error: dict[str, Any] | None = None) -> None:
    word = {"rank": rank, "outcome": outcome, "step": step, "t": time.time(), "error": error}
    path = folder / f"exit-{rank}.json"
    try:
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(word))
        draft.replace(path)
    except OSError as failed:  # a missing exit file reads as death by signal; the log keeps the reason
        sys.stderr.write(f"cannot write {path}: {failed}\n")
