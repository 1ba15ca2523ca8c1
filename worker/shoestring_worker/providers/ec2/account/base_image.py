# SPDX-License-Identifier: Apache-2.0
"""AWS's base Deep Learning AMI: Ubuntu 24.04 with NVIDIA's driver, and no PyTorch.

source  docs.aws.amazon.com/dlami/latest/devguide/find-dlami-id.html
"""

from __future__ import annotations

from shoestring_worker.providers.ec2.account.aws import Aws, AwsError

PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
"""A public parameter of AWS Systems Manager."""
NAME = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *"
UNKNOWN = {"ParameterNotFound", "AccessDenied", "AccessDeniedException"}


def find_base_image(aws: Aws, region: str) -> str:
    """Its newest id in a region. Raises AwsError."""
    try:
        return str(aws.read("ssm", region, "get_parameter", Name=PARAMETER)["Parameter"]["Value"])
    except AwsError as error:
        if error.code not in UNKNOWN:
            raise
    wanted = [
        {"Name": "name", "Values": [NAME]},
        {"Name": "architecture", "Values": ["x86_64"]},
        {"Name": "state", "Values": ["available"]},
    ]
    images = aws.read_all("ec2", region, "describe_images", "Images", Owners=["amazon"], Filters=wanted)
    if not images:
        raise AwsError(
            f"AWS's base Deep Learning AMI is not in {region}: neither the parameter {PARAMETER} nor an image named "
            f"{NAME} is there. Name an image of your own with --image."
        )
    return str(max(images, key=lambda image: str(image["CreationDate"]))["ImageId"])
