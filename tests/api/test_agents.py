# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from shoestring_core import wire
from shoestring_core.decide.timeouts import S
from shoestring_core.store.tables import MachineRow
from shoestring_core.wheelhouse import WheelFile, Wheelhouse, file_key, manifest_key
from sqlalchemy import update

from tests.api.deployment import Agent, Deployment
from tests.servers import PATIENCE_S, until
from tests.shared_database import SharedDatabase
from tests.worker.providers.fake_aws import FakeAws


@pytest.mark.any_database
def test_a_gang_forms_and_trains_and_the_job_follows(deployment: Deployment) -> None:
    job = deployment.submit(resources={"nodes": 2})
    first, second = deployment.launch(job)
    assert deployment.job(job).state == "launching"
    assert wire.Reply.model_validate_json(first.register().content).order.kind == "wait"
    assert wire.Reply.model_validate_json(second.register().content).order.kind == "prepare"
    assert first.report(member={"generation": 1, "state": "ready", "port": 29500}).order.kind == "prepare"
    order = second.report(member={"generation": 1, "state": "ready", "port": 29501}).order
    assert order.run is not None
    assert (order.kind, order.run.node_rank, order.run.nnodes, order.run.master_port) == ("run", 1, 2, 29500)
    assert deployment.job(job).state == "running"
    first.points(range(1, 5))
    shown = deployment.job(job)
    assert (shown.progress.step, shown.latest["train/loss"]) == (4, 4.1)
    assert shown.first_step_at is not None


@pytest.mark.any_database
def test_leases_and_upload_urls_come_with_every_reply(deployment: Deployment) -> None:
    _, (agent,) = deployment.running()
    reply = agent.report()
    assert 25 < reply.lease_s <= 30
    funded = deployment.state.timeouts.funding_lease / 1e6
    assert funded - 10 < reply.funding_lease_s <= funded
    assert reply.upload_urls is not None
    assert reply.report_interval_s == 5


def test_a_machine_tells_how_far_it_has_booted_until_its_agent_registers(deployment: Deployment) -> None:
    job = deployment.submit()
    (agent,) = deployment.launch(job)
    assert agent.boot(phase="driver", message="NVIDIA driver 580", seconds=1.5).status_code == 204
    assert agent.boot(phase="install", message="no module", failure="image", seconds=2).status_code == 204
    events = [
        event for event in deployment.member.get(f"/v1/jobs/{job}/events").json()["events"] if event["kind"] == "agent"
    ]
    assert [event["data"]["event"] for event in events] == ["boot", "boot"]
    assert [event["reason"]["text"] for event in events] == [
        "Driver, 1.5 s: NVIDIA driver 580.",
        "Install failed after 2 s: no module. It powers off.",
    ]
    assert agent.boot(boot_token="forged").status_code == 403
    agent.register()
    assert agent.boot().status_code == 403


def test_a_machine_that_boots_is_told_where_its_wheels_are(deployment: Deployment) -> None:
    (agent,) = deployment.launch(deployment.submit())
    content = {name: name.encode() for name in ("b-1-py3-none-any.whl", "a-1-py3-none-any.whl")}
    sums = {name: hashlib.sha256(each).hexdigest() for name, each in content.items()}
    files = [WheelFile(name=name, bytes=len(content[name]), sha256=sums[name]) for name in content]
    stored = Wheelhouse(python="3.12", cuda="13.0", min_driver=580, files=tuple(files))
    deployment.state.objects.put(manifest_key(stored.name), stored.as_bytes())
    for file in files:
        deployment.state.objects.put(file_key(file.sha256), content[file.name])
    answer = agent.wheelhouse(stored.name)
    assert answer.status_code == 200
    told = wire.WheelhouseReply.model_validate_json(answer.content)
    assert hashlib.sha256(told.manifest.encode()).hexdigest() == stored.name
    names = [file.name for file in Wheelhouse.model_validate_json(told.manifest).files]
    assert names == sorted(content)
    fetched = [deployment.nobody.get(url).content for url in told.urls]
    assert fetched == [content[name] for name in names]
    missing = agent.wheelhouse("0" * 64)
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
    assert agent.wheelhouse(stored.name, boot_token="forged").status_code == 403
    assert agent.wheelhouse("../secret").status_code == 422
    agent.register()
    assert agent.wheelhouse(stored.name).status_code == 403


