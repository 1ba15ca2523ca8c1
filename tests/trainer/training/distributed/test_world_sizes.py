# SPDX-License-Identifier: Apache-2.0
"""A gang of any size trains as one process does: the same samples, the same batch, the same curve."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
import torch
from shoestring_trainer.training.distributed.context import DistributedContext

from tests.trainer.training.gangs import Gang, finished

PARAMS = {"epochs": 2, "batch_size": 30, "width": 4, "lr": 0.05}  # 30 images do not divide by 4
FIRST_STEPS, STEPS = 10, 96


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Gang:
    return finished(tmp_path_factory.mktemp("alone"), params=PARAMS, bare=True)


@pytest.mark.parametrize("world", [2, 4])
def test_the_curve_of_a_gang_is_the_curve_of_one_process(alone: Gang, world: int, tmp_path: Path):
    """With translation, rotation, dropout and batch norms over the whole batch, as the recipe has them; in fp32.

    Only the last bits of sums differ at first. As soon as they decide which of two nearly equal values a max pooling
    takes, the curves are two runs of one experiment; on which step that happens depends on the processor (27 at the
    earliest so far).
    """
    run = finished(tmp_path, procs=world, params=PARAMS, bare=True)
    assert run.events("started")[0]["world_size"] == world
    losses = apart(run, alone, "train/loss")
    print(
        f"world {world}: losses at most {max(losses[:FIRST_STEPS]):.1e} apart at first, {mean(losses):.1e} on average"
    )
    assert max(losses[:FIRST_STEPS]) < 1e-5
    assert mean(losses) < 0.05
    assert apart(run, alone, "val/loss")[0] < 0.05
    assert len(losses) == STEPS


def test_a_gang_whose_norms_see_their_own_share_has_a_curve_of_its_own(alone: Gang, tmp_path: Path):
    """What the setting is for: without it each rank normalises by fewer images."""
    run = finished(tmp_path, procs=2, params=PARAMS | {"sync_batch_norm": False}, bare=True)
    assert apart(run, alone, "train/loss")[0] > 1e-4


def test_one_process_in_two_parts_computes_what_two_processes_do(tmp_path: Path):
    """Gradient accumulation: the batch and the curve hold, on half the memory or half the machines."""
    params = PARAMS | {"sync_batch_norm": False, "dropout": 0, "epochs": 1}
    two = finished(tmp_path / "two", procs=2, params=params, bare=True)
    one = finished(tmp_path / "one", procs=1, params=params | {"micro_batch_size": 15}, bare=True)
    assert max(apart(one, two, "train/loss")[:40]) < 1e-4


def test_ranks_take_their_shares_in_as_many_parts():
    sizes = [DistributedContext(rank, 4, 0, torch.device("cpu")).micro_batch_count(30, 3) for rank in range(4)]
    assert sizes == [3, 3, 3, 3]  # shares of 7 and 8
    assert DistributedContext(0, 4, 0, torch.device("cpu")).micro_batch_count(6, 1) == 1  # some have one image only
    assert DistributedContext(0, 2, 0, torch.device("cpu")).micro_batch_count(30, 0) == 1


def test_accumulated_gradients_are_the_mean_of_the_ranks_however_they_travel(tmp_path: Path):
    """In half precision or not, with DDP's static graph or not."""
    finished(tmp_path, procs=2, script=Path(__file__).with_name("averaged_gradients.py"))


def apart(run: Gang, other: Gang, name: str) -> list[float]:
    """By how much two runs' values of a metric differ, point by point."""
    ours, theirs = series(run, name), series(other, name)
    assert ours.keys() == theirs.keys(), name
    return [abs(ours[step] - theirs[step]) for step in ours]


def series(run: Gang, name: str) -> dict[int, float]:
    return {line["step"]: line["v"][name] for line in run.metrics() if name in line["v"]}
