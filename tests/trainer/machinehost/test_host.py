# SPDX-License-Identifier: Apache-2.0
"""The machine host's guarantees to its clients: one machine per token, correct end causes, clear errors."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from shoestring_trainer.machinehost.journal import read_machine

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
    until,
)
from tests.trainer.nested_folders import nest


@pytest.fixture
def cloud(tmp_path):
    cloud = LocalCloud(tmp_path / "cloud")
    cloud.start()
    yield cloud
    cloud.clean_up()


# Launching


def test_a_machine_runs_the_agent_in_its_own_folder_and_is_reported_with_all_its_fields(cloud):
    machine = cloud.launch_running(user_data={"boot_token": "s3cret"})
    assert machine["state"] == "running"
    assert machine["id"].startswith("lm-")
    assert len(machine["id"]) == 20
    assert {name: machine[name] for name in ("token", "tags", "type", "market", "price", "address")} == {
        "token": "token-1",
        "tags": {"job": "j1"},
        "type": "local.cpu",
        "market": "spot",
        "price": "0.158",
        "address": "127.0.0.1",
    }
    assert Path(machine["dir"]) == cloud.folder / "machines" / machine["id"]
    assert pids(machine)["agent"] == machine["agent_pid"]
    assert os.getsid(machine["init_pid"]) not in (os.getsid(0), os.getsid(machine["agent_pid"]))
    assert "s3cret" not in Path(machine["journal"]).read_text()


def test_a_repeated_launch_returns_the_same_machine(cloud):
    first = cloud.client.put("/machines/t", json=SPOT)
    again = cloud.client.put("/machines/t", json=dict(reversed(SPOT.items())))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert len(cloud.client.get("/machines").json()["machines"]) == 1


def test_a_token_with_a_different_request_is_rejected_and_launches_nothing(cloud):
    cloud.launch("t")
    other = cloud.client.put("/machines/t", json={**SPOT, "price": "0.159"})
    assert (other.status_code, other.json()["code"]) == (409, "idempotency-mismatch")
    assert len(cloud.client.get("/machines").json()["machines"]) == 1


def test_a_token_never_launches_a_second_machine_after_the_first_has_ended(cloud):
    machine = cloud.wait_until_ended(cloud.launch("t", user_data={"exit": 0}))
    again = cloud.client.put("/machines/t", json={**SPOT, "user_data": {"exit": 0}})
    assert (again.status_code, again.json()["code"]) == (409, "token-ended")
    assert again.json()["machine"] == machine


def test_concurrent_launches_with_one_token_launch_one_machine(cloud):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: cloud.client.put("/machines/t", json=SPOT), range(16)))
    assert sorted(reply.status_code for reply in replies) == [200] * 15 + [201]
    machine = replies[0].json()
    until(lambda: "agent_start" in events(machine))
    assert events(machine).count("start") == 1


def test_slots_limit_the_running_machines_and_an_end_frees_one(tmp_path):
    cloud = LocalCloud(tmp_path)
    cloud.start(slots=2)
    try:
        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(lambda n: cloud.client.put(f"/machines/t{n}", json=SPOT), range(6)))
        assert sorted(reply.status_code for reply in replies) == [201, 201, 409, 409, 409, 409]
        assert {reply.json()["code"] for reply in replies if reply.status_code == 409} == {"capacity"}
        machine = next(reply.json() for reply in replies if reply.status_code == 201)
        assert cloud.client.put(f"/machines/{machine['token']}", json=SPOT).status_code == 200
        cloud.stop(machine)
        cloud.wait_until_ended(machine)
        cloud.launch("t9")
    finally:
        cloud.clean_up()


SETTABLE_CLOCK = """
import os, time
real, real_ns = time.time, time.time_ns
def shift():
    with open(os.environ["SHOESTRING_AGENT_CLOCK"]) as file:
        return int(file.read() or 0)
