# SPDX-License-Identifier: Apache-2.0
"""The public parameters of Systems Manager that name images of AWS and Canonical, which moto doesn't have.

source  docs.aws.amazon.com/systems-manager/latest/userguide/parameter-store-public-parameters.html
"""

from __future__ import annotations

import json
from pathlib import Path

from shoestring_worker.fake_ec2.wire import Answer, Call, json_answer

IMAGES = Path(__file__).with_name("images.json")
OWNERS = {
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id": "898082745236",
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id": "099720109477",
}
"""Of the image that a parameter names: one of the fake's."""


def describe(call: Call) -> Answer | None:
    """None for another parameter."""
    if (owner := OWNERS.get(name := call.parameters.get("Name", ""))) is None:
        return None
    (id_,) = (image["ami_id"] for image in json.loads(IMAGES.read_text()) if image["owner_id"] == owner)
    return json_answer({"Parameter": {"Name": name, "Type": "String", "Value": id_, "Version": 1}})