def test_a_replayed_batch_changes_nothing(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    batch = agent.batch(points=[{"name": "loss", "steps": [1], "times": [1.0], "values": [0.5]}])
    first, again = agent.report(batch=batch), agent.report(batch=batch)
    assert (first.acked_seq, again.acked_seq) == (1, 1)
    curve = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["curves"][0]
    assert (curve["steps"], curve["values"]) == ([1], [0.5])


def test_a_gap_is_answered_with_the_number_expected(deployment: Deployment) -> None:
    _, (agent,) = deployment.running()
    answer = agent.post(json.dumps({"batch": {"seq": 7, "generation": 1}}).encode())
    assert (answer.status_code, answer.json()["code"], answer.json()["expected"]) == (409, "batch-gap", 1)


def _point_at(time: object) -> bytes:
    """A batch of one point, measured at this time."""
    point = {"name": "x", "steps": [1], "times": [time], "values": [1]}
    return json.dumps({"batch": {"seq": 1, "generation": 1, "points": [point]}}).encode()


POISON = {
    "no JSON": b"{",
    "not UTF-8": b'{"batch": "\xff"}',
    "columns of different lengths": json.dumps(
        {"batch": {"seq": 1, "generation": 1, "points": [{"name": "x", "steps": [1], "times": [], "values": []}]}}
    ).encode(),
    "a negative step": json.dumps(
        {"batch": {"seq": 1, "generation": 1, "points": [{"name": "x", "steps": [-1], "times": [1], "values": [1]}]}}
    ).encode(),
    "a generation that isn't its own": json.dumps(
        {"batch": {"seq": 1, "generation": 9, "points": [{"name": "x", "steps": [1], "times": [1], "values": [1]}]}}
    ).encode(),
    "no base64": json.dumps(
        {"batch": {"seq": 1, "generation": 1, "logs": [{"rank": 0, "offset": 0, "data_b64": "?"}]}}
    ).encode(),
    "an offset that no column holds": json.dumps(
        {"batch": {"seq": 1, "generation": 1, "logs": [{"rank": 0, "offset": 2**70, "data_b64": "YQ=="}]}}
    ).encode(),
    "a generation that no column holds": json.dumps(
        {"batch": {"seq": 1, "generation": 2**70, "events": [{"kind": "x", "at": 1}]}}
    ).encode(),
    "a part in such a generation": json.dumps({"member": {"generation": 2**70, "state": "ready"}}).encode(),
    "a notice that is no time": b'{"notice_at": "NaN"}',
    "a time that is no number": _point_at("NaN"),
    "a time without end": _point_at("Infinity"),
    "a time before 1970": _point_at(-1),
    "a time that no clock shows": _point_at(1e300),
    "an event at no time": b'{"batch": {"seq": 1, "generation": 1, "events": [{"kind": "x", "at": "NaN"}]}}',
    "an exit at no time": b'{"member": {"generation": 1, "state": "exited", "exits": '
    b'[{"rank": 0, "outcome": "signal", "at": "Infinity"}]}}',
    "a number with ten thousand digits": b'{"batch": {"seq": 1, "generation": 1, "events": '
    b'[{"kind": "x", "at": 1, "data": {"n": ' + b"9" * 10_000 + b"}}]}}",
    "half a surrogate pair": b'{"batch": {"seq": 1, "generation": 1, "events": [{"kind": "\\ud800", "at": 1}]}}',
    "a thousand levels": b'{"batch": {"seq": 1, "generation": 1, "events": [{"kind": "x", "at": 1, "data": '
    + b'{"a": ' * 1000 + b"1" + b"}" * 1000 + b"}]}}",
    "too large": b" " * (wire.MAX_BATCH_BYTES + 1),
    "far too large": b" " * (8 * wire.MAX_BATCH_BYTES),
}  # fmt: skip


def test_a_poison_batch_is_refused_renews_the_lease_and_stops_nothing(
    deployment: Deployment, subtests: pytest.Subtests
) -> None:
    job, (agent,) = deployment.running()
    for number, (what, content) in enumerate(POISON.items(), start=1):
        with subtests.test(what):
            with deployment.store.read() as db:
                before = db.sql.get_one(MachineRow, agent.machine).alive_until
            answer = agent.post(content.replace(b'"seq": 1,', b'"seq": %d,' % (agent.seq + 1)))
            assert answer.status_code in (413, 422), answer.text
            assert answer.json()["code"] in ("too-large", "invalid-request")
            with deployment.store.read() as db:
                after = db.sql.get_one(MachineRow, agent.machine).alive_until
            assert before is not None
            assert after is not None
            assert after > before
            rejected = {"kind": "rejected", "at": 1.0, "data": {"why": answer.json()["detail"][:500]}}
            assert agent.report(batch=agent.batch(events=[rejected])).acked_seq == agent.seq
            assert agent.points(range(2 * number, 2 * number + 2)).acked_seq == agent.seq
            reported = deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]
            assert [event["data"].get("event") for event in reported].count("rejected") == number


