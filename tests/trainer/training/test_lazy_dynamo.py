# SPDX-License-Identifier: Apache-2.0
"""Eager training needs no compiler, and whatever needs one gets the real one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.servers import PATIENCE_S
from tests.trainer.training.gangs import base_environment

FORK_FOR_EACH = """
import json, os, sys, traceback
import torch
from shoestring_trainer.training.lazy_dynamo import defer_dynamo, restore_dynamo

codes = {}
for name, program in json.load(sys.stdin).items():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            defer_dynamo()
            exec(program)
            code = 0
        except BaseException:
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(code)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert "torch._dynamo" not in sys.modules
print(json.dumps(codes))
"""

TRAIN_EAGERLY = """
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
for optimizer in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon):
    parameters = [p for p in model.parameters() if p.ndim == 2]
    optimizer = optimizer(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    model(torch.ones(4, 3)).sum().backward()
    before = parameters[0].detach().clone()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    assert not torch.equal(before, parameters[0])
    optimizer.load_state_dict(optimizer.state_dict())
imported = [name for name in sys.modules if name.startswith("torch._dynamo.")]
assert not imported, imported
"""

USES = {
    "torch.compile": "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2",
    "an attribute": "assert torch._dynamo.config.suppress_errors is False",
    "an attribute of a module in it": "assert torch._dynamo.trace_rules.LEGACY_MOD_INLINELIST",
    "a submodule": """
restore_dynamo()
import torch._dynamo.utils
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
""",
    "export": """
restore_dynamo()
program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(4, 3),))
assert program.module()(torch.ones(4, 3)).shape == (4, 2)
""",
}


CASES = {"training": TRAIN_EAGERLY} | {
    name: f'{use}\nassert "torch._dynamo.eval_frame" in sys.modules' for name, use in USES.items()
}


@pytest.fixture(scope="module")
def outcomes() -> tuple[dict[str, int], str]:
    """Exit codes of all cases, and what the failed ones said. Each ran in a fork that had PyTorch but no compiler."""
    done = subprocess.run(
        [sys.executable, "-c", FORK_FOR_EACH], input=json.dumps(CASES), env=base_environment(), capture_output=True,
        text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_eager_training_does_not_import_the_compiler(outcomes: tuple[dict[str, int], str]) -> None:
    codes, said = outcomes
    assert codes["training"] == 0, said


@pytest.mark.parametrize("use", USES)
def test_what_needs_the_compiler_gets_the_real_one(outcomes: tuple[dict[str, int], str], use: str) -> None:
    codes, said = outcomes
    assert codes[use] == 0, said
