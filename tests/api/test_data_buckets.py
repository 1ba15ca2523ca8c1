# SPDX-License-Identifier: Apache-2.0
"""Data in S3 are looked at when a job is submitted, with the keys that machines are given for them."""

from __future__ import annotations

import pytest
from botocore.exceptions import EndpointConnectionError
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.requirements import GIB
from shoestring_core.spec import DataSource
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.objects import s3_data
from shoestring_core.store.objects.s3_data import VARIABLES, DataBuckets

from tests.api.deployment import Deployment
from tests.core.decide.test_disks import DISK
from tests.worker.providers.fake_aws import FakeAws

SHARDS = [f"sets/a/train-{number:03}.tar" for number in (0, 1, 3)] + [f"sets/b/{number}.tar" for number in range(4)]


def keys(url: str) -> dict[str, str]:
    given = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "tests", "SECRET_ACCESS_KEY": "none"}
    return {VARIABLES + name: value for name, value in given.items()}


@pytest.fixture
def buckets(aws: FakeAws) -> DataBuckets:
    aws.s3().create_bucket(Bucket="data")
    for key in (*SHARDS, "streamed/shards.json", "images/cat/1.jpg", "lone.tar"):
        aws.s3().put_object(Bucket="data", Key=key, Body=b"x")
    return DataBuckets(keys(aws.url))


def source(train: str, data_format: str = "webdataset", *, stream: bool = False) -> DataSource:
    return DataSource(train=train, format=data_format, stream=stream)


def test_what_is_missing_in_a_bucket_is_noticed_before_a_machine_is_paid_for(buckets: DataBuckets) -> None:
    for data, words in {
        source("s3://absent/sets"): "the bucket of s3://absent/sets does not exist; correct data.train",
        source("s3://data/nothing"): "there are no objects in s3://data/nothing; correct data.train, or upload",
        source("s3://data/imag", "imagefolder"): "there are no objects in s3://data/imag; ",
        source("s3://data/sets/a/9.tar"): "there are no objects in s3://data/sets/a/9.tar; ",
        source("s3://data/sets/a/train-{000..003}.tar"): (
            "s3://data/sets/a/train-002.tar is missing, one of 1 that train-{000..003}.tar names; add it"
        ),
        source("s3://data/sets/b/{0..5}.tar"): "s3://data/sets/b/4.tar is missing, one of 2 that {0..5}.tar names",
        source("s3://data/sets/a"): "s3://data/sets/a holds the shards train-000.tar to train-003.tar: train-002.tar",
        source("s3://data/images", stream=True): "s3://data/images holds no shards.json, so it can't be streamed",
    }.items():
        assert (buckets.find_problem(data) or "").startswith(words)


def test_what_is_whole_is_accepted_and_not_asked_for_again_within_a_minute(buckets: DataBuckets, aws: FakeAws) -> None:
    whole = [
        source("s3://data/sets/b/{0..3}.tar"), source("s3://data/sets/b"), source("s3://data/sets"),
        source("s3://data/lone.tar"), source("s3://data/images", "imagefolder"), source("s3://data"),
        source("s3://data/streamed", stream=True),
    ]  # fmt: skip
    assert [buckets.find_problem(data) for data in whole] == [None] * len(whole)
    for found in aws.s3().list_objects_v2(Bucket="data")["Contents"]:
        aws.s3().delete_object(Bucket="data", Key=found["Key"])
    assert [buckets.find_problem(data) for data in whole] == [None] * len(whole)


def test_a_problem_that_was_mended_is_gone_at_once(buckets: DataBuckets, aws: FakeAws) -> None:
    data = source("s3://data/sets/a/train-{000..003}.tar")
    assert buckets.find_problem(data)
    aws.s3().put_object(Bucket="data", Key="sets/a/train-002.tar", Body=b"x")
    assert buckets.find_problem(data) is None


def test_what_is_too_much_to_list_is_left_to_the_machine(buckets: DataBuckets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_data, "MAX_OBJECTS", 0)
    assert buckets.find_problem(source("s3://data/sets/a/train-{000..003}.tar")) is None


def test_a_store_that_is_silent_is_left_to_the_machine_and_asked_again_after_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = 0.0, 0

    def is_silent(_: DataBuckets) -> None:
        nonlocal asked
        asked += 1
        raise EndpointConnectionError(endpoint_url="http://store")

    monkeypatch.setattr(DataBuckets, "_client", is_silent)
    silent = DataBuckets(keys("http://store"), clock=lambda: now)
    for now in (0.0, 59.0, 61.0):  # noqa: B007 - the clock reads it
        assert silent.find_problem(source("s3://data/sets")) is None
    assert asked == 2


def test_without_keys_for_machines_no_bucket_is_asked(buckets: DataBuckets) -> None:
    assert buckets.find_problem(source("s3://absent"))
    assert DataBuckets({"AWS_ACCESS_KEY_ID": "the service's own"}).find_problem(source("s3://absent")) is None


def test_a_problem_in_a_bucket_is_one_of_the_spec(deployment: Deployment, buckets: DataBuckets) -> None:
    deployment.state.data_buckets = buckets
    spec = {"recipe": "imagefolder/resnet9", "data": {"train": "s3://data/nothing"}}
    for path in ("/v1/jobs", "/v1/quotes"):
        answer = deployment.member.post(path, json={"spec": spec})
        assert answer.status_code == 422
        (problem,) = answer.json()["errors"]
        assert (problem["pointer"], problem["code"]) == ("/data/train", "data-layout")
        assert problem["message"].startswith("there are no objects in s3://data/nothing")


def test_the_bytes_that_a_machine_copies_are_known_as_far_as_they_were_listed(buckets: DataBuckets) -> None:
    places = {
        source("s3://data/sets/b"): 4, source("s3://data/sets/b/{1..2}.tar"): 2, source("s3://data"): 10,
        source("s3://data/images", "imagefolder"): 1, source("s3://data/streamed", stream=True): 0,
    }  # fmt: skip
    for data, least in places.items():
        assert buckets.least_bytes(data) == 0, "it was not looked at yet"
        assert buckets.find_problem(data) is None
        assert buckets.least_bytes(data) == least


def test_data_that_are_larger_than_every_disk_are_refused_before_a_machine_is_paid_for(
    deployment: Deployment, buckets: DataBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = Hardware(4, 16_384, "A10G", 1, 24_576)
    cloud = Offer("ec2", "r", "ra", "g5.xlarge", "spot", "0.4", "1", 4, "test", False, hardware, disk=DISK)
    deployment.store.write(lambda db: save_offers(db, "ec2", [cloud], deployment.state.timeouts))
    deployment.state.data_buckets = buckets
    monkeypatch.setattr(DataBuckets, "least_bytes", lambda *_: 300 * GIB)

    def problems(**resources: object) -> list[tuple[str, str]]:
        data = {"train": "s3://data/images"}
        spec = {"recipe": "imagefolder/resnet9", "data": data, "resources": resources}
        answer = deployment.member.post("/v1/quotes", json={"spec": spec})
        return [(one["pointer"], one["message"]) for one in answer.json().get("errors", [])]

    for small in ({}, {"disk": {"size": "200GB"}}):
        ((pointer, message),) = problems(gpu="A10G", **small)
        assert pointer == "/resources/disk/size"
        assert message.startswith("s3://data/images has at least 300.0 GiB, and the machines' disks have ")
    assert problems(gpu="A10G", disk={"size": "400GB"}) == []
    assert problems() == [], "nothing is known of the local cloud's disk"
