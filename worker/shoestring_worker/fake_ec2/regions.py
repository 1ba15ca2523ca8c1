# SPDX-License-Identifier: Apache-2.0
"""The regions that are enabled for the account: three, so that a sweep of all is short; moto has every one of AWS's.

source  docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRegions.html
"""

from __future__ import annotations

from shoestring_worker.fake_ec2.wire import Answer, xml_answer

ENABLED = ("eu-west-1", "us-east-1", "us-west-2")


def describe() -> Answer:
    items = "".join(
        f"<item><regionName>{region}</regionName><regionEndpoint>ec2.{region}.amazonaws.com</regionEndpoint>"
        "<optInStatus>opt-in-not-required</optInStatus></item>"
        for region in ENABLED
    )
    return xml_answer("200 OK", f"<DescribeRegionsResponse><regionInfo>{items}</regionInfo></DescribeRegionsResponse>")
