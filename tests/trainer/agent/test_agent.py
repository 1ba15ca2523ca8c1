# SPDX-License-Identifier: Apache-2.0
"""The agent as a real process, with stand-in ranks, against a service and a metadata service that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from shoestring_core.wire import Order
from shoestring_trainer import processes
from shoestring_trainer.agent.ranks import MACHINE_VARIABLE
from shoestring_trainer.data_sync.shard_requests import ShardRequests

from tests.forked import ForkedProgram
from tests.servers import PATIENCE_S
from tests.trainer.agent.services import DROP, DROP_REPLY, MetadataService, Service
from tests.trainer.data_sync.bucket_server import BUCKET, put_shards, serving
from tests.trainer.training.gangs import RANKS_PATIENCE_S

LAUNCHER = Path(__file__).with_name("stand_in_ranks.py")
WITHIN_S = PATIENCE_S
NOTICE_S = 120.0
"""EC2's. Nobody waits for its end but ranks that do not heed."""
IDLE_MB = 340
"""Memory of its own that a machine may use while it waits for an order: agent, dead-man switch and rank server, most of
it PyTorch. Measured: 306 where no other process has its libraries mapped."""


class Machine:
    """A machine's folder, its two services, and the agent that runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.service = Service()
        self.metadata = MetadataService()
        self.user_data(self.service.boot_token)
        self.metadata.documents["meta-data/local-ipv4"] = "10.0.0.7"
        self.agent: subprocess.Popen[bytes] | ForkedProgram | None = None

    def user_data(self, boot_token: str) -> None:
        word = {"server_url": self.service.url, "machine": str(self.service.machine), "boot_token": boot_token}
        self.metadata.documents["user-data"] = json.dumps(word)

    def boot(self, *, forked: bool = True, **environment: str) -> None:
        """`forked`: from a process that has imported the agent; else as machines start it."""
        ours = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url,
            "SHOESTRING_MACHINE_DIR": str(self.folder),
            "SHOESTRING_AGENT_RANK_COMMAND": f"{sys.executable} {LAUNCHER}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command, env = ["shoestring_trainer", "agent"], {**os.environ, **ours, **environment}
        if forked:
            self.agent = ForkedProgram(command, env=env, cwd=self.folder, log=self.folder / "agent.log")
            return
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.folder, env=env, stdout=log, stderr=log
            )

    def exit_code(self) -> int:
        assert self.agent
        return self.agent.wait(WITHIN_S)

    def kill(self) -> None:
        assert self.agent
        self.agent.kill()
        self.agent.wait()

    def ranks(self) -> set[processes.Process]:
        return processes.find_by_environment({MACHINE_VARIABLE: str(self.service.machine)})

    def until(self, condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                log = (self.folder / "agent.log").read_text()[-4000:]
                raise AssertionError(f"not within {within_s} s; states {self.service.states()}, log:\n{log}")
            time.sleep(0.01)

    def until_trained(self, step: int) -> None:
        self.until(lambda: any(at >= step for at, _ in self.service.points("train/loss")))

    def until_exited(self, generation: int = 1, within_s: float = WITHIN_S) -> None:
        self.until(lambda: (generation, "exited") in self.service.states(), within_s)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    if machine.agent and machine.agent.poll() is None:
        machine.kill()
    processes.kill_all(machine.ranks, no_children=lambda: True, timeout_s=5)
    machine.service.stop()
    machine.metadata.stop()


def test_a_job_runs_from_boot_to_the_last_word(machine: Machine) -> None:
    machine.boot(forked=False)
    machine.service.say(Order(kind="prepare", generation=1))
    machine.until(lambda: (1, "ready") in machine.service.states())
    assert machine.service.members[0].port
    machine.service.run(1, nproc_per_node=2, steps=30)
    machine.until_exited()
    assert machine.service.exits(1) == ["finished", "finished"]
    [commit] = machine.service.commits
    assert (commit.reason, commit.step, commit.result) == ("final", 30, {"val/acc": 0.98})
    machine.service.say(Order(kind="shutdown"))
    assert machine.exit_code() == 0
    assert [step for step, _ in machine.service.points("train/loss")] == list(range(1, 31))
    assert str(machine.service.points("train/loss")[2][1]) == "nan"
    before = [series for batch in machine.service.batches[: commit.through_seq] for series in batch.points]
    assert [step for each in before if each.name == "train/loss" for step in each.steps] == list(range(1, 31))
    assert machine.service.points("system/cpu_percent")
    assert machine.service.events("started") == [{"steps_total": 30, "world_size": 1, "precision": "fp32"}]
    for rank in (0, 1):
        assert machine.service.log(rank) == (machine.folder / f"gen/1/log-rank{rank}.txt").read_bytes()
    assert b"launching 2" in machine.service.log(-1)
    assert machine.service.registrations[0].address == "10.0.0.7"
    assert not machine.ranks()


def test_an_order_to_drain_commits_before_it_is_told(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    machine.service.say(Order(kind="drain", generation=1))
    machine.until_exited()
    assert machine.service.exits(1) == ["drained"]
    assert machine.service.commits[-1].reason == "order"
    assert machine.service.points("train/loss")[-1][0] == machine.service.commits[-1].step


def test_running_is_idempotent_and_the_next_generation_ends_the_last(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, nproc_per_node=2, steps=10_000, deaf=True)
    machine.until_trained(3)
    machine.until(lambda: machine.service.log(1))  # both ranks are there
    before = machine.ranks()
    machine.service.run(1, nproc_per_node=2, steps=10_000, deaf=True)
    machine.until_trained(20)
    assert machine.ranks() == before
    machine.service.say(Order(kind="prepare", generation=2))
    machine.until(lambda: (2, "ready") in machine.service.states())
    assert not machine.ranks()  # deaf ranks in sessions of their own, gone before the word


def test_a_generation_resumes_from_the_committed_checkpoint(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    machine.service.say(Order(kind="drain", generation=1))
    machine.until_exited()
    at = machine.service.commits[-1].step
    for cached in (machine.folder / "cache").iterdir():
        cached.unlink()
    machine.service.fail("/objects/", 500, times=2)
    machine.service.run(2, resume=machine.service.resume(), steps=at + 10)
    machine.until_exited(2)
    assert [step for step, _ in machine.service.points("train/loss")] == list(range(1, at + 11))
    assert [(commit.generation, commit.reason) for commit in machine.service.commits] == [(1, "order"), (2, "final")]
    both = [(machine.folder / f"gen/{generation}/log-rank0.txt").read_bytes() for generation in (1, 2)]
    assert machine.service.log(0) == b"".join(both)


def test_a_checkpoint_that_is_not_the_committed_one_starts_nothing(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=3)
    machine.until_exited()
    resume = machine.service.resume()
    commit = machine.service.commits[-1]
    machine.service.objects[f"g{commit.generation}-{commit.nonce}.data"] = b"something else"
    (machine.folder / "cache" / f"{resume.manifest_sha256}.data").unlink()
    machine.service.run(2, resume=resume, steps=10)
    machine.until_exited(2)
    assert machine.service.exits(2) == ["error"]
    assert machine.service.members[-1].exits[0].kind == "infrastructure"
    assert not (machine.folder / "gen/2/metrics.jsonl").exists()


def test_another_jobs_weights_are_fetched_for_the_ranks_or_their_loss_is_told(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=3)
    machine.until_exited()
    weights = machine.service.resume()
    machine.service.run(2, init=weights, steps=5)
    machine.until_exited(2)
    task = json.loads((machine.folder / "gen/2/task.json").read_text())
    assert task["resume"] is None
    assert task["scratch"] == str(machine.folder / "scratch/ranks")
    assert Path(task["scratch"]).is_dir()
    assert task["init"]["manifest"].endswith(f"{weights.manifest_sha256}.json")
    assert machine.service.exits(2) == ["finished"]
    gone = weights.model_copy(update={"manifest_sha256": "0" * 64})
    machine.service.run(3, init=gone, steps=5)
    machine.until_exited(3)
    (end,) = machine.service.members[-1].exits
    assert (end.outcome, end.kind) == ("error", "data")
    assert "init" in end.message
    assert "name other weights" in end.message


def test_a_machine_that_does_not_isolate_ranks_refuses_hooks(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=3, hooks_file="/srv/hooks/mine.py")
    machine.until_exited()
    (end,) = machine.service.members[-1].exits
    assert (end.outcome, end.kind) == ("error", "user_code")
    assert "Hooks run only where jobs are isolated" in end.message
    assert not (machine.folder / "gen/1").exists()


def test_data_in_a_bucket_are_here_before_the_ranks_which_get_no_keys(machine: Machine) -> None:
    with serving() as bucket:
        bucket.put("set/a/1.jpg", b"an image")
        bucket.access_key = "AKIATEST"
        given = {
            "SHOESTRING_AGENT_AWS_ENDPOINT_URL": bucket.url, "SHOESTRING_AGENT_AWS_ACCESS_KEY_ID": "AKIATEST",
            "SHOESTRING_AGENT_AWS_SECRET_ACCESS_KEY": "secret",
        }  # fmt: skip
        machine.boot(**given)
        machine.service.say(Order(kind="prepare", generation=1))
        machine.until(lambda: (1, "ready") in machine.service.states())
        bucket.unblocked.clear()
        machine.service.run(1, data=f"s3://{BUCKET}/set", steps=1_000_000)
        machine.until(lambda: bucket.requested_keys)
        assert not machine.ranks()
        bucket.unblocked.set()
        machine.until_trained(3)
        task = json.loads((machine.folder / "gen" / "1" / "task.json").read_text())
        assert Path(task["data"]["train"], "a", "1.jpg").read_bytes() == b"an image"
        assert task["data"]["train"].startswith(f"{machine.folder}/scratch/")
        assert not task["data"]["train"].startswith(task["scratch"])  # where the ranks could replace it
        told = [event["message"] for event in machine.service.events("data")]
        assert told[0] == f"copying s3://{BUCKET}/set: 1 file, 0.0 MiB"
        assert told[1].startswith(f"copied s3://{BUCKET}/set: 1 file")
        for rank in machine.ranks():
            assert given.keys().isdisjoint(psutil.Process(rank.pid).environ())

        machine.service.run(2, data=f"s3://{BUCKET}/other", steps=5)
        machine.until_exited(2)
        (end,) = machine.service.members[-1].exits
        assert (end.outcome, end.kind) == ("error", "data")
        assert f"there are no objects in s3://{BUCKET}/other" in end.message


def test_streamed_shards_come_when_ranks_ask_for_them_and_only_then(machine: Machine) -> None:
    with serving() as bucket:
        files = put_shards(bucket, "set/", 6)
        machine.boot(SHOESTRING_AGENT_AWS_ENDPOINT_URL=bucket.url)
        machine.service.run(1, data=f"s3://{BUCKET}/set", stream=True, steps=1_000_000)
        machine.until_trained(3)
        data = json.loads((machine.folder / "gen" / "1" / "task.json").read_text())["data"]
        assert data["requests"].startswith(f"{machine.folder}/scratch/ranks/")  # where ranks may write
        assert sorted(path.name for path in Path(data["train"]).iterdir()) == ["shards.json", "shards.npy"]
        with closing(ShardRequests(Path(data["requests"]), Path(data["train"]), list(files), "s3", print)) as requests:
            requests.announce([4, 2])
            requests.wait_for([4, 2])
        received = {path.name: path.read_bytes() for path in Path(data["train"]).glob("*.tar")}
        assert received == {name: files[name] for name in ("train-000004.tar", "train-000002.tar")}
        assert machine.service.events("data")[0]["message"].startswith(f"streaming s3://{BUCKET}/set: 6 shards")

        machine.service.run(2, data=f"s3://{BUCKET}/other", stream=True, steps=5)
        machine.until_exited(2)
        (end,) = machine.service.members[-1].exits
        assert (end.outcome, end.kind) == ("error", "data")


def test_an_order_to_stop_is_heard_while_data_are_fetched(machine: Machine) -> None:
    with serving() as bucket:
        bucket.put("x.jpg", b"an image")
        bucket.unblocked.clear()
        machine.boot(SHOESTRING_AGENT_AWS_ENDPOINT_URL=bucket.url)
        machine.service.run(1, data=f"s3://{BUCKET}", steps=5)
        machine.until(lambda: bucket.requested_keys)
        machine.service.say(Order(kind="drain", generation=1))
        machine.until_exited()
        machine.service.say(Order(kind="shutdown"))
        assert machine.exit_code() == 0
        assert not (machine.folder / "started.json").exists()


def test_periodic_checkpoints_are_committed_while_training_goes_on(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000, save_every=10)
    machine.until(lambda: len(machine.service.commits) >= 3)
    steps = [commit.step for commit in machine.service.commits]
    assert steps == sorted(set(steps))
    assert machine.ranks()
    for commit in machine.service.commits:
        if commit.save_s is not None:  # nothing came in between
            assert commit.save_s >= 61.5  # with the steps that a stop waits for, and the writing
        stored = [
            s.steps[-1]
            for b in machine.service.batches[: commit.through_seq]
            for s in b.points
            if s.name == "train/loss"
        ]
        assert max(stored) >= commit.step


@pytest.mark.parametrize("fault", [DROP, DROP_REPLY, 500, 503])
def test_nothing_is_lost_or_doubled_when_replies_get_lost(machine: Machine, fault: int | str) -> None:
    machine.service.fail("/register", fault)
    machine.boot()
    machine.service.run(1, steps=60, save_every=20)
    machine.until_trained(3)
    for path in ("/report", "/orders", "/objects", "/checkpoints"):
        machine.service.fail(path, fault, times=2)
    machine.until_exited()
    machine.service.say(Order(kind="shutdown"))
    assert machine.exit_code() == 0
    assert [step for step, _ in machine.service.points("train/loss")] == list(range(1, 61))
    assert machine.service.log(0) == (machine.folder / "gen/1/log-rank0.txt").read_bytes()
    assert machine.service.commits[-1].reason == "final"


def test_training_goes_on_without_the_service_and_is_told_later(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=150)
    machine.until_trained(3)
    machine.service.stop()
    machine.until(lambda: (machine.folder / "gen/1/exit-0.json").exists())
    machine.service.start_again()
    machine.until_exited()
    assert [step for step, _ in machine.service.points("train/loss")] == list(range(1, 151))
    assert machine.service.commits[-1].step == 150


def test_a_gap_is_closed_from_the_number_that_is_expected(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until(lambda: machine.service.acked >= 4)
    with machine.service.changed:
        del machine.service.batches[1:]  # a service that lost what it had acknowledged
    machine.until(lambda: machine.service.events("warning"))
    machine.until_trained(50)
    with machine.service.changed:
        assert [batch.seq for batch in machine.service.batches] == list(range(1, machine.service.acked + 1))


@pytest.mark.parametrize("status", [413, 422])
def test_a_poison_batch_is_put_aside_and_the_job_goes_on(machine: Machine, status: int) -> None:
    machine.service.refuse = lambda batch: (
        status if any(10 in s.steps for s in batch.points if s.name == "train/loss") else None
    )
    machine.boot()
    machine.service.run(1, steps=40)
    machine.until_exited()
    [told] = machine.service.events("rejected")
    aside = json.loads((machine.folder / "rejected" / f"{told['seq']:09}.json").read_text())
    lost = [step for series in aside["points"] if series["name"] == "train/loss" for step in series["steps"]]
    kept = [step for step, _ in machine.service.points("train/loss")]
    assert 10 in lost
    assert sorted(lost + kept) == list(range(1, 41))
    assert machine.service.exits(1) == ["finished"]


def test_a_line_that_cannot_be_read_is_a_warning(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=20, poison_at=7)
    machine.until_exited()
    assert [step for step, _ in machine.service.points("train/loss")] == list(range(1, 21))
    assert len(machine.service.events("warning")) == 2


def test_an_agent_that_was_killed_is_succeeded_without_loss(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, nproc_per_node=2, steps=10_000)
    machine.until_trained(10)
    machine.until(lambda: machine.service.log(1))
    machine.service.fail("/report", DROP_REPLY, times=1)
    machine.kill()
    machine.until(lambda: not machine.ranks())  # the dead-man switch saw to it
    secret = (machine.folder / "session").read_text()
    machine.boot()
    machine.until_exited()
    assert machine.service.exits(1) == ["signal", "signal"]
    assert {register.session_secret for register in machine.service.registrations} == {secret}
    written = [json.loads(line)["step"] for line in (machine.folder / "gen/1/metrics.jsonl").read_text().splitlines()]
    machine.until(lambda: [step for step, _ in machine.service.points("train/loss")] == written)
    assert machine.service.log(1) == (machine.folder / "gen/1/log-rank1.txt").read_bytes()
    machine.service.run(2, steps=5)
    machine.until_exited(2)
    assert machine.service.exits(2) == ["finished"]


def test_a_rank_server_waits_for_orders_and_starts_real_ranks(machine: Machine) -> None:
    """Killed, it is started again for the next order; it dies with the agent."""
    machine.boot(forked=False, SHOESTRING_AGENT_RANK_COMMAND="", SHOESTRING_POWEROFF="true")
    machine.until(lambda: len(machine.ranks()) == 1)
    machine.service.run(1, epochs=1, width=4)
    machine.until_exited(within_s=RANKS_PATIENCE_S)
    assert machine.service.exits(1) == ["finished"]
    assert machine.service.commits[-1].step == machine.service.points("train/loss")[-1][0]
    machine.until(lambda: len(machine.ranks()) == 1)
    [server] = machine.ranks()
    assert memory_mb(machine) < IDLE_MB

    machine.service.run(2, epochs=10_000, width=4)
    machine.until(lambda: machine.service.events("started")[1:], RANKS_PATIENCE_S)
    server.send_signal(signal.SIGKILL)
    machine.until_exited(2)
    assert machine.service.exits(2) == ["signal"]
    machine.service.run(3, epochs=10_000, width=4)
    machine.until(lambda: machine.service.events("started")[2:], RANKS_PATIENCE_S)
    for each in machine.ranks():
        assert "SHOESTRING_POWEROFF" not in psutil.Process(each.pid).environ()
    machine.kill()
    machine.until(lambda: not machine.ranks())


def memory_mb(machine: Machine) -> float:
    """Proportional set size: pages that several processes map, such as those of PyTorch's libraries, count in part."""
    assert machine.agent
    agent = psutil.Process(machine.agent.pid)
    return sum(each.memory_full_info().pss for each in (agent, *agent.children(recursive=True))) / 1e6


