# SPDX-License-Identifier: Apache-2.0
"""Eager training needs no compiler, and whatever needs one gets the real one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.trainer.training.gangs import base_environment

TRAIN_EAGERLY = """
import sys
import torch
from shoestring_trainer.training.lazy_dynamo import defer_dynamo

defer_dynamo()
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


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], env=base_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_eager_training_does_not_import_the_compiler() -> None:
    run(TRAIN_EAGERLY)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_needs_the_compiler_gets_the_real_one(use: str) -> None:
    run(f"""
import sys
import torch
from shoestring_trainer.training.lazy_dynamo import defer_dynamo, restore_dynamo

defer_dynamo()
{use}
assert "torch._dynamo.eval_frame" in sys.modules
""")