time.time, time.time_ns = lambda: real() + shift(), lambda: real_ns() + shift() * 10**9
"""


def test_a_machine_is_billed_for_the_time_that_passed_though_the_clock_was_set_back_two_hours(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SETTABLE_CLOCK)
    (clock := tmp_path / "clock").write_text("0")
    cloud = LocalCloud(tmp_path / "cloud")
    began = time.monotonic()
    cloud.start(env={"SHOESTRING_AGENT_CLOCK": str(clock), "PYTHONPATH": f"core:trainer:{tmp_path}"})
    try:
        machine = cloud.launch_running(user_data={"ignore_term": True})
        clock.write_text("-7200")
        assert cloud.show(machine)["clock_shift"] == pytest.approx(-7200e6, abs=1e6)
        assert cloud.client.delete(f"/machines/{machine['id']}?grace_s=0").status_code == 202
        ended = cloud.wait_until_ended(machine)
    finally:
        cloud.clean_up()
    used_s = (ended["ended_at"] - ended["launched_at"]) / 1e6
    assert 0 < used_s < time.monotonic() - began
    assert [line["at"] for line in journal(ended)] == sorted(line["at"] for line in journal(ended))
    assert ended["clock_shift"] == pytest.approx(-7200e6, abs=1e6)


def test_a_machine_does_not_inherit_the_servers_environment(tmp_path):
    cloud = LocalCloud(tmp_path)
    cloud.start(env={"SHOESTRING_DATABASE_URL": "postgresql://secret", "SHOESTRING_AGENT_NOTE": "passed on"})
    try:
        machine = cloud.launch_running()
        environ = Path(f"/proc/{machine['agent_pid']}/environ").read_text()
        names = dict(line.split("=", 1) for line in environ.split("\0") if line)
        assert "SHOESTRING_DATABASE_URL" not in names
        assert names["SHOESTRING_AGENT_NOTE"] == "passed on"
        assert names["SHOESTRING_MACHINE_DIR"] == machine["dir"]
        assert names["SHOESTRING_MACHINE_ID"] == machine["id"]
        assert names["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == machine["metadata_url"]
    finally:
        cloud.clean_up()


# Ending


def test_an_agent_that_exits_ends_its_machine_with_its_exit_code(cloud):
    machine = cloud.wait_until_ended(cloud.launch(user_data={"exit": 3}))
    assert (machine["end_cause"], machine["exit_code"]) == ("exited", 3)
    assert events(machine) == ["launch", "start", "agent_start", "end"]
    assert machine["launched_at"] <= machine["started_at"] < machine["ended_at"]


def test_the_scratch_folder_of_an_ended_machine_is_deleted_and_its_journal_is_not(cloud):
    machine = cloud.launch_running()
    folder = Path(machine["dir"])
    (folder / "scratch").mkdir()
    (folder / "scratch" / "images").write_bytes(bytes(1000))
    cloud.stop(machine)
    cloud.wait_until_ended(machine)
    until(lambda: not (folder / "scratch").exists())
    assert (folder / "journal.jsonl").exists()


def test_the_scratch_folder_of_an_ended_machine_is_deleted_however_deep_a_hook_nested_it(cloud):
    machine = cloud.launch_running()
    scratch = Path(machine["dir"]) / "scratch"
    nest(scratch / "ranks")
    cloud.stop(machine)
    cloud.wait_until_ended(machine)
    until(lambda: not scratch.exists())
    assert cloud.show(machine)["state"] == "ended"


def test_a_command_that_cannot_be_run_ends_the_machine_with_127(tmp_path):
    cloud = LocalCloud(tmp_path)
    cloud.start(env={"SHOESTRING_AGENT_COMMAND": '["/no/such/agent"]'})
    try:
        machine = cloud.wait_until_ended(cloud.launch())
        assert (machine["end_cause"], machine["exit_code"]) == ("exited", 127)
        assert "/no/such/agent" in (Path(machine["dir"]) / "agent.log").read_text()
    finally:
        cloud.clean_up()


def test_stopping_kills_the_whole_tree_before_the_end_is_journaled(cloud):
    machine = cloud.launch_running(user_data={"children": ["group", "daemon", "unmarked"], "ignore_term": True})
    family = [machine["init_pid"], *pids(machine).values()]
    assert len(set(family)) == 5
    assert all(alive(pid) for pid in family)
    cloud.stop(machine)
    cloud.stop(machine)
    assert cloud.show(machine)["state"] == "stopping"
    until(lambda: "end" in events(machine))
    assert [pid for pid in family[1:] if alive(pid)] == []
    machine = cloud.wait_until_ended(machine)
    assert machine["end_cause"] == "requested"
    lines = {line["event"]: line["at"] for line in journal(machine)}
    assert 5.0 <= (lines["end"] - lines["stop"]) / 1e6 < SOON_S
    cloud.stop(machine)
    assert events(machine).count("end") == 1


def test_an_agent_that_exits_on_sigterm_ends_its_machine_before_the_grace_period_is_over(cloud):
    machine = cloud.launch_running()
    cloud.stop(machine)
    machine = cloud.wait_until_ended(machine)
    assert (machine["end_cause"], machine["exit_code"]) == ("requested", -signal.SIGTERM)


def test_a_repeated_stop_can_shorten_the_grace_period_but_not_extend_it(cloud):
    machine = cloud.launch_running(user_data={"ignore_term": True})
    path = f"/machines/{machine['id']}"
    assert cloud.client.delete(path, params={"grace_s": 60}).json()["state"] == "stopping"
    assert cloud.client.delete(path, params={"grace_s": 600}).status_code == 202
    kill_at = json.loads((Path(machine["dir"]) / "stop.json").read_text())["kill_at"]
    assert kill_at < time.clock_gettime(time.CLOCK_BOOTTIME) + 90
    assert cloud.client.delete(path, params={"grace_s": 0}).status_code == 202
    ended = cloud.wait_until_ended(machine, within_s=SOON_S)
    assert (ended["end_cause"], ended["exit_code"]) == ("requested", -signal.SIGKILL)
    for query in ("grace_s=-1", "grace_s=nan", "grace_s=1e9", "grace_s=", "mercy=1", "grace_s=3601"):
        assert cloud.client.delete(f"{path}?{query}").status_code == 400


def test_sigterm_to_the_init_stops_its_machine_with_a_grace_period(cloud):
    machine = cloud.launch_running()
    os.kill(machine["init_pid"], signal.SIGTERM)
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("requested", -signal.SIGTERM)


def test_a_machine_stopped_while_pending_ends(cloud):
    machine = cloud.launch()
    cloud.stop(machine)
    assert cloud.wait_until_ended(machine)["end_cause"] == "requested"


def test_the_children_of_a_killed_agent_are_killed(cloud):
    machine = cloud.launch_running(user_data={"children": ["group", "daemon", "unmarked"]})
    kill(machine["agent_pid"])
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("crashed", -signal.SIGKILL)
    assert [pid for pid in pids(machine).values() if alive(pid)] == []


# Preemption notices


def test_a_notice_appears_in_the_metadata_at_once_and_the_machine_is_preempted_at_its_deadline(cloud):
    machine = cloud.launch_running(user_data={"ignore_term": True, "children": ["daemon"]})
    imds = Imds(machine["metadata_url"])
    assert imds.get("meta-data/spot/instance-action").status_code == 404
    cloud.preempt(machine, 5)
    shown = until(lambda: (reply := imds.get("meta-data/spot/instance-action")).status_code == 200 and reply)
    action = shown.json()
    assert action["action"] == "terminate"
    assert action["time"] == imds.get("meta-data/spot/termination-time").text
    assert cloud.show(machine)["state"] == "running"
    ended = cloud.wait_until_ended(machine)
    lines = {line["event"]: line for line in journal(machine)}
    assert ended["end_cause"] == "preempted"
    assert lines["notice"]["notice_s"] == 5
    assert 0 <= ended["ended_at"] - lines["notice"]["preempt_at"] < SOON_S * 1e6
    assert [pid for pid in pids(machine).values() if alive(pid)] == []
    until(lambda: not processes_of(machine["dir"]))


def test_a_machine_whose_agent_exits_after_the_notice_was_preempted(cloud):
    machine = cloud.launch_running(user_data={"leave": True})
    cloud.preempt(machine, 60)
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("preempted", 0)


def test_the_first_notice_counts(cloud):
    machine = cloud.launch_running()
    first = cloud.preempt(machine, 60)["preempt_at"]
    assert cloud.preempt(machine, 600)["preempt_at"] == first
    assert events(machine).count("notice") == 1


def test_a_machine_preempted_without_notice_sees_none(cloud):
    machine = cloud.launch_running(user_data={"leave": True})
    cloud.preempt(machine, 0)
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("preempted", -signal.SIGKILL)


def test_only_spot_machines_are_preempted_unless_forced(cloud):
    machine = cloud.launch_running(market="on_demand")
    path = f"/machines/{machine['id']}/preempt"
    refused = cloud.client.post(path, json={"notice_s": 0})
    assert (refused.status_code, refused.json()["code"]) == (409, "not-spot")
    assert cloud.client.post(path, json={"notice_s": 0, "force": True}).status_code == 202
    assert cloud.wait_until_ended(machine)["end_cause"] == "preempted"
    assert cloud.client.post(path, json={"notice_s": 0, "force": True}).json()["code"] == "ended"


# Metadata


class Imds:
    def __init__(self, url):
        self.client = httpx.Client(base_url=f"{url}/latest/", verify=False)
        self.token = self.client.put("api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}).text

    def get(self, path, token=None):
        return self.client.get(path, headers={"X-aws-ec2-metadata-token": token or self.token})


def test_metadata_need_a_token_and_describe_the_machine(cloud):
    machine = cloud.launch_running(user_data={"boot_token": "b"})
    imds = Imds(machine["metadata_url"])
    answers = {path: imds.get(f"meta-data/{path}").text for path in ("instance-id", "instance-type", "local-ipv4")}
    assert answers == {"instance-id": machine["id"], "instance-type": "local.cpu", "local-ipv4": "127.0.0.1"}
    assert imds.get("meta-data/instance-life-cycle").text == "spot"
    assert imds.get("user-data").json() == {"boot_token": "b"}
    assert imds.get("meta-data/iam").status_code == 404
    port = httpx.URL(machine["metadata_url"]).port
    for guessed in (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/guessed"):  # by others on this computer
        assert httpx.put(
            f"{guessed}/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}, verify=False
        ).status_code == 404  # fmt: skip
    for forged in ("", "nonsense", "99999999.00", imds.token + "0", "é.é"):
        assert imds.client.get("user-data", headers={b"X-aws-ec2-metadata-token": forged.encode()}).status_code == 401
    for ttl in ("", "0", "21601", "x", "9" * 5000):
        reply = imds.client.put("api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": ttl})
        assert reply.status_code == 400
    proxied = {"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "10.0.0.1"}
    assert imds.client.put("api/token", headers=proxied).status_code == 403


# Rejected requests


@pytest.mark.parametrize(
    "change",
    [
        {"price": "-1"},
        {"price": 0.158},
        {"price": "NaN"},
        {"price": "1e9"},
        {"market": "free"},
        {"type": ""},
        {"type": "é"},
        {"tags": {"a": 1}},
        {"tags": []},
        {"user_data": "text"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_an_invalid_launch_is_rejected_and_launches_nothing(cloud, change):
    reply = cloud.client.put("/machines/t", json={**SPOT, **change})
    assert (reply.status_code, reply.json()["code"]) == (400, "bad-request")
    assert reply.json()["detail"]
    assert cloud.client.get("/machines").json()["machines"] == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"notice_s": NaN}', b"[" * 100_000, b'{"notice_s": true}'])
def test_bodies_that_are_not_json_objects_are_rejected(cloud, body):
    for reply in (
        cloud.client.put("/machines/t", content=body),
        cloud.client.post("/machines/x/preempt", content=body),
    ):
        assert (reply.status_code, reply.json()["code"]) == (400, "bad-request")


def test_other_bad_requests_get_json_errors_too(cloud):
    def rejected(method, path, **request):
        reply = cloud.client.request(method, path, **request)
        return reply.status_code, reply.json()["code"]

    assert rejected("PUT", "/machines/t", content=b" " * 300_000) == (413, "too-large")
    assert rejected("PUT", "/machines/t", content=iter([b"{}"])) == (411, "length-required")
    assert rejected("PUT", "/machines/" + "t" * 129, json=SPOT) == (400, "bad-request")
    assert rejected("PUT", "/machines/..%2f..%2fetc", json=SPOT) == (400, "bad-request")
    assert rejected("GET", "/machines/lm-unknown") == (404, "not-found")
    assert rejected("DELETE", "/machines/lm-unknown") == (404, "not-found")
    assert rejected("POST", "/machines/lm-unknown/preempt", json={}) == (404, "not-found")
    assert rejected("GET", "/nowhere") == (404, "not-found")
    assert rejected("DELETE", "/machines") == (405, "method-not-allowed")
    assert rejected("PATCH", "/machines") == (501, "bad-request")
    assert cloud.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}])
def test_every_request_needs_the_key(cloud, header):
    encoded = {name.encode(): value.encode() for name, value in header.items()}
    for method, path in (("GET", "/health"), ("GET", "/machines"), ("PUT", "/machines/t"), ("DELETE", "/machines/x")):
        reply = httpx.request(method, f"{cloud.client.base_url}{path}", headers=encoded)
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert (cloud.folder / "machinehost.json").stat().st_mode & 0o777 == 0o600


def test_a_second_host_on_the_same_folder_exits_with_the_pid_of_the_first(cloud):
    second = cloud.popen()
    _, stderr = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == os.EX_TEMPFAIL
    assert f"pid {cloud.process.pid}" in stderr
    assert "Traceback" not in stderr
    assert cloud.client.get("/health").status_code == 200


def test_a_port_in_use_and_a_folder_that_cannot_be_written_are_reported(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        host = LocalCloud(tmp_path / "a").popen("--port", str(occupied.getsockname()[1]))
        _, stderr = host.communicate(timeout=PATIENCE_S)
    assert host.returncode == os.EX_UNAVAILABLE
    assert "--port" in stderr
    assert "Traceback" not in stderr
    (tmp_path / "file").touch()
    host = LocalCloud(tmp_path / "file" / "b").popen()
    _, stderr = host.communicate(timeout=PATIENCE_S)
    assert host.returncode == os.EX_CANTCREAT
    assert "--dir" in stderr
    assert "Traceback" not in stderr


def test_a_launch_on_a_full_disk_is_rejected_and_can_be_repeated(cloud):
    _, hard = resource.prlimit(cloud.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(cloud.process.pid, resource.RLIMIT_FSIZE, (50, hard))
    reply = cloud.client.put("/machines/t", json=SPOT)
    assert (reply.status_code, reply.json()["code"]) == (507, "storage")
    assert list((cloud.folder / "machines").iterdir()) == []
    resource.prlimit(cloud.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    cloud.launch_running("t")


def test_a_machine_on_a_full_disk_continues_and_its_end_is_reported_once_it_is_journaled(cloud):
    machine = cloud.launch_running()
    _, hard = resource.prlimit(machine["init_pid"], resource.RLIMIT_FSIZE)
    resource.prlimit(machine["init_pid"], resource.RLIMIT_FSIZE, (Path(machine["journal"]).stat().st_size + 10, hard))
    cloud.stop(machine)
    until(lambda: not alive(machine["agent_pid"]))
    until(lambda: "end not journaled" in (Path(machine["dir"]) / "init.log").read_text())
    assert cloud.show(machine)["state"] != "ended"
    resource.prlimit(machine["init_pid"], resource.RLIMIT_FSIZE, (hard, hard))
    assert cloud.wait_until_ended(machine)["end_cause"] == "requested"
    assert journal(machine)[-1]["event"] == "end"


def test_the_journal_alone_contains_what_billing_needs(cloud):
    machine = cloud.wait_until_ended(cloud.launch(user_data={"exit": 0}))
    record = read_machine(Path(machine["dir"]))
    assert (record.launched_at, record.ended_at) == (machine["launched_at"], machine["ended_at"])
    assert (record.token, record.price, record.market, record.end_cause) == ("token-1", "0.158", "spot", "exited")
    with Path(machine["journal"]).open("a") as file:
        file.write(
            json.dumps({"at": 1, "event": "end", "cause": "crashed", "exit_code": None}) + '\nnot json\n{"at": 2, "ev'
        )
    assert read_machine(Path(machine["dir"])) == record