def test_nan_and_infinities_survive(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    values = [1.5, "NaN", "Infinity", "-Infinity"]
    series = {"name": "loss", "steps": [1, 2, 3, 4], "times": [1, 2, 3, 4], "values": values}
    agent.report(batch=agent.batch(points=[series]))
    assert deployment.member.get(f"/v1/jobs/{job}/metrics").json()["curves"][0]["values"] == values
    assert deployment.member.get(f"/v1/jobs/{job}").json()["latest"]["loss"] == "-Infinity"


def test_nul_and_broken_text_are_cleaned(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    event = {"kind": "warn\0ing", "at": 1.0, "data": {"te\0xt": "a\0b", "n": [float("inf")]}}
    series = {"name": "lo\0ss", "steps": [1], "times": [1], "values": [1]}
    agent.report(batch=agent.batch(events=[event], points=[series]))
    reported = deployment.member.get(f"/v1/jobs/{job}/events").json()["events"][-1]["data"]
    assert (reported["event"], reported["te\ufffdxt"], reported["n"]) == ("warn\ufffding", "a\ufffdb", ["Infinity"])
    assert deployment.member.get(f"/v1/jobs/{job}/metrics").json()["curves"][0]["name"] == "lo\ufffdss"


def test_a_forged_or_missing_session_is_refused_and_the_team_alarmed(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    forger = Agent(deployment, job, agent.machine, session_secret="x" * 40)
    answer = forger.post(b"{}")
    assert (answer.status_code, answer.json()["code"]) == (403, "agent-refused")
    assert deployment.nobody.post("/agent/v1/report", content=b"{}").status_code == 401
    nowhere = Agent(deployment, job, uuid4())
    assert nowhere.post(b"{}").status_code == 403
    assert "alarm" in [event["kind"] for event in deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]]


def test_a_boot_token_binds_the_first_session_and_no_other(deployment: Deployment) -> None:
    job = deployment.submit()
    (agent,) = deployment.launch(job)
    assert agent.register(boot_token="0" * 64).status_code == 403
    assert agent.register().status_code == 200
    assert agent.register().status_code == 200, "a lost reply harms nobody"
    thief = agent.register(session_secret="t" * 40)
    assert (thief.status_code, thief.json()["code"]) == (403, "agent-refused")
    kinds = [event["kind"] for event in deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]]
    assert kinds.count("alarm") == 2
    assert agent.report().acked_seq == 0


@pytest.mark.any_database
def test_an_unknown_protocol_is_named(deployment: Deployment) -> None:
    _, (agent,) = deployment.running()
    answer = agent.post(json.dumps({"protocol": 99}).encode())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert "99" in answer.json()["detail"]


def test_a_held_order_arrives_when_it_changes(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    etag = agent.report().etag
    heard: list[tuple[float, wire.Reply]] = []
    waiter = threading.Thread(target=lambda: heard.append((time.monotonic(), agent.orders(etag))))
    waiter.start()
    stopped_at = time.monotonic()
    deployment.member.post(f"/v1/jobs/{job}:stop")
    waiter.join(timeout=PATIENCE_S)
    assert heard[0][1].order.kind == "drain"
    assert time.monotonic() - stopped_at < 10, "long before the hold ends"


def test_a_held_order_is_refused_once_the_machine_has_another_session(deployment: Deployment) -> None:
    _, (agent,) = deployment.running()
    etag = agent.report().etag
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(deployment.nobody.get, "/agent/v1/orders", params={"after": etag}, headers=agent.headers)
        until(lambda: deployment.state.notifier._signals[agent.job])
        deployment.store.write(lambda db: db.execute(update(MachineRow).values(session_hash="another")))
        assert held.result(timeout=PATIENCE_S).status_code == 403


@pytest.mark.any_database
def test_machines_report_often_while_somebody_watches(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    before = agent.report()
    with deployment.stream(f"job:{job}"):
        watched = agent.orders(before.etag)
        assert watched.report_interval_s == 0.25
    assert agent.orders(watched.etag).report_interval_s == 5


def test_a_final_checkpoint_ends_the_job_and_its_parts_can_be_fetched(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 11))
    files = {"model.safetensors": bytes(range(256)) * 100, "model.json": b'{"classes": 10}'}
    answer = agent.checkpoint(10, files, reason="final", result={"val/acc": 0.98})
    assert (answer.status_code, answer.json()["promoted"]) == (200, True), answer.text
    shown = deployment.job(job)
    assert (shown.state, shown.end_reason, shown.result) == ("ended", "succeeded", {"val/acc": 0.98})
    listed = {one["name"]: one for one in deployment.member.get(f"/v1/jobs/{job}/artifacts").json()["artifacts"]}
    assert set(listed) == set(files)
    url = listed["model.safetensors"]["url"]
    whole = deployment.member.get(url)
    assert (whole.status_code, whole.content) == (200, files["model.safetensors"])
    part = deployment.member.get(url, headers={"Range": "bytes=250-259"})
    assert (part.status_code, part.content) == (206, files["model.safetensors"][250:260])
    assert part.headers["content-range"] == "bytes 250-259/25600"
    assert deployment.member.get(url, headers={"Range": "bytes=-5"}).content == files["model.safetensors"][-5:]
    beyond = deployment.member.get(url, headers={"Range": "bytes=99999-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range-not-satisfiable")
    assert deployment.member.get(f"/v1/jobs/{job}/artifacts/none").status_code == 404
    assert deployment.stranger.get(url).status_code == 404


def _part(**flaw: Any) -> dict[str, Any]:
    return {"name": "a.json", "offset": 0, "bytes": len(b"weights"), "sha256": "0" * 64} | flaw


def _parts(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"fields": {"parts": list(parts)}}


UPLOADS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"data": None, "manifest": None}, "not uploaded"),
    "no data": ({"data": None}, "not uploaded"),
    "no manifest": ({"manifest": None}, "not uploaded"),
    "another manifest than it commits": ({"commit": {"manifest_sha256": "0" * 64}}, "does not match the commit"),
    "a manifest that is no JSON": ({"manifest": b"{"}, "can't be read"),
    "a manifest without its parts": ({"manifest": b'{"format": 1}'}, "can't be read"),
    "half of the data": ({"data": b"weig"}, "does not match its manifest"),
    "other data of the same size": ({"data": b"WEIGHTS"}, "does not match its manifest"),
    "another size than it commits": ({"commit": {"bytes": 8}}, "does not match its manifest"),
    "another step": ({"fields": {"step": 4}}, "another job, generation or step"),
    "another generation": ({"fields": {"generation": 2}}, "another job, generation or step"),
    "another job": ({"fields": {"job": str(uuid4())}}, "another job, generation or step"),
    "a part that ends after the data": (_parts(_part(offset=1)), "ends after the data"),
    "a part of many bytes": (_parts(_part(bytes=10**18)), "ends after the data"),
    "a part before the data": (_parts(_part(offset=-1)), "can't be read"),
    "two parts of one name": (_parts(_part(), _part()), "two parts have the same name"),
    "a part whose name is a path": (_parts(_part(name="../a")), "can't be read"),
    "a part whose name is two lines": (_parts(_part(name="a\nb")), "can't be read"),
    "a part whose name is no header": (_parts(_part(name='a"猫')), "can't be read"),
    "a part whose hash is no header": (_parts(_part(sha256="猫" * 64)), "can't be read"),
    "a nonce that is a path": ({"commit": {"nonce": "../000001"}}, "not an upload nonce"),
    "a nonce that is no header": ({"commit": {"nonce": "猫"}}, "not an upload nonce"),
}


