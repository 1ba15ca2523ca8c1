# SPDX-License-Identifier: Apache-2.0
"""Whether what machines are to install is in the bucket: a wheelhouse that isn't ends the first job as `image`."""

from __future__ import annotations

from shoestring_core.wheelhouse import Wheelhouse, manifest_key

from shoestring_worker.providers.ec2.account.doctor import Finding, OpenClient
from shoestring_worker.providers.ec2.account.wheelhouse import Place, size
from shoestring_worker.providers.ec2.errors import FAILURES

SUBJECT = "wheelhouse"
ADVICE = "Run `shoestring aws wheelhouse`, and load the setting that it prints."


def check_wheelhouse(open_client: OpenClient, region: str, store: str, name: str) -> Finding:
    """`region` and `store`: the bucket's; `name`: of SHOESTRING_EC2_WHEELHOUSE, "" without one."""
    if not name:
        return Finding("ok", SUBJECT, "none: the image has our environment, as docs/aws.md tells")
    try:
        place = Place.read(region, store)
    except ValueError as error:
        return Finding("error", SUBJECT, f"{error}.", "Keep objects in the bucket that `aws bootstrap` made.")
    try:
        answer = open_client("s3", region).get_object(Bucket=place.bucket, Key=place.prefix + manifest_key(name))
        found = Wheelhouse.model_validate_json(answer["Body"].read())
    except (*FAILURES, ValueError) as error:
        return Finding("error", SUBJECT, f"{name[:12]}… can't be read from {place.bucket}: {error}", ADVICE)
    what = f"{len(found.files)} wheels, {size(found.size)}, for Python {found.python}"
    needs = f"; it needs NVIDIA's driver {found.min_driver} or later" if found.min_driver else ""
    return Finding("ok", SUBJECT, what + needs)