@pytest.mark.parametrize("key", ["action", "instance-action"])
def test_a_spot_notice_saves_the_work_and_leaves(machine: Machine, key: str) -> None:
    machine.metadata.token_uses = 3
    machine.boot()
    machine.service.run(1, nproc_per_node=2, steps=10_000)
    machine.until_trained(5)
    machine.metadata.notice(NOTICE_S, key)
    assert machine.exit_code() == 0
    assert len(machine.service.notices) == 1
    assert machine.service.exits(1) == ["drained", "drained"]
    assert machine.service.commits[-1].step == machine.service.points("train/loss")[-1][0]
    assert not machine.ranks()


def test_a_machine_that_its_provider_ends_for_nothing_waits_for_it_with_its_work_saved(machine: Machine) -> None:
    machine.service.left_for_s = 600
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    machine.metadata.notice(NOTICE_S)
    machine.until_exited()
    machine.service.say(Order(kind="shutdown", reason="preempted"))
    machine.until(lambda: "it ends itself in" in (machine.folder / "agent.log").read_text())
    assert machine.agent.poll() is None
    assert machine.service.commits[-1].step == machine.service.points("train/loss")[-1][0]
    assert not machine.ranks()
    machine.agent.send_signal(signal.SIGTERM)  # as the machine's own shutdown does, when its provider ends it
    assert machine.exit_code() == 0


