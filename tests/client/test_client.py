# SPDX-License-Identifier: Apache-2.0
"""The Python client: what it sends, what it makes of answers, and that it doesn't give up or repeat itself wrongly."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shoestring import Client, ServiceError, ServiceUnreachable, client
from shoestring_core import rest

JOB: dict[str, Any] = {
    "id": str(uuid.uuid4()), "name": "j", "team": "t", "user": "u", "recipe": "digits/quickstart", "state": "queued",
    "status": "queued",
    "status_text": "Waiting.", "desired_state": "run", "attempt": 0, "generation": 0, "progress": {"step": 0},
    "cost": {
        "spent": {"amount": "0.00"}, "running": {"amount": "0.00"}, "held": {"amount": "0.00"},
        "on_demand": {"amount": "0.00"}, "settled": False, "price_basis": "simulated",
    },
    "spec": {}, "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_backoff_s", lambda *_: 0.0)


def talking_to(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://service", "sst_pat_x", transport=httpx.MockTransport(answer))


def test_a_submit_that_fails_on_the_way_is_repeated_under_one_key() -> None:
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) < 3:
            raise httpx.ConnectError("cut")
        return httpx.Response(201, json=JOB)

    assert talking_to(answer).submit({"recipe": "digits/quickstart"}).state == "queued"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_service_that_never_answers_is_named_with_what_to_type() -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServiceUnreachable, match=r"http://service does not answer .* shoestring up"):
        talking_to(answer).jobs()


def test_a_refusal_is_not_repeated() -> None:
    calls = 0

    def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        problem = {"type": "/p", "title": "No", "status": 409, "detail": "Too expensive.", "code": "budget-exceeded"}
        return httpx.Response(409, json=problem)

    with pytest.raises(ServiceError, match="Too expensive") as refused:
        talking_to(answer).submit("recipe: digits/quickstart")
    assert refused.value.code == "budget-exceeded"
    assert calls == 1


def test_an_export_that_is_cut_off_is_an_error_and_so_is_a_refusal() -> None:
    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"at,kind\r\n"
            raise httpx.ReadError("reset")

    written: list[bytes] = []
    with pytest.raises(ServiceUnreachable, match=r"cut off \(reset\)"):
        talking_to(lambda _request: httpx.Response(200, stream=Cut())).export_ledger("csv", written.append)
    assert written == [b"at,kind\r\n"]
    problem = {"type": "/p", "title": "No", "status": 401, "detail": "The key ended.", "code": "unauthorized"}
    with pytest.raises(ServiceError, match="key ended"):
        talking_to(lambda _request: httpx.Response(401, json=problem)).export_ledger("csv", written.append)
    assert len(written) == 1


def test_a_proxys_error_page_does_not_break_the_client() -> None:
    answering = talking_to(lambda _request: httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(ServiceError, match="not as a Shoestring service would"):
        answering.job(uuid.uuid4())


def test_an_answer_of_another_service_does_not_break_the_client() -> None:
    answering = talking_to(lambda _request: httpx.Response(200, json={"status": "ok"}))
    for ask in (lambda: answering.job(uuid.uuid4()), answering.login_link, lambda: answering.set_budget("x", "1")):
        with pytest.raises(ServiceError, match="not as a Shoestring service would") as refused:
            ask()
        assert refused.value.code == "not-shoestring"


@pytest.mark.parametrize("url", ["", "service", "ftp://service", "http://", "http://[::1", "http://service:x"])
def test_what_can_be_no_address_is_refused_before_it_is_asked(url: str) -> None:
    with pytest.raises(ServiceError, match="not the URL of a service") as refused:
        Client(url, "sst_pat_x")
    assert refused.value.code == "not-shoestring"


@pytest.mark.parametrize("key", ["", "sst_pat_é", "sst_pat_x\n", "sst_pat_x y"])
def test_what_can_be_no_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ServiceError) as refused:
        Client("http://service", key)
    assert refused.value.code == "unauthenticated"
    assert key.strip() not in str(refused.value) or not key


def test_a_broken_stream_is_taken_up_where_it_broke() -> None:
    cursors: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        cursors.append(request.url.params.get("cursor"))
        number = len(cursors)
        if number == 3:
            raise httpx.ReadError("cut")
        text = f"event: job\nid: c{number}\ndata: {json.dumps({'n': number})}\n\n"
        return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})

    stream = talking_to(answer).stream("jobs", cursor="c0")
    seen = [next(stream).data["n"] for _ in range(3)]
    assert seen == [1, 2, 4]
    assert cursors == ["c0", "c1", "c2", "c2"]


def test_events_are_read_as_the_standard_says() -> None:
    text = ': ping\n\nevent: points\nid: 7\ndata: {"a":\ndata: 1}\n\ndata: {}\n\n'
    messages = list(client.parse_events(iter(text.split("\n"))))
    assert [(m.name, m.cursor, m.data) for m in messages] == [("points", "7", {"a": 1}), ("message", "7", {})]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("block", [1, 3, 1_000])
def test_only_cr_lf_and_crlf_end_a_line_of_the_stream(end: str, block: int) -> None:
    text = "\u2028 \u2029 \x85 \x0b \x0c \x1c é"
    stream = end.join(["event: logs", f"data: {json.dumps({'text': text}, ensure_ascii=False)}", "", ""]).encode()

    def answer(request: httpx.Request) -> httpx.Response:
        blocks = iter([stream[at : at + block] for at in range(0, len(stream), block)])
        return httpx.Response(200, content=blocks, headers={"content-type": "text/event-stream"})

    assert next(talking_to(answer).stream("jobs")).data == {"text": text}


ARTIFACT = {"name": "model.json", "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest(), "step": 1, "url": "/file"}


@pytest.mark.parametrize("name", ["../model.json", "a/b", "..", "", ".profile", "a\n", "x" * 201])
def test_an_artifact_that_is_named_like_a_path_is_refused(name: str) -> None:
    listed = {"artifacts": [ARTIFACT | {"name": name}]}
    with pytest.raises(ServiceError, match="not as a Shoestring service would"):
        talking_to(lambda _request: httpx.Response(200, json=listed)).artifacts(JOB["id"])


def test_a_download_that_is_cut_is_repeated_and_one_that_stays_wrong_leaves_nothing(tmp_path: Path) -> None:
    answers = [httpx.ReadError("cut"), httpx.Response(200, content=b"{}"), httpx.Response(200, content=b"other")]

    def answer(_request: httpx.Request) -> httpx.Response:
        if isinstance(given := answers.pop(0), httpx.ReadError):
            raise given
        return given

    service, artifact = talking_to(answer), rest.Artifact.model_validate(ARTIFACT)
    (tmp_path / "outside").write_bytes(b"mine")
    (tmp_path / ".model.json.part").symlink_to("outside")
    service.download(artifact, tmp_path / "model.json")
    with pytest.raises(ServiceError, match=r"model\.json is not what the service says it is"):
        service.download(artifact, tmp_path / "other.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.json": b"{}", "outside": b"mine"}


def test_a_service_that_breaks_off_every_download_is_named(tmp_path: Path) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("cut")

    with pytest.raises(ServiceUnreachable, match=r"model\.json could not be downloaded from http://service \(cut\)"):
        talking_to(answer).download(rest.Artifact.model_validate(ARTIFACT), tmp_path / "model.json")
