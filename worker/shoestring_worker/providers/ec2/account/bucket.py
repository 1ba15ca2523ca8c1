# SPDX-License-Identifier: Apache-2.0
"""The account's bucket: private, without public access, and it forgets uploads that nobody completes."""

from __future__ import annotations

from typing import Any

from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError
from shoestring_worker.providers.ec2.account.ownership import TAGS, has_account_tag
from shoestring_worker.providers.ec2.account.steps import Steps

ABORT_AFTER_DAYS = 1
_FLAGS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


def make_bucket(aws: Aws, region: str, name: str, steps: Steps) -> None:
    """Raises AwsError, for a bucket of this name that isn't ours too."""

    def change(method: str, **arguments: Any) -> str:
        aws.write("s3", region, method, Bucket=name, **arguments)
        return name

    def part(method: str) -> dict[str, Any]:
        """A part of the bucket's configuration; {} if it has none."""
        try:
            return aws.read("s3", region, method, Bucket=name)
        except AwsError as error:
            if error.code.startswith("NoSuch"):
                return {}
            raise

    there = any(each["Name"] == name for each in aws.read("s3", region, "list_buckets")["Buckets"])
    where = {} if region == GLOBAL_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    steps.ensure(f"bucket {name}", name if there else None, lambda: change("create_bucket", **where))
    tags = part("get_bucket_tagging").get("TagSet", []) if there else []
    if there and not has_account_tag(tags):
        _refuse_foreign(aws, region, name, tags)
    steps.ensure(
        "tag of the bucket",
        name if has_account_tag(tags) else None,
        lambda: change("put_bucket_tagging", Tagging={"TagSet": TAGS}),
    )
    blocked = part("get_public_access_block").get("PublicAccessBlockConfiguration", {})
    steps.ensure(
        "public access to the bucket blocked",
        name if blocked and all(blocked.get(flag) for flag in _FLAGS) else None,
        lambda: change("put_public_access_block", PublicAccessBlockConfiguration=dict.fromkeys(_FLAGS, True)),
    )
    rules = part("get_bucket_lifecycle_configuration").get("Rules", [])
    rule = {
        "ID": "aborted-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_AFTER_DAYS},
    }  # fmt: skip
    steps.ensure(
        "rule that removes aborted uploads",
        name if any("AbortIncompleteMultipartUpload" in each for each in rules) else None,
        lambda: change("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [*rules, rule]}),
    )


def _refuse_foreign(aws: Aws, region: str, name: str, tags: list[Any]) -> None:
    """An empty one without tags is ours: it was made just before this command was stopped."""
    if tags or aws.read("s3", region, "list_objects_v2", Bucket=name, MaxKeys=1).get("KeyCount"):
        raise AwsError(
            f"The bucket {name} is there and was not made by this command: it isn't changed. "
            "Empty it, or tag it with shoestring-account=bootstrap to have it used."
        )
