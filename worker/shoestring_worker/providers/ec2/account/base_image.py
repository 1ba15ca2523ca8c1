# SPDX-License-Identifier: Apache-2.0
"""The images that machines boot where nobody named another: of AWS for jobs, of Ubuntu for the service."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_worker.providers.ec2.account.aws import Aws, AwsError

UNKNOWN = {"ParameterNotFound", "AccessDenied", "AccessDeniedException"}


@dataclass(frozen=True)
class StockImage:
    """
    what       it is
    owner      who publishes it: an account's number, or its alias
    parameter  a public one of AWS Systems Manager, with the id of its newest version
    name       of its versions
    """

    what: str
    owner: str
    parameter: str
    name: str


BASE = StockImage(
    what="AWS's base Deep Learning AMI",
    owner="amazon",
    parameter="/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
    name="Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *",
)
"""Ubuntu 24.04 with NVIDIA's driver, and no PyTorch: docs.aws.amazon.com/dlami/latest/devguide/find-dlami-id.html"""

UBUNTU = StockImage(
    what="Canonical's image of Ubuntu 24.04",
    owner="099720109477",
    parameter="/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    name="ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*",
)
"""documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images"""


def find_image(aws: Aws, region: str, wanted: StockImage) -> str:
    """Its newest id in a region. Raises AwsError."""
    try:
        return str(aws.read("ssm", region, "get_parameter", Name=wanted.parameter)["Parameter"]["Value"])
    except AwsError as error:
        if error.code not in UNKNOWN:
            raise
    filters = [
        {"Name": "name", "Values": [wanted.name]},
        {"Name": "architecture", "Values": ["x86_64"]},
        {"Name": "state", "Values": ["available"]},
    ]
    images = aws.read_all("ec2", region, "describe_images", "Images", Owners=[wanted.owner], Filters=filters)
    if not images:
        raise AwsError(
            f"{wanted.what} is not in {region}: neither the parameter {wanted.parameter} nor an image named "
            f"{wanted.name} is there. Name an image of your own with --image."
        )
    return str(max(images, key=lambda image: str(image["CreationDate"]))["ImageId"])
