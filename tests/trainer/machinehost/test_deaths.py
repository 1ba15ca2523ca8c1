# SPDX-License-Identifier: Apache-2.0
"""The guarantees when the machine host, a machine's init or both are killed with SIGKILL at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import httpx
import pytest
from shoestring_trainer import processes
from shoestring_trainer.machinehost.journal import HEARTBEAT_S, Journal, read_machine
from shoestring_trainer.machinehost.machine import Machine
from shoestring_trainer.processes import Process, current_process

from tests.servers import PATIENCE_S
from tests.trainer.machinehost.local_cloud import (
    SOON_S,
    SPOT,
    LocalCloud,
    alive,
    events,
    journal,
    kill,
    pids,
    processes_of,
    processes_without_init,
    until,
)

FAMILY = {"children": ["group", "daemon"], "ignore_term": True}


@pytest.fixture
def cloud(tmp_path):
    cloud = LocalCloud(tmp_path / "cloud")
    cloud.start()
    yield cloud
    cloud.clean_up()


# The host


def test_machines_survive_a_killed_host_and_the_next_host_manages_them(cloud):
    machine = cloud.launch_running(user_data=FAMILY)
    ended = cloud.wait_until_ended(cloud.launch("t2", user_data={"exit": 3}))
    cloud.kill_host(signal.SIGKILL)
    family = [machine["init_pid"], *pids(machine).values()]
    assert all(alive(pid) for pid in family)
    cloud.start()
    assert cloud.client.get("/machines").json()["machines"] == [machine, ended]
    assert cloud.client.put("/machines/token-1", json={**SPOT, "user_data": FAMILY}).status_code == 200
    assert events(machine).count("start") == 1
    cloud.stop(machine)
    assert cloud.wait_until_ended(machine)["end_cause"] == "requested"
    assert [pid for pid in pids(machine).values() if alive(pid)] == []


def test_a_host_that_is_stopped_does_not_stop_its_machines(cloud):
    machine = cloud.launch_running()
    assert cloud.kill_host(signal.SIGTERM) == 0
    assert alive(machine["agent_pid"])
    cloud.start()
    assert cloud.show(machine) == machine


def test_with_stop_machines_on_exit_a_host_stops_its_machines_first(cloud):
    cloud.kill_host()
    cloud.start("--stop-machines-on-exit")
    machines = [cloud.launch_running(f"t{n}") for n in range(2)]
    assert cloud.kill_host(signal.SIGTERM) == 0
    assert [journal(machine)[-1]["cause"] for machine in machines] == ["requested", "requested"]
    assert not any(alive(machine["agent_pid"]) for machine in machines)


def test_an_end_while_no_host_runs_is_reported_by_the_next_host(cloud):
    machine = cloud.launch_running()
    cloud.kill_host()
    kill(machine["agent_pid"])
    until(lambda: "end" in events(machine))
    cloud.start()
    ended = cloud.show(machine)
    assert (ended["state"], ended["end_cause"]) == ("ended", "crashed")


def test_the_deadline_of_a_notice_is_enforced_without_a_host(cloud):
    machine = cloud.launch_running(user_data=FAMILY)
    cloud.preempt(machine, 1)
    cloud.kill_host()
    until(lambda: "end" in events(machine))
    lines = {line["event"]: line for line in journal(machine)}
    assert lines["end"]["cause"] == "preempted"
    assert 0 <= lines["end"]["at"] - lines["notice"]["preempt_at"] < SOON_S * 1e6
    assert [pid for pid in pids(machine).values() if alive(pid)] == []


def test_a_request_is_carried_out_when_the_host_died_before_signalling_the_init(cloud):
    machine = cloud.launch_running()
    cloud.kill_host()
    # the state after a host was killed between writing the request and signalling the init
    (Path(machine["dir"]) / "stop.json").write_text('{"kill_at": 1}')
    until(lambda: "end" in events(machine))
    assert journal(machine)[-1]["cause"] == "requested"


CRASHES = {
    "before the launch is journaled": (
        "from shoestring_trainer.machinehost.journal import Journal\nJournal.append = DIE"
    ),
    "before the folder is renamed": "from pathlib import Path\nPath.rename = DIE",
    "between the journal and the init": "host.MachineHost._start_init = DIE",
    "after the init is started": "start_init = host.MachineHost._start_init\n"
    "host.MachineHost._start_init = lambda *a: (start_init(*a), DIE())",
}


@pytest.mark.parametrize("where", CRASHES)
def test_a_launch_interrupted_anywhere_and_repeated_launches_one_machine(tmp_path, where):
    cloud = LocalCloud(tmp_path)
    # the first file to be renamed is the host's own machinehost.json, so the crash is armed by a file
    armed = tmp_path / "armed"
    patch = CRASHES[where].replace("DIE", "die")
    real = "from pathlib import Path\nrename, exists = Path.rename, Path.exists\n"
    die = f"die = lambda *a: os.kill(os.getpid(), 9) if exists(Path({str(armed)!r})) else rename(*a)\n"
    try:
        cloud.start(patch=real + die + patch)
        armed.touch()
        with pytest.raises(httpx.TransportError):
            cloud.launch("t")
        assert cloud.process.wait(PATIENCE_S) == -signal.SIGKILL
        cloud.process.stderr.close()
        cloud.start()
        reply = cloud.client.put("/machines/t", json=SPOT)
        assert reply.status_code in (200, 201)
        machine = reply.json()
        until((Path(machine["dir"]) / "pids.json").exists)
        assert [each["id"] for each in cloud.client.get("/machines").json()["machines"]] == [machine["id"]]
        assert len(list((tmp_path / "machines").iterdir())) == 1
        assert events(machine)[:3] == ["launch", "start", "agent_start"]
        until(lambda: len(processes_of(machine["dir"])) == 2)
    finally:
        cloud.clean_up()


def test_hosts_killed_at_random_moments_never_run_two_machines_for_a_token(tmp_path, seed):
    draw = random.Random(seed)
    cloud = LocalCloud(tmp_path)
    try:
        for n in range(6):
            cloud.start(slots=20)
            delay_s = draw.uniform(0, 0.06)
            killer = os.fork()
            if killer == 0:
                time.sleep(delay_s)
                os.kill(cloud.process.pid, signal.SIGKILL)
                os._exit(0)
            try:
                for token in (f"t{n}a", f"t{n}b"):
                    cloud.client.put(f"/machines/{token}", json=SPOT)
                cloud.client.delete(f"/machines/{cloud.client.get('/machines').json()['machines'][0]['id']}")
            except httpx.TransportError:
                pass
            os.waitpid(killer, 0)
            cloud.process.wait(PATIENCE_S)
            cloud.process.stderr.close()
        cloud.start(slots=20)
        asked = [f"t{n}{which}" for n in range(6) for which in "ab"]
        replies = [cloud.client.put(f"/machines/{token}", json=SPOT) for token in asked]
        assert {reply.status_code for reply in replies} <= {200, 201, 409}
        machines = cloud.client.get("/machines").json()["machines"]
        assert sorted(machine["token"] for machine in machines) == asked
        for machine in machines:
            until(lambda machine=machine: {"agent_start", "end"} & set(events(machine)))
            assert events(machine).count("start") <= 1
            until(lambda machine=machine: len(processes_of(machine["dir"])) <= 2)
            cloud.stop(machine)
        for machine in machines:
            cloud.wait_until_ended(machine)
            assert events(machine).count("end") == 1
            until(lambda machine=machine: not processes_of(machine["dir"]))
    finally:
        cloud.clean_up()


def test_random_kills_of_everything_leave_one_machine_per_token_and_correct_journals(tmp_path, seed):
    chaos(tmp_path, seed, steps=25)


def chaos(folder, seed, steps):
    """Random launches, repeats, requests and kills, checked against the process table; then check every journal."""
    draw = random.Random(seed)
    cloud = LocalCloud(folder)
    asked = {}
    try:
        cloud.start(slots=4)
        for _ in range(steps):
            machines = cloud.client.get("/machines").json()["machines"]
            living = [machine for machine in machines if machine["state"] != "ended"]
            machine = draw.choice(living) if living else None
            move = draw.choice(
                ["launch", "launch", "repeat", "stop", "preempt", "host", "init", "agent", "child", "both"]
            )
            if move == "launch":
                token = f"t{len(asked)}"
                user_data = draw.choice([{}, FAMILY, {"leave": True}, {"exit": 1}])
                asked[token] = {**SPOT, "user_data": user_data}
                cloud.client.put(f"/machines/{token}", json=asked[token])
            elif move == "repeat" and asked:
                token = draw.choice(sorted(asked))
                assert cloud.client.put(f"/machines/{token}", json=asked[token]).status_code in (200, 201, 409)
            elif move == "host":
                restart(cloud)
            elif machine and move == "stop":
                cloud.stop(machine)
            elif machine and move == "preempt":
                cloud.client.post(f"/machines/{machine['id']}/preempt", json={"notice_s": draw.choice([0, 0.3, 60])})
            elif machine and move in ("init", "both"):
                kill(machine["init_pid"] or draw.choice(processes_of(machine["dir"]) or [2**22 - 1]))
                if move == "both":
                    restart(cloud)
            elif machine and move in ("agent", "child"):
                kill(draw.choice(processes_of(machine["dir"]) or [2**22 - 1]))
            for each in cloud.client.get("/machines").json()["machines"]:
                if each["state"] == "ended":
                    assert processes_without_init(each["dir"]) == []
            time.sleep(draw.uniform(0, 0.15))
        machines = cloud.client.get("/machines").json()["machines"]
        assert len({machine["token"] for machine in machines}) == len(machines)
        for machine in machines:
            cloud.stop(machine)
        for machine in machines:
            ended = cloud.wait_until_ended(machine)
            lines = events(ended)
            assert [lines.count(event) for event in ("launch", "end")] == [1, 1]
            assert max(lines.count(event) for event in ("start", "agent_start", "notice", "stop")) <= 1
            assert lines[-1] == "end"
            assert ended["launched_at"] <= ended["ended_at"]
            until(lambda ended=ended: not processes_of(ended["dir"]))
    finally:
        cloud.clean_up()


def restart(cloud):
    cloud.kill_host()
    cloud.start(slots=4)


# The init


def test_a_machine_whose_init_never_starts_ends_soon_and_frees_its_slot(cloud):
    cloud.kill_host()
    never = "lambda self, machine: setattr(machine, 'init_started', host.time.monotonic())"
    cloud.start(slots=1, patch=f"host.MachineHost._start_init = {never}")
    machine = cloud.wait_until_ended(cloud.launch("t1"), within_s=SOON_S)
    assert (machine["end_cause"], machine["started_at"]) == ("crashed", None)
    cloud.launch("t2")


def test_an_init_that_detaches_during_a_scan_of_the_processes_is_not_taken_for_dead(tmp_path, monkeypatch):
    scans = [set(), {current_process()}]  # its parent had exited, and it was not in the list of pids yet
    monkeypatch.setattr(processes, "find_by_environment", lambda _: scans.pop(0))
    machine = Machine(tmp_path, record=None, offset=0, init_started=time.monotonic() - 2)
    assert machine.init_may_start()


def test_a_killed_init_ends_its_machine_and_all_its_processes(cloud):
    machine = cloud.launch_running(user_data=FAMILY)
    kill(machine["init_pid"])
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("crashed", None)
    assert [pid for pid in pids(machine).values() if alive(pid)] == []
    assert processes_of(machine["dir"]) == []


def test_an_agent_dies_with_its_init_even_when_no_host_runs(cloud):
    machine = cloud.launch_running(user_data=FAMILY)
    cloud.kill_host()
    kill(machine["init_pid"])
    until(lambda: not alive(machine["agent_pid"]))


def test_orphans_of_a_killed_init_are_killed_by_the_next_host(cloud):
    machine = cloud.launch_running(user_data=FAMILY)
    cloud.kill_host()
    kill(machine["init_pid"])
    assert alive(pids(machine)["daemon"])
    before = time.time_ns() // 1000
    cloud.start()
    ended = cloud.wait_until_ended(machine)
    assert ended["end_cause"] == "crashed"
    assert ended["ended_at"] > before  # its orphans lived until the host killed them
    assert [pid for pid in pids(machine).values() if alive(pid)] == []


def test_a_machine_that_died_without_a_host_ended_no_later_than_its_next_heartbeat(cloud):
    machine = cloud.launch_running()
    cloud.kill_host()
    kill(machine["init_pid"])
    until(lambda: not processes_of(machine["dir"]))
    # the state after an hour without a host: every line is an hour older
    lines = [{**line, "at": line["at"] - 3_600_000_000} for line in journal(machine)]
    Path(machine["journal"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    cloud.start()
    assert cloud.wait_until_ended(machine)["ended_at"] == lines[-1]["at"] + round(HEARTBEAT_S * 1e6)


def test_an_init_killed_after_a_notice_was_preempted_and_one_killed_after_a_stop_was_requested(cloud):
    noticed, stopped = cloud.launch_running("t1", user_data=FAMILY), cloud.launch_running("t2", user_data=FAMILY)
    cloud.preempt(noticed, 60)
    cloud.stop(stopped)
    kill(noticed["init_pid"])
    kill(stopped["init_pid"])
    assert cloud.wait_until_ended(noticed)["end_cause"] == "preempted"
    assert cloud.wait_until_ended(stopped)["end_cause"] == "requested"


def test_a_second_init_for_a_machine_exits_without_effect(cloud):
    machine = cloud.launch_running()
    cloud.kill_host()
    kill(machine["init_pid"])
    until(lambda: not processes_of(machine["dir"]))
    folder = Path(machine["dir"])
    before = journal(machine)
    (folder / "pids.json").unlink()
    cloud.start(patch="host.MachineHost._check = lambda self, machine: self._start_init(machine)")
    until(lambda: not processes_of(folder))
    assert journal(machine) == before
    assert not (folder / "pids.json").exists()


def test_heartbeats_are_journaled_while_a_machine_lives(cloud):
    machine = cloud.launch_running()
    until(lambda: "heartbeat" in events(machine), within_s=HEARTBEAT_S + SOON_S)
    assert read_machine(Path(machine["dir"])).state == "running"


# Identities of processes, and the journal's lock


def test_a_reused_pid_is_another_process_and_gets_no_signal():
    me = current_process()
    assert me.is_alive()
    for other in (Process(me.pid, me.start_time - 1, me.boot_id), Process(me.pid, me.start_time, "an earlier boot")):
        assert not other.is_alive()
        assert not other.send_signal(signal.SIGKILL)
    assert not Process(2**22 - 1, 1, me.boot_id).send_signal(signal.SIGKILL)


def test_a_journal_has_one_writer_and_a_partial_line_is_dropped(tmp_path):
    launch = {
        "id": "m",
        "token": "t",
        "body_sha256": "",
        "tags": {},
        "metadata": {},
        "type": "x",
        "market": "spot",
        "price": "1",
    }
    with Journal.create(tmp_path) as first:
        first.append_launch(launch)
        assert Journal.acquire(tmp_path) is None
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"at": 5, "event": "st')
    assert read_machine(tmp_path).state == "pending"
    second = Journal.acquire(tmp_path)
    assert second is not None
    with second:
        second.append("stop")
    assert [json.loads(line)["event"] for line in (tmp_path / "journal.jsonl").open()] == ["launch", "stop"]
