# SPDX-License-Identifier: Apache-2.0
"""Ranks of which one is asked to stop at a chosen batch of a chosen evaluation, or while it decodes images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
import os, sys
from shoestring_trainer.training import rank, step_results
from shoestring_trainer.training.data import decoded_cache
from shoestring_trainer.training.results import evaluation
from shoestring_trainer.training.stop_listener import StopListener

STOP = {stop!r}
step_results.LAG["cpu"] = STOP["lag"]
evaluation.BATCH_SIZE = 16  # several batches for each rank
chosen = os.environ.get("RANK", "0") == str(STOP["rank"])
started, batches, listener, evaluations = StopListener.training_started, evaluation._batches, None, 0
decode, decodes = decoded_cache.decode_to_file, 0

def start(own):
    global listener
    listener = own
    started(own)

def tell(data, distributed):
    global evaluations
    evaluations += 1
    for number, batch in enumerate(batches(data, distributed), 1):
        print("evaluation", evaluations, "batch", number)
        if chosen and (evaluations, number) == (STOP["evaluation"], STOP["batch"]):
            listener.stop_requested = True
        yield batch

def decode_or_stop(*arguments, **options):
    global decodes
    decodes += 1
    if chosen and decodes == STOP["decode"]:
        listener.stop_requested = True
    decode(*arguments, **options)

StopListener.training_started, evaluation._batches, decoded_cache.decode_to_file = start, tell, decode_or_stop
rank.main(sys.argv[1:])
"""


@dataclass(frozen=True)
class StopInEvaluation:
    """Evaluations of a process, and their batches, are counted from 1; 0: never.

    lag     batches between one and the reading of what ranks have said with it, as between steps and their results
    decode  it is asked when it has begun to decode the images of a split at a size for so many times
    """

    evaluation: int
    batch: int = 2
    rank: int = 0
    lag: int = 0
    decode: int = 0

    def script(self, folder: Path) -> Path:
        """Write the ranks' script."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "stopped.py"
        file.write_text(SCRIPT.format(stop=vars(self)))
        return file
