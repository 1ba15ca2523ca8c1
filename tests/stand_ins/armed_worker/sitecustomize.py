# SPDX-License-Identifier: Apache-2.0
"""Plants one fault at a failpoint of a real worker, if this folder is in its PYTHONPATH.

Every Python process of the service imports this when it starts; all but the worker are left alone. The fault is
`fault.json` in the folder that SHOESTRING_FAULT_FOLDER names. It counts from when `armed` is there, and strikes once,
however often the worker is started again: `struck` says when. `reached` has the names of the failpoints.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

if "shoestring_worker.app" in sys.orig_argv and "SHOESTRING_FAULT_FOLDER" in os.environ:
    sys.path.append(str(Path(__file__).parents[3]))

    from shoestring_worker import failpoints

    from tests.worker.saboteur import DELAY_S, Fault, Saboteur

    folder = Path(os.environ["SHOESTRING_FAULT_FOLDER"])

    class ProcessSaboteur(Saboteur):
        def __call__(self, name: str, call: Callable[[], Any]) -> Any:
            if not (folder / "armed").exists():
                return call()
            if not self.reached[name]:
                with (folder / "reached").open("a") as file:
                    file.write(f"{name}\n")
            if self.fault and not self.struck and (name, self.reached[name] + 1) == (self.fault.name, self.fault.nth):
                (folder / "struck").write_text(str(time.time()))  # before: it may be the last thing that this does
            return super().__call__(name, call)

        def die(self) -> NoReturn:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("it lives")

    fault = None if (folder / "struck").exists() else Fault(**json.loads((folder / "fault.json").read_text()))
    planted = failpoints.plant(ProcessSaboteur(fault, lambda: time.sleep(DELAY_S)))
    planted.__enter__()  # its reference is kept: without one it would be undone at once
