# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer agent | train SPEC`: one word picks the half, and only that half is imported."""

from __future__ import annotations

import sys

USAGE = "usage: python -m shoestring_trainer agent | train SPEC"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["train", spec]:
            from shoestring_trainer.training import rank  # its half needs torch, which an agent must not

            return rank.main(spec)
        case ["agent", *rest]:
            from shoestring_trainer.agent import agent

            return agent.main(rest)
        case _:
            print(USAGE, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