def test_a_rebalance_recommendation_is_told_and_nothing_else(machine: Machine) -> None:
    machine.metadata.documents["meta-data/events/recommendations/rebalance"] = '{"noticeTime":"2026-11-21T00:00:00Z"}'
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until(lambda: machine.service.events("rebalance"))
    machine.until_trained(20)
    assert not machine.service.commits


def test_the_work_is_saved_before_the_money_ends(machine: Machine) -> None:
    machine.service.funded_until = end = time.monotonic() + 20
    machine.boot()
    machine.service.run(1, steps=10_000)
    assert machine.exit_code() == 0
    assert time.monotonic() < end
    assert machine.service.exits(1) == ["drained"]
    assert machine.service.commits[-1].step == machine.service.points("train/loss")[-1][0]


def test_money_that_ends_with_the_service_gone_ends_the_machine(machine: Machine) -> None:
    machine.service.funding_lease_s = 15
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    machine.service.stop()
    stopped = time.monotonic()
    machine.until(lambda: not machine.ranks())
    assert time.monotonic() - stopped < 15
    assert machine.exit_code() == 0
    assert json.loads((machine.folder / "gen/1/exit-0.json").read_text())["outcome"] == "drained"
    assert list((machine.folder / "gen/1/ckpt").glob("*.data"))
    assert list((machine.folder / "spool").glob("*.json"))


