# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer COMMAND …`: one word picks the half, and only that half is imported."""

from __future__ import annotations

import sys

USAGE = """\
usage: python -m shoestring_trainer COMMAND …

  agent                        serve a machine (the service starts it)
  train WHAT                   train a recipe, a job spec or a task, alone or under torchrun
  predict MODEL IMAGE…       what a trained model says of images
  export MODEL FILE.onnx       write a trained model as ONNX
  schedule RECIPE              draw the rates, the momentum, the batches and the sizes of a run
  lr-find RECIPE               how the loss goes as the learning rate grows, and which rate to take
  model RECIPE                 print a network with its shapes, parameters and FLOP
  samples FOLDER…              which samples a job's machines trained on, generation by generation

COMMAND --help says more."""


def main(arguments: list[str]) -> int:
    match arguments:
        case ["train", *words] if words:
            from shoestring_trainer.training import rank  # its half needs torch, which an agent must not

            return rank.main(words)
        case ["predict" | "export" | "schedule" | "model" | "lr-find", *_]:
            from shoestring_trainer.training.cli import commands

            return commands.main(arguments)
        case ["samples", *folders]:
            from shoestring_trainer.training.cli import sample_audit

            return sample_audit.main(folders)
        case ["agent", *rest]:
            from shoestring_trainer.agent import agent

            return agent.main(rest)
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