@pytest.mark.any_database
def test_a_checkpoint_that_is_not_what_it_says_is_refused(deployment: Deployment, subtests: pytest.Subtests) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 4))
    for what, (flaw, why) in UPLOADS.items():
        with subtests.test(what):
            answer = _upload(agent, **flaw)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text
            assert why in answer.json()["detail"]
            assert deployment.member.get(f"/v1/jobs/{job}/artifacts").json()["artifacts"] == []
            assert deployment.job(job).state == "running"
        for file in Path(deployment.settings.object_store).rglob("*"):
            if file.is_file():  # the next upload has the same name, and may lack this part
                file.unlink()


@pytest.mark.any_database
def test_the_upload_that_those_flaws_are_made_from_is_accepted(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 4))
    assert _upload(agent).json()["promoted"]
    assert deployment.job(job).state == "ended"


def _upload(
    agent: Agent,
    data: bytes | None = b"weights",
    manifest: bytes | None = b"",
    fields: dict[str, Any] | None = None,
    commit: dict[str, Any] | None = None,
) -> httpx.Response:
    """Upload data and a manifest, made for `weights` unless it is given, and commit them at step 3."""
    urls = agent.report().upload_urls
    content = {
        "format": 1, "job": str(agent.job), "generation": 1, "step": 3, "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(), "parts": [],
    }  # fmt: skip
    text = json.dumps(content | (fields or {})).encode() if manifest == b"" else manifest
    for url, uploaded in ((urls.data_url, data), (urls.manifest_url, text)):
        if uploaded is not None:
            assert agent.deployment.nobody.put(url, content=uploaded).status_code == 201
    request = {
        "generation": 1, "step": 3, "nonce": urls.nonce, "bytes": 7, "reason": "final", "through_seq": agent.seq,
        "manifest_sha256": hashlib.sha256(text or b"").hexdigest(),
    } | (commit or {})  # fmt: skip
    return agent.deployment.nobody.post("/agent/v1/checkpoints", json=request, headers=agent.headers)


