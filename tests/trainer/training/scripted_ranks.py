# SPDX-License-Identifier: Apache-2.0
"""Imported by the tests' rank server: what the environment of a rank may ask for.

A rank whose environment names a script runs it instead of the trainer; one that shall leave no artifacts exports no
model.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from typing import NoReturn

from shoestring_trainer.training import loop, rank

from tests.trainer.training.gangs import BARE_VARIABLE, SCRIPT_VARIABLE

_train = rank.main


def _main(arguments: Sequence[str]) -> NoReturn:
    if os.environ.pop(BARE_VARIABLE, None):
        loop.build_artifacts = lambda *_, **__: {}
    script = os.environ.pop(SCRIPT_VARIABLE, None)
    if script is None:
        _train(arguments)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    sys.exit()


rank.main = _main
