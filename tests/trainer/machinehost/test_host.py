# SPDX-License-Identifier: Apache-2.0
"""The machine host's promises to its clients: one machine per token, honest ends, clear refusals."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from shoestring_trainer.machinehost.journal import read_machine

from tests.servers import PATIENCE_S
from tests.trainer.machinehost.local_cloud import SPOT, LocalCloud, alive, alive_in, events, journal, kill, pids, until


@pytest.fixture
def cloud(tmp_path):
    cloud = LocalCloud(tmp_path / "cloud")
    cloud.start()
    yield cloud
    cloud.clean_up()


# Launching


def test_a_machine_runs_the_agent_in_its_own_folder_and_is_told_as_the_contract_says(cloud):
    machine = cloud.running(user_data={"boot_token": "s3cret"})
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
    assert os.getsid(machine["pid"]) not in (os.getsid(0), os.getsid(machine["agent_pid"]))
    assert "s3cret" not in Path(machine["journal"]).read_text()


def test_a_repeated_launch_buys_one_machine(cloud):
    first = cloud.client.put("/machines/t", json=SPOT)
    again = cloud.client.put("/machines/t", json=dict(reversed(SPOT.items())))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert len(cloud.client.get("/machines").json()["machines"]) == 1


def test_a_token_with_another_request_is_refused_and_buys_nothing(cloud):
    cloud.launch("t")
    other = cloud.client.put("/machines/t", json={**SPOT, "price": "0.159"})
    assert (other.status_code, other.json()["code"]) == (409, "idempotency-mismatch")
    assert len(cloud.client.get("/machines").json()["machines"]) == 1


def test_a_token_never_buys_a_second_machine_after_the_first_has_ended(cloud):
    machine = cloud.ended(cloud.launch("t", user_data={"exit": 0}))
    again = cloud.client.put("/machines/t", json={**SPOT, "user_data": {"exit": 0}})
    assert (again.status_code, again.json()["code"]) == (409, "token-ended")
    assert again.json()["machine"] == machine


def test_launches_that_race_under_one_token_buy_one_machine(cloud):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: cloud.client.put("/machines/t", json=SPOT), range(16)))
    assert sorted(reply.status_code for reply in replies) == [200] * 15 + [201]
    machine = replies[0].json()
    until(lambda: "agent" in events(machine))
    assert events(machine).count("start") == 1


def test_slots_bound_the_machines_that_live_and_an_end_frees_one(tmp_path):
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
        cloud.ended(machine)
        cloud.launch("t9")
    finally:
        cloud.clean_up()


def test_a_machine_knows_nothing_of_the_servers_environment(tmp_path):
    cloud = LocalCloud(tmp_path)
    cloud.start(env={"SHOESTRING_DATABASE_URL": "postgresql://secret", "SHOESTRING_AGENT_NOTE": "passed on"})
    try:
        machine = cloud.running()
        environ = Path(f"/proc/{machine['agent_pid']}/environ").read_text()
        names = dict(line.split("=", 1) for line in environ.split("\0") if line)
        assert "SHOESTRING_DATABASE_URL" not in names
        assert names["SHOESTRING_AGENT_NOTE"] == "passed on"
        assert names["SHOESTRING_MACHINE_DIR"] == machine["dir"]
        assert names["SHOESTRING_MACHINE_ID"] == machine["id"]
        assert names["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == machine["metadata"]
    finally:
        cloud.clean_up()


# Ending


def test_an_agent_that_exits_ends_its_machine_with_its_code(cloud):
    machine = cloud.ended(cloud.launch(user_data={"exit": 3}))
    assert (machine["end_cause"], machine["end_code"]) == ("exited", 3)
    assert events(machine) == ["launch", "start", "agent", "end"]
    assert machine["launched_at"] <= machine["started_at"] < machine["ended_at"]


def test_the_room_that_a_machine_took_is_given_back_at_its_end_and_what_it_reported_stays(cloud):
    machine = cloud.running()
    folder = Path(machine["dir"])
    (folder / "scratch").mkdir()
    (folder / "scratch" / "images").write_bytes(bytes(1000))
    cloud.stop(machine)
    cloud.ended(machine)
    until(lambda: not (folder / "scratch").exists())
    assert (folder / "journal.jsonl").exists()


def test_a_command_that_cannot_be_run_ends_the_machine_with_127(tmp_path):
    cloud = LocalCloud(tmp_path)
    cloud.start(env={"SHOESTRING_AGENT_COMMAND": '["/no/such/agent"]'})
    try:
        machine = cloud.ended(cloud.launch())
        assert (machine["end_cause"], machine["end_code"]) == ("exited", 127)
        assert "/no/such/agent" in (Path(machine["dir"]) / "agent.log").read_text()
    finally:
        cloud.clean_up()


def test_stopping_ends_the_whole_tree_before_the_journal_says_so(cloud):
    machine = cloud.running(user_data={"children": ["group", "daemon", "nameless"], "ignore_term": True})
    family = [machine["pid"], *pids(machine).values()]
    assert len(set(family)) == 5
    assert all(alive(pid) for pid in family)
    cloud.stop(machine)
    cloud.stop(machine)
    assert cloud.show(machine)["state"] == "stopping"
    until(lambda: "end" in events(machine))
    assert [pid for pid in family[1:] if alive(pid)] == []
    machine = cloud.ended(machine)
    assert machine["end_cause"] == "requested"
    lines = {line["event"]: line["at"] for line in journal(machine)}
    assert 5.0 <= (lines["end"] - lines["stop"]) / 1e6 < 7.0
    cloud.stop(machine)
    assert events(machine).count("end") == 1


def test_stopping_an_obedient_agent_does_not_wait_out_the_grace(cloud):
    machine = cloud.running()
    cloud.stop(machine)
    machine = cloud.ended(machine, within_s=4)
    assert (machine["end_cause"], machine["end_code"]) == ("requested", -signal.SIGTERM)


def test_a_longer_grace_lets_an_agent_finish_and_a_shorter_one_hastens_the_end(cloud):
    machine = cloud.running(user_data={"ignore_term": True})
    path = f"/machines/{machine['id']}"
    assert cloud.client.delete(path, params={"grace_s": 60}).json()["state"] == "stopping"
    assert cloud.client.delete(path, params={"grace_s": 600}).status_code == 202
    assert json.loads((Path(machine["dir"]) / "stop.json").read_text())["kill_at"] < machine["launched_at"] + 90e6
    assert cloud.client.delete(path, params={"grace_s": 0}).status_code == 202
    ended = cloud.ended(machine, within_s=3)
    assert (ended["end_cause"], ended["end_code"]) == ("requested", -signal.SIGKILL)
    for query in ("grace_s=-1", "grace_s=nan", "grace_s=1e9", "grace_s=", "mercy=1", "grace_s=3601"):
        assert cloud.client.delete(f"{path}?{query}").status_code == 400


def test_a_signal_to_the_init_ends_its_machine_politely(cloud):
    machine = cloud.running()
    os.kill(machine["pid"], signal.SIGTERM)
    ended = cloud.ended(machine)
    assert (ended["end_cause"], ended["end_code"]) == ("requested", -signal.SIGTERM)


def test_a_machine_stopped_while_pending_ends(cloud):
    machine = cloud.launch()
    cloud.stop(machine)
    assert cloud.ended(machine)["end_cause"] == "requested"


def test_a_killed_agent_takes_its_children_with_it(cloud):
    machine = cloud.running(user_data={"children": ["group", "daemon", "nameless"]})
    kill(machine["agent_pid"])
    ended = cloud.ended(machine)
    assert (ended["end_cause"], ended["end_code"]) == ("crashed", -signal.SIGKILL)
    assert [pid for pid in pids(machine).values() if alive(pid)] == []


# Spot notices


def test_a_notice_shows_in_the_metadata_at_once_and_the_machine_is_taken_when_it_ends(cloud):
    machine = cloud.running(user_data={"ignore_term": True, "children": ["daemon"]})
    imds = Imds(machine["metadata"])
    assert imds.get("meta-data/spot/instance-action").status_code == 404
    cloud.reclaim(machine, 5)
    shown = until(lambda: (said := imds.get("meta-data/spot/instance-action")).status_code == 200 and said)
    action = shown.json()
    assert action["action"] == "terminate"
    assert action["time"] == imds.get("meta-data/spot/termination-time").text
    assert cloud.show(machine)["state"] == "running"
    ended = cloud.ended(machine)
    lines = {line["event"]: line for line in journal(machine)}
    assert ended["end_cause"] == "reclaimed"
    assert lines["notice"]["notice_s"] == 5
    assert 0 <= ended["ended_at"] - lines["notice"]["taken_at"] < 1_500_000
    assert [pid for pid in pids(machine).values() if alive(pid)] == []
    until(lambda: not alive_in(machine["dir"]))


def test_an_agent_that_leaves_after_the_notice_was_reclaimed(cloud):
    machine = cloud.running(user_data={"leave": True})
    cloud.reclaim(machine, 60)
    ended = cloud.ended(machine)
    assert (ended["end_cause"], ended["end_code"]) == ("reclaimed", 0)


def test_the_first_notice_stands(cloud):
    machine = cloud.running()
    first = cloud.reclaim(machine, 60)["taken_at"]
    assert cloud.reclaim(machine, 600)["taken_at"] == first
    assert events(machine).count("notice") == 1


def test_a_machine_taken_without_notice_sees_none(cloud):
    machine = cloud.running(user_data={"leave": True})
    cloud.reclaim(machine, 0)
    ended = cloud.ended(machine)
    assert (ended["end_cause"], ended["end_code"]) == ("reclaimed", -signal.SIGKILL)


def test_only_spot_machines_are_reclaimed_unless_forced(cloud):
    machine = cloud.running(market="on_demand")
    path = f"/machines/{machine['id']}/reclaim"
    refused = cloud.client.post(path, json={"notice_s": 0})
    assert (refused.status_code, refused.json()["code"]) == (409, "not-spot")
    assert cloud.client.post(path, json={"notice_s": 0, "force": True}).status_code == 202
    assert cloud.ended(machine)["end_cause"] == "reclaimed"
    assert cloud.client.post(path, json={"notice_s": 0, "force": True}).json()["code"] == "ended"


# Metadata


class Imds:
    def __init__(self, url):
        self.client = httpx.Client(base_url=f"{url}/latest/", verify=False)
        self.token = self.client.put("api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}).text

    def get(self, path, token=None):
        return self.client.get(path, headers={"X-aws-ec2-metadata-token": token or self.token})


def test_metadata_need_a_token_and_tell_what_the_machine_is(cloud):
    machine = cloud.running(user_data={"boot_token": "b"})
    imds = Imds(machine["metadata"])
    answers = {path: imds.get(f"meta-data/{path}").text for path in ("instance-id", "instance-type", "local-ipv4")}
    assert answers == {"instance-id": machine["id"], "instance-type": "local.cpu", "local-ipv4": "127.0.0.1"}
    assert imds.get("meta-data/instance-life-cycle").text == "spot"
    assert imds.get("user-data").json() == {"boot_token": "b"}
    assert imds.get("meta-data/iam").status_code == 404
    for forged in ("", "nonsense", "99999999.00", imds.token + "0", "é.é"):
        assert imds.client.get("user-data", headers={b"X-aws-ec2-metadata-token": forged.encode()}).status_code == 401
    for ttl in ("", "0", "21601", "x", "9" * 5000):
        reply = imds.client.put("api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": ttl})
        assert reply.status_code == 400
    proxied = {"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "10.0.0.1"}
    assert imds.client.put("api/token", headers=proxied).status_code == 403


# Refusals


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
def test_a_launch_that_breaks_the_contract_is_refused_and_buys_nothing(cloud, change):
    reply = cloud.client.put("/machines/t", json={**SPOT, **change})
    assert (reply.status_code, reply.json()["code"]) == (400, "bad-request")
    assert reply.json()["detail"]
    assert cloud.client.get("/machines").json()["machines"] == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"notice_s": NaN}', b"[" * 100_000, b'{"notice_s": true}'])
def test_bodies_that_are_no_json_object_are_refused(cloud, body):
    for reply in (
        cloud.client.put("/machines/t", content=body),
        cloud.client.post("/machines/x/reclaim", content=body),
    ):
        assert (reply.status_code, reply.json()["code"]) == (400, "bad-request")


def test_other_bad_requests_get_json_too(cloud):
    def refused(method, path, **request):
        reply = cloud.client.request(method, path, **request)
        return reply.status_code, reply.json()["code"]

    assert refused("PUT", "/machines/t", content=b" " * 300_000) == (413, "too-large")
    assert refused("PUT", "/machines/t", content=iter([b"{}"])) == (411, "length-required")
    assert refused("PUT", "/machines/" + "t" * 129, json=SPOT) == (400, "bad-request")
    assert refused("PUT", "/machines/..%2f..%2fetc", json=SPOT) == (400, "bad-request")
    assert refused("GET", "/machines/lm-unknown") == (404, "not-found")
    assert refused("DELETE", "/machines/lm-unknown") == (404, "not-found")
    assert refused("POST", "/machines/lm-unknown/reclaim", json={}) == (404, "not-found")
    assert refused("GET", "/nowhere") == (404, "not-found")
    assert refused("DELETE", "/machines") == (405, "method-not-allowed")
    assert refused("PATCH", "/machines") == (501, "bad-request")
    assert cloud.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}])
def test_every_call_needs_the_key(cloud, header):
    encoded = {name.encode(): value.encode() for name, value in header.items()}
    for method, path in (("GET", "/health"), ("GET", "/machines"), ("PUT", "/machines/t"), ("DELETE", "/machines/x")):
        reply = httpx.request(method, f"{cloud.client.base_url}{path}", headers=encoded)
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert (cloud.folder / "machinehost.json").stat().st_mode & 0o777 == 0o600


def test_a_second_host_on_the_same_folder_refuses(cloud):
    second = cloud.popen()
    _, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == os.EX_TEMPFAIL
    assert f"pid {cloud.process.pid}" in said
    assert "Traceback" not in said
    assert cloud.client.get("/health").status_code == 200


def test_a_port_in_use_and_a_folder_that_cannot_be_written_are_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = LocalCloud(tmp_path / "a").popen("--port", str(taken.getsockname()[1]))
        _, said = host.communicate(timeout=PATIENCE_S)
    assert host.returncode == os.EX_UNAVAILABLE
    assert "--port" in said
    assert "Traceback" not in said
    (tmp_path / "file").touch()
    host = LocalCloud(tmp_path / "file" / "b").popen()
    _, said = host.communicate(timeout=PATIENCE_S)
    assert host.returncode == os.EX_CANTCREAT
    assert "--dir" in said
    assert "Traceback" not in said


def test_a_launch_on_a_full_disk_is_refused_and_may_be_repeated(cloud):
    _, hard = resource.prlimit(cloud.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(cloud.process.pid, resource.RLIMIT_FSIZE, (50, hard))
    reply = cloud.client.put("/machines/t", json=SPOT)
    assert (reply.status_code, reply.json()["code"]) == (507, "storage")
    assert list((cloud.folder / "machines").iterdir()) == []
    resource.prlimit(cloud.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    cloud.running("t")


def test_a_machine_on_a_full_disk_goes_on_and_its_end_is_said_once_it_is_written(cloud):
    machine = cloud.running()
    _, hard = resource.prlimit(machine["pid"], resource.RLIMIT_FSIZE)
    resource.prlimit(machine["pid"], resource.RLIMIT_FSIZE, (Path(machine["journal"]).stat().st_size + 10, hard))
    cloud.stop(machine)
    until(lambda: not alive(machine["agent_pid"]))
    until(lambda: "end not journaled" in (Path(machine["dir"]) / "init.log").read_text())
    assert cloud.show(machine)["state"] != "ended"
    resource.prlimit(machine["pid"], resource.RLIMIT_FSIZE, (hard, hard))
    assert cloud.ended(machine)["end_cause"] == "requested"
    assert journal(machine)[-1]["event"] == "end"


def test_the_journal_alone_tells_what_a_machine_cost(cloud):
    machine = cloud.ended(cloud.launch(user_data={"exit": 0}))
    record = read_machine(Path(machine["dir"]))
    assert (record.launched_at, record.ended_at) == (machine["launched_at"], machine["ended_at"])
    assert (record.token, record.price, record.market, record.end_cause) == ("token-1", "0.158", "spot", "exited")
    with Path(machine["journal"]).open("a") as file:
        file.write(
            json.dumps({"at": 1, "event": "end", "cause": "crashed", "code": None}) + '\nnot json\n{"at": 2, "ev'
        )
    assert read_machine(Path(machine["dir"])) == record