def test_a_preemption_notice_is_kept_as_the_machine_first_announced_it(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.report(notice_at=1_900_000_000.25)
    agent.report(notice_at=1_900_000_099.0)
    with deployment.store.read() as db:
        assert db.sql.get_one(MachineRow, agent.machine).notice_at == 1_900_000_000_250_000
    told = [event["data"].get("state") for event in deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]]
    assert told.count("notice") == 1


def test_a_machine_that_its_provider_ends_for_nothing_is_told_how_long_it_stays(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    free_hour = {"free_if_interrupted_within": 3600 * S}
    deployment.store.write(lambda db: db.sql.execute(update(MachineRow).values(billing=free_hour)))
    ends_at = time.time() + 100
    assert agent.report(notice_at=ends_at).left_for_s == 0, "its work is not over"
    drained = {"rank": 0, "outcome": "drained", "at": 1.0}
    asked_at = time.time()
    reply = agent.report(member={"generation": 1, "state": "exited", "exits": [drained]})
    assert ends_at + 59 - time.time() < reply.left_for_s <= ends_at + 61 - asked_at

    def shown() -> dict[str, Any]:
        return deployment.member.get(f"/v1/jobs/{job}/attempts").json()["attempts"][0]["machines"][0]

    assert (shown()["state"], shown()["left"]["code"]) == ("running", "left_to_provider")
    events = deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]
    (told,) = [event for event in events if event["data"].get("state") == "left"]
    assert told["reason"] == shown()["left"]
    ended = {"state": "terminated", "ended_at": 1}
    deployment.store.write(lambda db: db.sql.execute(update(MachineRow).values(ended)))
    assert shown()["left"] is None


def test_points_come_before_their_checkpoint(deployment: Deployment) -> None:
    _, (agent,) = deployment.running()
    answer = agent.checkpoint(3, {"model": b"abc"}, through_seq=5)
    assert (answer.status_code, answer.json()["code"]) == (409, "batches-missing")


def test_base64_of_logs_is_kept_byte_by_byte(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.log(b"caf\xc3\xa9 \xff\n\x1b[31mred\x1b[0m\n")
    lines = [line["text"] for line in deployment.member.get(f"/v1/jobs/{job}/logs").json()["lines"]]
    assert lines == ["café \ufffd", "\x1b[31mred\x1b[0m"]


@pytest.mark.any_database
def test_metrics_name_batches_by_outcome(deployment: Deployment) -> None:
    _, (agent,) = deployment.running()
    agent.points(range(1, 3))
    text = deployment.nobody.get("/metrics").text
    assert 'shoestring_agent_batches_total{outcome="accepted"}' in text
    assert 'shoestring_machines{state="running"} 1.0' in text


@pytest.mark.any_database
def test_a_checkpoint_on_s3_is_committed_by_the_checksum_that_s3_keeps(
    migrated: SharedDatabase, tmp_path: Path, aws: FakeAws
) -> None:
    aws.s3().create_bucket(Bucket="models")
    place = {"object_store": "s3://models/team", "object_store_endpoint_url": aws.url}
    with Deployment(migrated.url, tmp_path, store=migrated.store(), **place) as deployment:
        job, (agent,) = deployment.running()
        agent.points(range(1, 4))
        files = {"model.json": b"{}", "weights": b"weights"}
        for flaw in ({"crc64nvme": "0" * 16}, {"crc64nvme": None}):
            refused = agent.checkpoint(3, files, reason="final", flaw=flaw)
            assert refused.status_code == 422, refused.text
            for stored in aws.s3().list_objects_v2(Bucket="models", Prefix="team/jobs/")["Contents"]:
                aws.s3().delete_object(Bucket="models", Key=stored["Key"])
        assert agent.checkpoint(3, files, reason="final").json()["promoted"]
        assert deployment.job(job).state == "ended"
        assert deployment.member.get(f"/v1/jobs/{job}/artifacts/weights").content == b"weights"
        part = deployment.member.get(f"/v1/jobs/{job}/artifacts/weights", headers={"Range": "bytes=2-3"})
        assert (part.status_code, part.content) == (206, b"ig")
