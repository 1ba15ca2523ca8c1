# SPDX-License-Identifier: Apache-2.0
"""Calls to AWS for the account commands: reads are repeated, writes are sent once, and every failure is a sentence."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import ClientError
from shoestring_core.store.objects.s3_errors import MISSING_CREDENTIALS, UNUSABLE_CREDENTIALS

from shoestring_worker.providers.ec2.errors import FAILURES, THROTTLED, clock_advice, read_error

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3.0, 15.0
READS = 3
"""Times that a call which changes nothing is sent."""
GLOBAL_REGION = "us-east-1"
"""Of the services that have one endpoint for all regions."""
HOMES = (GLOBAL_REGION, "us-west-2", "eu-west-1")
"""Each account has these. What any region knows is asked of the next where one doesn't answer."""

LOG_IN = "Name others in AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in again: aws sso login"
FIRST_LOG_IN = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in: aws sso login"
WHAT_TO_DO = {
    "InvalidClientTokenId": f"AWS doesn't know these credentials. {LOG_IN}",
    "AuthFailure": (
        f"AWS doesn't know these credentials there. {LOG_IN}. If other regions know them, this one isn't enabled in "
        "the account."
    ),
    "SignatureDoesNotMatch": f"The secret key doesn't belong to the access key, or the clock is wrong. {LOG_IN}",
    "ExpiredToken": f"The credentials have expired. {LOG_IN}",
    "ExpiredTokenException": f"The credentials have expired. {LOG_IN}",
    "RequestExpired": "The clock is wrong, or the credentials have expired: turn on NTP, or log in again.",
    "RequestTimeTooSkewed": "The clock is wrong: turn on NTP.",
    "UnauthorizedOperation": "Allow it to these credentials: shoestring aws bootstrap --dry-run prints the policies.",
    "AccessDenied": "Allow it to these credentials: shoestring aws bootstrap --dry-run prints the policies.",
    "AccessDeniedException": "Allow it to these credentials: shoestring aws bootstrap --dry-run prints the policies.",
    "OptInRequired": "Finish signing up for this account, or enable the region, in the AWS console.",
    "VpcLimitExceeded": "Raise the quota `VPCs per Region` in the Service Quotas console, or delete a VPC.",
    "AddressLimitExceeded": "Release an unused address, or raise the quota `EC2-VPC Elastic IPs` in the console.",
    "VcpuLimitExceeded": "Raise that quota in the Service Quotas console, Amazon EC2, or end machines that use it.",
    "BucketAlreadyExists": "Another account has a bucket of this name. Name another region first: --region.",
}
"""By error code."""


BUSY = ("InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", *THROTTLED)
"""Answers of a region that can't answer now."""


class AwsError(Exception):
    """A call that did not succeed.

    code     of AWS's answer, or NoCredentials; "": there was no answer
    headers  of the answer
    """

    def __init__(self, sentence: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.code, self.headers = code, headers or {}

    @property
    def is_silence(self) -> bool:
        """There is no answer, or it says that there is none now."""
        return not self.code or self.code in BUSY


def open_session() -> boto3.Session:
    """By AWS_PROFILE and the AWS configuration. Raises AwsError if these can't be read."""
    try:
        return boto3.Session()
    except UNUSABLE_CREDENTIALS as error:
        correct = "Correct AWS_PROFILE, or the file that it is looked up in: aws configure list-profiles"
        raise AwsError(f"The AWS credentials can't be used: {str(error).rstrip('.')}. {correct}", "Profile") from error


class Aws:
    """An account, by the credentials that boto3 finds.

    endpoint_url  a server that speaks AWS's APIs, in place of AWS
    """

    def __init__(self, endpoint_url: str | None = None) -> None:
        self._session, self._endpoint_url = open_session(), endpoint_url
        self._clients: dict[tuple[str, str, int], Any] = {}
        self._lock = threading.Lock()

    def read(self, service: str, region: str, method: str, **arguments: Any) -> dict[str, Any]:
        """Raises AwsError."""
        return self._call(READS, service, region, method, arguments)

    def read_all(self, service: str, region: str, method: str, key: str, **arguments: Any) -> list[Any]:
        """What all pages have below `key`. Raises AwsError."""
        try:
            client = self._client(service, region, READS)
            if not client.can_paginate(method):
                return list(self.read(service, region, method, **arguments)[key])
            return [item for page in client.get_paginator(method).paginate(**arguments) for item in page.get(key, [])]
        except (*FAILURES, *UNUSABLE_CREDENTIALS) as error:
            raise _sentence(service, region, method, error) from error

    def write(self, service: str, region: str, method: str, **arguments: Any) -> dict[str, Any]:
        """A call that changes something, sent once: most have no idempotency token. Raises AwsError."""
        return self._call(1, service, region, method, arguments)

    def upload(self, region: str, bucket: str, key: str, path: Path) -> None:
        """Store a file, in parts if it is large, each with a checksum that S3 compares. Raises AwsError."""
        try:
            self._client("s3", region, READS).upload_file(str(path), bucket, key)
        except FAILURES as error:
            raise _sentence("s3", region, "put_object", error) from error
        except S3UploadFailedError as error:
            raise AwsError(f"{path.name} could not be uploaded to {bucket}: {error}. Run this again.") from error

    def account(self) -> str:
        """The account's number. Raises AwsError."""
        return str(self._read_anywhere("sts", "get_caller_identity")["Account"])

    def enabled_regions(self) -> list[str]:
        """Raises AwsError."""
        regions = self._read_anywhere("ec2", "describe_regions")["Regions"]
        return sorted(region["RegionName"] for region in regions)

    def _read_anywhere(self, service: str, method: str) -> dict[str, Any]:
        """Raises AwsError, of the first region."""
        silent: list[AwsError] = []
        for region in HOMES:
            try:
                return self.read(service, region, method)
            except AwsError as error:
                if not error.is_silence:
                    raise
                silent.append(error)
        raise silent[0]

    def _call(self, sends: int, service: str, region: str, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client(service, region, sends), method)(**arguments)
        except (*FAILURES, *UNUSABLE_CREDENTIALS) as error:
            raise _sentence(service, region, method, error) from error
        return answer

    def _client(self, service: str, region: str, sends: int) -> Any:
        with self._lock:  # clients may be shared by threads; making them may not
            if (service, region, sends) not in self._clients:
                config = Config(
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    retries={"total_max_attempts": sends, "mode": "standard"},
                )
                self._clients[service, region, sends] = self._session.client(
                    service, region_name=region, endpoint_url=self._endpoint_url, config=config
                )
            return self._clients[service, region, sends]


def _sentence(service: str, region: str, method: str, error: Exception) -> AwsError:
    action = "".join(part.capitalize() for part in method.split("_"))
    if isinstance(error, ClientError):
        code, message, _ = read_error(error.response)
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        hint = clock_advice(code, message, headers, time.time()) or WHAT_TO_DO.get(code, "")
        hint = f" {hint}" if hint else ""
        return AwsError(f"{service} in {region} refused {action}: {code}: {message}{hint}", code, headers)
    if isinstance(error, MISSING_CREDENTIALS):
        return AwsError(f"There are no AWS credentials. {FIRST_LOG_IN}", "NoCredentials")
    if isinstance(error, UNUSABLE_CREDENTIALS):
        return AwsError(f"The AWS credentials can't be used: {str(error).rstrip('.')}. {LOG_IN}", "NoCredentials")
    return AwsError(f"{service} in {region} did not answer {action}: {error}. See that AWS can be reached; try again.")
