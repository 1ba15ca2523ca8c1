# SPDX-License-Identifier: Apache-2.0
"""Each sample of an epoch is trained on once, whatever befell the gang; and the logs that say so can say otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shoestring_trainer.training.cli.sample_audit import SampleAudit, audit_samples, main
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.results.sample_log import SampleLog, read_sample_log

from tests.servers import PATIENCE_S
from tests.trainer.training.gangs import PACKAGE_FOLDERS, finished, gang

PARAMS = {"epochs": 2, "batch_size": 32, "width": 4}


def audit(folder: Path) -> SampleAudit:
    return audit_samples(read_sample_log(path) for path in folder.glob("**/samples-rank*.bin"))


def test_after_a_lost_machine_and_another_world_each_sample_of_an_epoch_was_met_once(tmp_path: Path):
    """Three machines; one is killed in the first epoch, two resume from the checkpoint, then three again to the end."""
    every = {"every_s": None, "every_steps": 4}
    with gang(tmp_path / "1", nodes=3, params=PARAMS, checkpoint=every) as run:
        run.until_step(14)
        os.kill(run.rank_pids()[2], signal.SIGKILL)
        assert any(run.wait())
        resume = run.checkpoint()
    with gang(tmp_path / "2", nodes=2, params=PARAMS, checkpoint=every, generation=2, resume=resume) as run:
        run.until_step(50)
        run.order_stop()
        assert run.wait() == [0, 0], run.logs()
        resume = run.checkpoint()
    last = finished(tmp_path / "3", nodes=3, params=PARAMS, generation=3, resume=resume, bare=True)
    audited = audit(tmp_path)
    print(*audited.generations, sep="\n")
    assert audited.passed, (audited.gaps, [epoch.problems for epoch in audited.epochs])
    assert [(one.world_size, one.ranks) for one in audited.generations] == [(3, 3), (2, 2), (3, 3)]
    assert [sum(epoch.counts.values()) for epoch in audited.epochs[:2]] == [1438, 1438]
    assert all(set(epoch.counts) == set(range(1438)) for epoch in audited.epochs[:2])
    assert last.metrics()[-1]["step"] == audited.generations[-1].last
    command = [sys.executable, "-m", "shoestring_trainer", "samples", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert told.returncode == 0, told.stderr
    assert "epoch 1: 1438 of 1438 samples, each once" in told.stdout


@pytest.fixture
def two_generations(tmp_path: Path) -> Path:
    """Two ranks did 10 steps; three resumed from step 6 and did 20: two epochs of 50 samples and no more."""
    for generation, world, start, end in ((1, 2, 0, 10), (2, 3, 6, 20)):
        for rank in range(world):
            folder = tmp_path / f"machine-{rank}" / "gen" / str(generation)
            folder.mkdir(parents=True)
            log = SampleLog(
                folder, generation=generation, rank=rank, world_size=world, start=start, samples_per_epoch=50
            )
            sampler = DistributedSampler(7, 50, rank, world)
            for step in range(start, end):
                log.log_step(step + 1, sampler.batch(5 * step, 5).spans)
    return tmp_path


def test_steps_done_again_count_once(two_generations: Path):
    audited = audit(two_generations)
    assert audited.passed
    first, second = audited.generations
    assert (first.first, first.last, first.rolled_back, first.samples) == (1, 6, 4, 30)
    assert (second.first, second.last, second.rolled_back, second.samples) == (7, 20, 0, 70)
    assert main([str(two_generations)]) == 0


def test_a_log_that_is_missing_cut_or_doubled_is_seen(two_generations: Path, tmp_path_factory, capsys):
    lost = two_generations / "machine-1" / "gen" / "1" / "samples-rank1.bin"
    content = lost.read_bytes()
    lost.unlink()
    assert main([str(two_generations)]) == 1
    assert "without the log of 1 rank" in capsys.readouterr().out
    lost.write_bytes(content[:-100])
    assert audit(two_generations).passed  # rolled-back samples were trained again
    lost.write_bytes(content[:200])
    assert main([str(two_generations)]) == 1
    assert "rank 1 lacks steps" in capsys.readouterr().out
    lost.write_bytes(content)
    again = two_generations / "machine-0" / "gen" / "2"
    log = SampleLog(again, generation=2, rank=0, world_size=3, start=6, samples_per_epoch=50)
    for step in range(6, 20):
        log.log_step(step + 1, [(step // 10, 0, torch.tensor([0]))])
    assert main([str(two_generations)]) == 1
    assert "repeated: [0]" in capsys.readouterr().out
    assert main([str(tmp_path_factory.mktemp("empty"))]) == 2


HEADER = {"format": 1, "generation": 1, "rank": 1, "world_size": 2, "start": 0, "samples_per_epoch": 50}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a log of samples of this version (its first line: "),
        (b"\x9c\x00\x1b" + b"\xff\0" * 4000, "(its first line: "),
        (b"[]\n", "(its first line: "),
        (json.dumps(HEADER | {"format": 2}).encode() + b"\n", "(format: "),
        (json.dumps(HEADER | {"rank": "1"}).encode() + b"\n", "(rank: "),
        (json.dumps(HEADER | {"start": float("nan")}).encode() + b"\n", "(start: "),
        (json.dumps(HEADER | {"world_size": 0}).encode() + b"\n", "(world_size: "),
        (json.dumps(HEADER | {"samples_per_epoch": 1.5}).encode() + b"\n", "(samples_per_epoch: "),
        (b"[" * 100_000, "(its first line: "),
    ],
)
def test_what_is_no_log_is_said_by_its_name(two_generations: Path, capsys, content: bytes, message: str):
    (two_generations / "machine-1" / "gen" / "1" / "samples-rank1.bin").write_bytes(content)
    assert main([str(two_generations)]) == 1
    told = capsys.readouterr().out
    assert "machine-1/gen/1/samples-rank1.bin" in told
    assert message in told
    assert "generation 2: 3 of 3 ranks, steps 7 to 20" in told


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ((0, 0, 0, 0), "step 0 comes after step 10"),
        ((9, 0, 0, 0), "step 9 comes after step 10"),
        ((2_000_000_000, 0, 0, 0), "step 2000000000 comes after step 10"),
        ((-2_147_483_648, 0, 0, 0), "step -2147483648 comes after step 10"),
        ((11, -1, 0, 0), "samples 0 to 0 of epoch -1"),
        ((11, 0, 0, 2_000_000_000), "samples 0 to 2000000000 of epoch 0"),
        ((11, 0, 9, -1), "samples 9 to 8 of epoch 0"),
        ((11, 0, 0, 1, 50), "sample 50 after"),
        ((11, 0, 0, 2, 3, -7), "sample -7 after"),
    ],
)
def test_a_damaged_record_ends_a_log_and_is_told(
    two_generations: Path, capsys, record: tuple[int, ...], message: str
):  # fmt: skip
    damaged = two_generations / "machine-1" / "gen" / "1" / "samples-rank1.bin"
    with damaged.open("ab") as file:
        file.write(b"".join(number.to_bytes(4, "little", signed=True) for number in record))
    assert main([str(two_generations)]) == 1
    told = capsys.readouterr().out
    assert f"{damaged} is damaged: {message}" in told
    assert "generation 1: 2 of 2 ranks, steps 1 to 6, 30 samples, 4 more recomputed later" in told


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder"])
def test_a_log_of_terabytes_or_that_is_no_file_is_told_at_once(two_generations: Path, capsys, kind: str):
    path = two_generations / "machine-1" / "gen" / "1" / "samples-rank1.bin"
    if kind == "sparse":
        os.truncate(path, 256 << 30)
    else:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert main([str(two_generations)]) == 1
    assert ("damaged: step 0" if kind == "sparse" else f"cannot read {path}: it is a {kind}") in capsys.readouterr().out


def test_a_run_that_is_named_twice_counts_once(two_generations: Path):
    assert main([str(two_generations), str(two_generations / "machine-0")]) == 0
