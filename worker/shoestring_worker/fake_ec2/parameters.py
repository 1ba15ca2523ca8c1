# SPDX-License-Identifier: Apache-2.0
"""The public parameter of Systems Manager that names AWS's base Deep Learning AMI, which moto doesn't have.

source  docs.aws.amazon.com/systems-manager/latest/userguide/parameter-store-public-parameters.html
"""

from __future__ import annotations

import json
from pathlib import Path

from shoestring_worker.fake_ec2.wire import Answer, Call, json_answer

BASE_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
IMAGES = Path(__file__).with_name("images.json")


def describe(call: Call) -> Answer | None:
    """None for another parameter."""
    if call.parameters.get("Name") != BASE_IMAGE:
        return None
    (image,) = json.loads(IMAGES.read_text())
    return json_answer({"Parameter": {"Name": BASE_IMAGE, "Type": "String", "Value": image["ami_id"], "Version": 1}})
