# SPDX-License-Identifier: Apache-2.0
"""What is S3's alone among the object stores. What only AWS itself can show is in docs/aws.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from awscrt.checksums import crc64nvme
from shoestring_core import wire
from shoestring_core.errors import Unavailable
from shoestring_core.store.objects import ObjectInfo
from shoestring_core.store.objects import s3 as s3_module
from shoestring_core.store.objects.s3 import S3Objects, open_s3

from tests.servers import PATIENCE_S, FaultProxy
from tests.worker.providers.fake_aws import OTHER_REGION, FakeAws

PART_BYTES = 5 << 20
"""S3's smallest part, but for the last."""
ONCE = {"If-None-Match": "*"}


@pytest.fixture
def objects(aws: FakeAws) -> S3Objects:
    aws.s3().create_bucket(Bucket="models")
    return open_s3("s3://models/team", aws.url)


def test_a_url_of_aws_names_the_bucket_and_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    for region in ("us-east-1", OTHER_REGION):
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        url = open_s3("s3://models/team").put_url("a", int(time.time()) + 60, 1)
        assert urlsplit(url)[:3] == ("https", f"models.s3.{region}.amazonaws.com", "/team/a")


def test_a_url_can_t_be_used_without_the_header_that_keeps_objects_from_being_overwritten(objects: S3Objects) -> None:
    query = urlsplit(objects.put_url("a", int(time.time()) + 60, 1)).query
    assert "X-Amz-SignedHeaders=host%3Bif-none-match" in query