def test_a_hanging_agent_does_not_outlive_its_money(machine: Machine) -> None:
    machine.service.funding_lease_s = 12
    machine.boot()
    machine.service.run(1, steps=10_000, deaf=True)
    machine.until_trained(5)
    assert machine.agent
    machine.agent.send_signal(signal.SIGSTOP)
    assert machine.agent.wait(16) == -signal.SIGKILL
    machine.until(lambda: not machine.ranks())


def test_ranks_that_do_not_heed_are_killed_before_the_machine_is_taken(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, nproc_per_node=2, steps=10_000, deaf=True)
    machine.until_trained(5)
    machine.metadata.notice(5)
    assert machine.exit_code() == 0
    assert not machine.ranks()


def test_deaths_are_told_with_their_cause(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=100, error_at=5)
    machine.until_exited(1)
    [error] = machine.service.members[-1].exits
    assert (error.outcome, error.kind, error.code) == ("error", "user_code", 1)
    assert "no such column" in error.message
    machine.service.run(2, steps=100, die_at=5)
    machine.until_exited(2)
    assert machine.service.exits(2) == ["signal"]
    assert machine.agent
    assert machine.agent.poll() is None


@pytest.mark.alone
def test_ending_stops_what_runs_and_leaves_at_once(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    machine.service.say(Order(kind="shutdown", reason="stopped by a person"))
    told = time.monotonic()
    assert machine.exit_code() == 0
    assert time.monotonic() - told < 3
    assert machine.service.exits(1) == ["drained"]
    assert not machine.ranks()


def test_being_told_to_terminate_saves_what_fits(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    assert machine.agent
    machine.agent.terminate()
    assert machine.agent.wait(WITHIN_S) == 0
    assert machine.service.commits[-1].reason == "order"
    assert machine.service.exits(1) == ["drained"]


def test_a_forged_token_ends_the_machine_with_a_clear_word(machine: Machine) -> None:
    machine.user_data("forged")
    machine.boot()
    assert machine.exit_code() == os.EX_NOPERM
    assert "rejects this machine" in (machine.folder / "agent.log").read_text()


def test_user_data_that_is_not_ours_ends_the_machine_with_a_clear_word(machine: Machine) -> None:
    machine.metadata.documents["user-data"] = '{"hello": 1}'
    machine.boot()
    assert machine.exit_code() == os.EX_CONFIG
    assert "user data" in (machine.folder / "agent.log").read_text()


def test_a_session_that_is_not_known_any_more_ends_the_machine(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    machine.service.session = "another"
    assert machine.exit_code() == os.EX_NOPERM
    assert not machine.ranks()


def test_a_folder_that_cannot_be_written_ends_the_machine(machine: Machine, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    machine.boot(SHOESTRING_MACHINE_DIR=str(blocked))
    assert machine.exit_code() == os.EX_CANTCREAT
    assert "can't be written" in (machine.folder / "agent.log").read_text()


def test_a_disk_that_fills_is_told_and_the_machine_leaves(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=10_000)
    machine.until_trained(5)
    spool = machine.folder / "spool"
    spool.rename(machine.folder / "spool-gone")  # root writes anywhere, so the folder goes instead of its permission
    assert machine.exit_code() == os.EX_IOERR
    assert machine.service.events("disk_write_failed")
    assert machine.service.members[-1].exits[0].kind == "infrastructure"
    assert not machine.ranks()


def test_only_the_named_command_powers_off(machine: Machine, tmp_path: Path) -> None:
    machine.boot(SHOESTRING_POWEROFF=f"touch {tmp_path / 'off'}")
    machine.service.say(Order(kind="shutdown"))
    assert machine.exit_code() == 0
    assert (tmp_path / "off").exists()


def test_a_generation_that_was_never_started_ends_without_ranks(machine: Machine) -> None:
    machine.boot()
    machine.service.say(Order(kind="prepare", generation=3))
    machine.until(lambda: (3, "ready") in machine.service.states())
    machine.service.say(Order(kind="drain", generation=3))
    machine.until_exited(3)
    assert machine.service.exits(3) == []


def test_a_machine_that_is_taken_before_it_trains_says_so(machine: Machine) -> None:
    machine.boot()
    machine.service.say(Order(kind="prepare", generation=1))
    machine.until(lambda: (1, "ready") in machine.service.states())
    machine.metadata.notice(NOTICE_S)
    assert machine.exit_code() == 0
    assert machine.service.notices
    assert machine.service.states()[-1] == (1, "exited")


def test_an_agent_killed_in_the_middle_of_an_upload_is_succeeded_by_one_that_commits(machine: Machine) -> None:
    machine.boot()
    machine.service.fail("/checkpoints", 500, times=1_000)
    machine.service.run(1, steps=20)
    machine.until(lambda: len(machine.service.objects) == 2)
    machine.kill()
    machine.service.faults.clear()
    machine.boot()
    machine.until_exited()
    assert machine.service.exits(1) == ["finished"]
    assert machine.service.commits[-1].reason == "final"


def test_too_many_log_lines_keep_no_machine_from_leaving(machine: Machine) -> None:
    machine.boot()
    machine.service.run(1, steps=3, log_bytes=34 << 20)
    machine.until_exited()
    machine.service.say(Order(kind="shutdown"))
    assert machine.exit_code() == 0
    assert [step for step, _ in machine.service.points("train/loss")] == [1, 2, 3]


def test_a_watched_point_is_told_within_a_quarter_second(machine: Machine) -> None:
    """The oldest of each report, in a quarter of the reports at least: on a busy machine others come late."""
    machine.boot()
    machine.service.run(1, steps=100, step_s=0.1)
    machine.until_exited()
    late = [arrived - min(s.times) for arrived, batch in machine.service.arrivals for s in batch.points
            if s.name == "train/loss"]  # fmt: skip
    assert sorted(late)[len(late) // 4] < 0.25


def test_a_waiting_agent_costs_next_to_no_processor_time(machine: Machine) -> None:
    machine.service.report_interval_s = 5
    machine.boot()
    machine.until(lambda: machine.service.calls["/agent/v1/report"])
    assert machine.agent
    agent = psutil.Process(machine.agent.pid)
    before, since = sum(agent.cpu_times()[:2]), time.monotonic()
    machine.until(lambda: time.monotonic() - since > 4)
    assert sum(agent.cpu_times()[:2]) - before < 0.4
