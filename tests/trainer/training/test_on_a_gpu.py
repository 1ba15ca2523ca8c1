# SPDX-License-Identifier: Apache-2.0
"""What only a GPU shows of a training step: that the host never waits for it, and what is copied to it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.setup import choose_algorithms
from shoestring_trainer.training.step import Trainer
from shoestring_trainer.training.upload import upload, upload_stream
from torch.profiler import ProfilerActivity, profile

from tests.trainer.training.first_phase import RECIPES, first_phase

STEPS = 3
WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"}


def pageable_copies(recorded: profile) -> int:
    """Return how often memory that isn't pinned was copied to the GPU."""
    return sum("Pageable -> Device" in event.name for event in recorded.events())


@pytest.mark.gpu
def test_the_profiler_sees_a_copy_from_pageable_memory():
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        torch.zeros(1 << 20).to("cuda:0", non_blocking=True)
        torch.cuda.synchronize()
    assert pageable_copies(recorded) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_neither_waits_for_the_gpu_nor_copies_to_it_from_pageable_memory(name: str, precision: Precision):
    setup = first_phase(name, precision, torch.device("cuda", 0))
    choose_algorithms(setup.distributed.device, deterministic=setup.settings.deterministic)
    trainer, schedule, sampler = Trainer(setup, frozenset(), lambda: False), setup.schedule, setup.build_sampler()
    batch, queued = schedule.phases[0].batch_size, []

    def train(steps: range) -> None:
        for step in steps:
            samples = sampler.batch(schedule.samples_before(step), batch)
            queued.append(trainer.train_step(samples, batch, schedule.step_hyperparams(step)))
            if trainer.average:
                trainer.average.update(5, schedule.total_steps)

    train(range(STEPS))  # chooses algorithms and allocates
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(range(STEPS, 2 * STEPS))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    events = Counter(event.name for event in recorded.events())
    assert events["cudaLaunchKernel"] > 0, "the profiler recorded nothing"
    assert not WAITS & events.keys()
    assert not pageable_copies(recorded)
    assert all(len(step.numbers.read()) == (4 if precision is Precision.FP16 else 2) for step in queued)


@pytest.mark.gpu
def test_an_upload_ends_while_the_steps_before_it_are_still_at_work():
    device, host = torch.device("cuda", 0), torch.arange(1000)
    upload(host, device)  # pins and allocates
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 31)  # about a second
    uploaded = upload(host, device)
    upload_stream(device).synchronize()
    assert not torch.cuda.current_stream(device).query()
    assert torch.equal(uploaded.cpu(), host)


@pytest.mark.gpu
def test_memory_of_an_upload_is_reused_only_after_the_step_that_reads_it():
    device, sums = torch.device("cuda", 0), []
    for number in range(50):
        uploaded = upload(torch.full((1 << 18,), number), device)
        torch.cuda._sleep(1 << 22)  # the step is late: the next uploads are made meanwhile
        sums.append(uploaded.sum())
        del uploaded
    assert [int(one) for one in sums] == [number << 18 for number in range(50)]
