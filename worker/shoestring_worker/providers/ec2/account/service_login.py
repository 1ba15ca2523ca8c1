# SPDX-License-Identifier: Apache-2.0
"""What the service's machine leaves in the private bucket: its certificate, and a login that works once."""

from __future__ import annotations

from botocore.exceptions import BotoCoreError
from pydantic import ValidationError

from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.service_boot import LOGIN_KEY, ServiceLogin


def read_login(aws: Aws, region: str, bucket: str) -> ServiceLogin | None:
    """None: no machine has left any. Raises AwsError."""
    where = f"s3://{bucket}/{LOGIN_KEY}"
    try:
        body = aws.read("s3", region, "get_object", Bucket=bucket, Key=LOGIN_KEY)["Body"].read()
        return ServiceLogin.model_validate_json(body)
    except AwsError as error:
        if error.code == "NoSuchKey":
            return None
        raise
    except BotoCoreError as error:
        raise AwsError(f"{where} could not be read: {error}. Run this again.") from error
    except ValidationError as error:
        raise AwsError(f"{where} is not what a service leaves there: {error}") from error
