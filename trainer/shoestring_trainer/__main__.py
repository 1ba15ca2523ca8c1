# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer COMMAND …`: only what the command needs is imported."""

from __future__ import annotations

import os
import sys

USAGE = """\
usage: python -m shoestring_trainer COMMAND …

  agent                        serve a machine (the service starts it)
  train WHAT                   train a recipe, a job spec or a task, alone or under torchrun
  predict MODEL IMAGE…         classify images with a trained model
  export MODEL FILE.onnx       write a trained model as ONNX
  schedule RECIPE              plot learning rate, momentum, batch size and image size over a run
  lr-find RECIPE               learning-rate finder
  model RECIPE                 print a network's layers, shapes, parameters and FLOP
  prepare SOURCE DESTINATION   pack images into shards
  samples FOLDER…              check that a job trained on each sample once per epoch

COMMAND --help shows its options."""


def main(arguments: list[str]) -> int:
    match arguments:
        case ["train", *rest] if rest:
            from shoestring_trainer.training import rank  # needs torch, which agents don't have

            return rank.main(rest)
        case ["predict" | "export" | "schedule" | "model" | "lr-find" | "prepare", *_]:
            from shoestring_trainer.training.cli import commands

            return commands.main(arguments)
        case ["samples", *folders]:
            from shoestring_trainer.training.cli import sample_audit

            return sample_audit.main(folders)
        case ["agent", *rest]:
            from shoestring_trainer.agent import agent

            return agent.main(rest)
        case ["stream", *rest]:  # `train` starts it
            from shoestring_trainer.data_sync import shard_streamer

            return shard_streamer.main(rest)
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return 2


def start_again_with_rank_environment() -> None:
    """Become the same program in the environment that an agent gives its ranks: glibc reads some of it at the start.

    Returns if this process has it.
    """
    from shoestring_trainer.agent.launch_env import environment_to_start_again_in

    environment = environment_to_start_again_in(os.environ, len(os.sched_getaffinity(0)))
    if environment is not None:
        try:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - no shell
        except OSError:
            pass  # then training is slower


if __name__ == "__main__":
    if not sys.flags.safe_path:  # -m puts the current folder first, where a random.py would hide Python's own
        sys.path.append(sys.path.pop(0))
    if sys.argv[1:2] == ["train"]:
        start_again_with_rank_environment()
    sys.exit(main(sys.argv[1:]))