def test_an_object_in_parts_appears_whole_with_one_checksum_once(
    aws: FakeAws, objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MULTIPART_BYTES", PART_BYTES)
    content = bytes(range(251)) * 45_000
    first, second = (objects.start_multipart("data", int(time.time()) + 60, len(content)) for _ in range(2))
    assert [len(one.part_urls) for one in (first, second)] == [3, 3]
    answers = {}
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as http:
        for upload in (first, second):
            pieces = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
            sent = [http.put(url, content=piece) for url, piece in zip(upload.part_urls, pieces, strict=True)]
            assert objects.head("data") is None or upload is second
            parts = "".join(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{part.headers['ETag']}</ETag></Part>"
                for number, part in enumerate(sent, 1)
            )
            document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
            answers[upload.complete_url] = http.post(upload.complete_url, content=document, headers=ONCE).status_code
    assert list(answers.values()) == [200, 412]
    assert all("if-none-match" in urlsplit(url).query for url in answers), "it can't be left out"
    assert objects.head("data") == ObjectInfo(len(content), f"crc64nvme:{crc64nvme(content):016x}")
    assert b"".join(objects.blocks("data", 0, len(content))) == content


def test_a_url_ends_with_the_credentials_that_sign_it_and_these_are_renewed_early(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signed_for(objects: S3Objects) -> int:
        return int(parse_qs(urlsplit(objects.put_url("a", now + 86_400, 1)).query)["X-Amz-Expires"][0])

    now = int(time.time())
    sign_in(monkeypatch, now + 3600)
    objects = open_s3("s3://models", aws.url)
    assert objects.urls_end_by() == now + 3600
    assert 3600 - PATIENCE_S < signed_for(objects) <= 3600
    sign_in(monkeypatch, now + 7200)
    assert objects.urls_end_by() == now + 3600, "far from their end they are kept"
    sign_in(monkeypatch, now + 14 * 60)
    objects = open_s3("s3://models", aws.url)
    sign_in(monkeypatch, now + 7200)
    assert objects.urls_end_by() == now + 7200
    assert 7200 - PATIENCE_S < signed_for(objects) <= 7200


def test_credentials_that_ended_and_can_t_be_renewed_sign_nothing(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, int(time.time()) + 60)
    objects = open_s3("s3://models", aws.url)
    sign_in(monkeypatch, int(time.time()) - 60)
    for use in (objects.urls_end_by, lambda: objects.put_url("a", int(time.time()) + 60, 1), lambda: objects.head("a")):
        with pytest.raises(Unavailable, match="can't be renewed") as refused:
            use()
        assert refused.value.hint


def test_credentials_without_an_end_leave_the_end_to_the_url(objects: S3Objects) -> None:
    assert objects.urls_end_by() is None


def sign_in(monkeypatch: pytest.MonkeyPatch, until: int) -> None:
    """Credentials that end, as tools for signing in put them into the environment."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", datetime.fromtimestamp(until, UTC).isoformat())


def test_the_service_leaves_one_object_of_its_own_below_the_prefix(aws: FakeAws, objects: S3Objects) -> None:
    objects.prepare()
    (found,) = aws.s3().list_objects_v2(Bucket="models")["Contents"]
    assert found["Key"] == "team/shoestring-write-check"


def test_a_bucket_that_is_not_there_is_named_with_the_command_that_creates_it(aws: FakeAws) -> None:
    with pytest.raises(Unavailable, match="There is no bucket none") as refused:
        open_s3("s3://none", aws.url).prepare()
    assert "aws s3 mb s3://none" in (refused.value.hint or "")


def test_a_bucket_of_another_region_is_named_with_both(aws: FakeAws) -> None:
    aws.s3(OTHER_REGION).create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": OTHER_REGION})
    with pytest.raises(Unavailable, match=f"is in {OTHER_REGION}, but the service is set to us-east-1"):
        open_s3("s3://models", aws.url).prepare()


@pytest.mark.parametrize(
    ("action", "code", "status", "sentence"),
    [
        ("HeadBucket", "AccessDenied", 403, "may not list bucket models"),
        ("HeadObject", "AccessDenied", 403, "may not read bucket models"),
        ("PutObject", "AccessDenied", 403, "may not write to bucket models"),
        (
            "PutObject",
            "ExpiredToken",
            400,
            "refuses the credentials .* write to bucket models: ExpiredToken",
        ),
        ("PutObject", "InvalidAccessKeyId", 403, "refuses the credentials"),
        ("PutObject", "RequestTimeTooSkewed", 403, "clock is wrong"),
        ("PutObject", "AuthorizationHeaderMalformed", 400, "is in another region"),
        ("PutObject", "KMS.DisabledException", 400, "a key of AWS KMS .* may not use: KMS.DisabledException: planned"),
    ],
)
def test_what_keeps_the_service_from_starting_is_told_with_what_to_do(
    aws: FakeAws, objects: S3Objects, action: str, code: str, status: int, sentence: str
) -> None:
    aws.fault("error", action, code=code, status=status)
    with pytest.raises(Unavailable, match=sentence) as refused:
        objects.prepare()
    assert refused.value.hint


def test_a_key_of_kms_that_the_credentials_may_not_use_is_named_and_not_the_bucket_s_permissions(
    aws: FakeAws, objects: S3Objects
) -> None:
    message = (
        "User: arn:aws:iam::1:user/us is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:x"
    )
    aws.fault("error", "PutObject", code="AccessDenied", status=403, message=message)
    with pytest.raises(Unavailable, match="a key of AWS KMS") as refused:
        objects.prepare()
    assert "kms:GenerateDataKey and kms:Decrypt" in (refused.value.hint or "")


def test_a_read_without_credentials_says_where_they_are_looked_for(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(Unavailable, match="No credentials") as refused:
        open_s3("s3://models", aws.url).prepare()
    assert "AWS_PROFILE" in (refused.value.hint or "")


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_a_call_is_tried_again_when_s3_is_busy(
    aws: FakeAws, objects: S3Objects, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    aws.fault("error", "HeadObject", code=code, status=503, times=s3_module.TRIES - 1)
    assert objects.head("a") is None
    aws.fault("error", "HeadObject", code=code, status=503, times=s3_module.TRIES)
    with pytest.raises(Unavailable, match="could not read bucket models"):
        objects.head("a")


def test_a_page_in_place_of_an_answer_is_a_sentence(
    aws: FakeAws, objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    aws.fault("garbled", "CreateMultipartUpload", times=s3_module.TRIES)
    with pytest.raises(Unavailable, match="could not write to bucket models"):
        objects.start_multipart("a", 2_000_000_000, 1)


def test_a_store_that_is_silent_or_gone_is_given_up_in_time(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, fault_proxy: Callable[[int], FaultProxy]
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    aws.s3().create_bucket(Bucket="models")
    aws.fault("delay", "HeadObject", seconds=2, times=s3_module.TRIES)
    with pytest.raises(Unavailable, match="could not read bucket models"):
        S3Objects("models", "", aws.url, read_timeout_s=0.1).head("a")
    proxy = fault_proxy(urlsplit(aws.url).port or 0)
    proxy.refuse = True
    with pytest.raises(Unavailable, match="could not read bucket models"):
        open_s3("s3://models", f"http://127.0.0.1:{proxy.port}").head("a")


def test_a_store_that_overwrites_objects_is_refused(objects: S3Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = objects._client.put_object
    monkeypatch.setattr(objects._client, "put_object", lambda IfNoneMatch, **rest: plain(**rest))
    with pytest.raises(Unavailable, match="overwrites objects"):
        objects.prepare()


def test_a_store_that_keeps_no_checksum_is_refused(objects: S3Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    objects.prepare()
    plain = objects._client.head_object
    monkeypatch.setattr(objects._client, "head_object", lambda ChecksumMode, **place: plain(**place))
    with pytest.raises(Unavailable, match="keeps no CRC-64/NVME"):
        objects.prepare()
