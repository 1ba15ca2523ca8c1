# SPDX-License-Identifier: Apache-2.0
"""What EC2's error codes mean for a launch: refused, and for what, or not known, so that the call is repeated.

A refusal says that this call launched nothing. What follows from each kind is in core: `decide/refusals.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.wording.units import counted

NO_ANSWER = (BotoCoreError, ResponseParserError)
"""What a call raises that AWS didn't answer. The second: a page came instead, such as a proxy makes, and what became of
the call is known no better."""
FAILURES = (ClientError, *NO_ANSWER)

CODES = "docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html"
SPOT = "docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html"
SPOT_QUOTAS = "docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html"
SPOT_ROLE = "docs.aws.amazon.com/AWSEC2/latest/UserGuide/service-linked-roles-spot-instance-requests.html"
TOKENS = "docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html"
THROTTLING = "docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html"


@dataclass(frozen=True)
class ErrorMeaning:
    """`refusal`: None: the call is repeated with the same token. `page`: of AWS, that describes the code."""

    refusal: RefusalKind | None
    page: str = CODES


THROTTLED = (
    "RequestLimitExceeded", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
    "RequestThrottledException", "TooManyRequestsException", "EC2ThrottledException", "SlowDown",
)  # fmt: skip
"""Calls came too fast. EC2's own code is the first; the others are those for which the SDK waits as well:
docs.aws.amazon.com/boto3/latest/guide/retries.html"""

_CAPACITY, _QUOTA = RefusalKind.CAPACITY, RefusalKind.QUOTA
_ACCOUNT, _REGION = RefusalKind.ACCOUNT, RefusalKind.REGION

MEANINGS = {
    # another zone, type or market may have it
    "InsufficientInstanceCapacity": ErrorMeaning(_CAPACITY),
    "InsufficientCapacity": ErrorMeaning(_CAPACITY),
    "InsufficientHostCapacity": ErrorMeaning(_CAPACITY),
    "InsufficientReservedInstanceCapacity": ErrorMeaning(_CAPACITY),
    "InsufficientVolumeCapacity": ErrorMeaning(_CAPACITY),
    "InsufficientAddressCapacity": ErrorMeaning(_CAPACITY),
    "InsufficientFreeAddressesInSubnet": ErrorMeaning(_CAPACITY),
    "UnfulfillableCapacity": ErrorMeaning(_CAPACITY),
    "VolumeTypeNotAvailableInZone": ErrorMeaning(_CAPACITY),
    "Unsupported": ErrorMeaning(_CAPACITY),  # the zone doesn't have this type
    "SpotMaxPriceTooLow": ErrorMeaning(RefusalKind.PRICE, SPOT),
    # the account's quotas
    "VcpuLimitExceeded": ErrorMeaning(_QUOTA),
    "InstanceLimitExceeded": ErrorMeaning(_QUOTA),
    "MaxSpotInstanceCountExceeded": ErrorMeaning(_QUOTA, SPOT_QUOTAS),
    "VolumeLimitExceeded": ErrorMeaning(_QUOTA),
    "MaxIOPSLimitExceeded": ErrorMeaning(_QUOTA),
    "NetworkInterfaceLimitExceeded": ErrorMeaning(_QUOTA),
    "PlacementGroupLimitExceeded": ErrorMeaning(_QUOTA),
    # what a region answers that isn't enabled, or doesn't know the account yet
    "AuthFailure": ErrorMeaning(_REGION),
    "OptInRequired": ErrorMeaning(_REGION),
    "PendingVerification": ErrorMeaning(_REGION),
    # credentials, permissions, payment
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": ErrorMeaning(_ACCOUNT, SPOT_ROLE),
    "UnauthorizedOperation": ErrorMeaning(_ACCOUNT),
    "AccessDenied": ErrorMeaning(_ACCOUNT),
    "AccessDeniedException": ErrorMeaning(_ACCOUNT),
    "InvalidClientTokenId": ErrorMeaning(_ACCOUNT),
    "SignatureDoesNotMatch": ErrorMeaning(_ACCOUNT),
    "MissingAuthenticationToken": ErrorMeaning(_ACCOUNT),
    "Blocked": ErrorMeaning(_ACCOUNT),
    "AccountDisabled": ErrorMeaning(_ACCOUNT),
    "TagPolicyViolation": ErrorMeaning(_ACCOUNT),
    "CustomerKeyHasBeenRevoked": ErrorMeaning(_ACCOUNT),
    # the image
    "InvalidAMIID.NotFound": ErrorMeaning(RefusalKind.IMAGE),
    "InvalidAMIID.Malformed": ErrorMeaning(RefusalKind.IMAGE),
    "InvalidAMIID.Unavailable": ErrorMeaning(RefusalKind.IMAGE),
    # not known: a machine may exist, or the same call may succeed in a moment
    "IdempotentParameterMismatch": ErrorMeaning(None, TOKENS),  # this token has launched a machine; the list names it
    "IdempotentInstanceTerminated": ErrorMeaning(None),
    "InvalidPlacementGroup.Unknown": ErrorMeaning(None),  # not visible yet, or just swept: the next try makes it again
    **dict.fromkeys(THROTTLED, ErrorMeaning(None, THROTTLING)),
    "RequestExpired": ErrorMeaning(None),  # a wrong clock, or temporary credentials that are about to be renewed
    "ExpiredToken": ErrorMeaning(None),
    "ExpiredTokenException": ErrorMeaning(None),
    "InternalError": ErrorMeaning(None),
    "InternalFailure": ErrorMeaning(None),
    "ServerInternal": ErrorMeaning(None),
    "ServiceUnavailable": ErrorMeaning(None),
    "Unavailable": ErrorMeaning(None),
}


def meaning_of(code: str, http_status: int) -> ErrorMeaning:
    """Of a code that isn't in the table: a client error (4xx) refuses a request that is wrong, a server error says
    nothing certain."""
    unlisted = RefusalKind.INVALID if 400 <= http_status < 500 else None
    return MEANINGS.get(code, ErrorMeaning(unlisted))


CLOCK_OFF_S = 240
"""AWS refuses requests that are signed 5 minutes early or late.

source  docs.aws.amazon.com/IAM/latest/UserGuide/signing-elements.html
"""

_CLOCK_CODES = frozenset({
    "RequestExpired", "RequestTimeTooSkewed", "AuthFailure", "SignatureDoesNotMatch", "InvalidSignatureException"
})  # fmt: skip
"""With which AWS answers a request that is signed at another time than its own; most may mean wrong keys as well."""


def clock_advice(code: str, message: str, headers: Mapping[str, str], now: float) -> str:
    """What to do about the clock, if the error is due to it; else "".

    headers  of the answer: its date is AWS's time
    now      Unix time of this computer, at the answer
    """
    if code not in _CLOCK_CODES:
        return ""
    ahead_s = clock_ahead_s(headers, now) or 0.0
    if abs(ahead_s) >= CLOCK_OFF_S:
        off = f"is {clock_difference(ahead_s)}"
    elif "signature expired" in message.lower() or "signature not yet current" in message.lower():
        off = "differs from AWS's"
    else:
        return ""
    return f"The clock of the service's computer {off}: set it, for example by: timedatectl set-ntp true"


def clock_ahead_s(headers: Mapping[str, str], now: float) -> float | None:
    """How far this computer's clock is ahead of AWS's, by an answer's date; None: it has none that can be read."""
    try:
        return now - parsedate_to_datetime(headers["date"]).astimezone(UTC).timestamp()
    except (KeyError, ValueError):
        return None


def clock_difference(ahead_s: float) -> str:
    side, minutes = "ahead of" if ahead_s > 0 else "behind", round(abs(ahead_s) / 60)
    off = counted(minutes, "minute") if minutes < 120 else counted(round(minutes / 60), "hour")
    return f"{off} {side} AWS's"


ADVICE = {
    "RequestExpired": "Set the clock of the service's computer, which may be minutes off, or renew its credentials.",
    "ExpiredToken": "Renew the credentials of the service's computer.",
    "ExpiredTokenException": "Renew the credentials of the service's computer.",
    "InvalidClientTokenId": "AWS doesn't know the service's credentials: set others where it is started.",
    "AuthFailure": (
        "AWS doesn't know the service's credentials there: set others where it is started. If other regions answer, "
        "the account hasn't enabled this one: enable it in the AWS console, or remove it from SHOESTRING_EC2_REGIONS."
    ),
    "OptInRequired": (
        "Finish signing up for the account, or enable the region in the AWS console, or remove it from "
        "SHOESTRING_EC2_REGIONS."
    ),
    "PendingVerification": "AWS looks at an account before its first machines in a region: minutes, at most hours.",
    "UnauthorizedOperation": "Allow it to the service: shoestring aws bootstrap --dry-run prints the policy.",
}
"""What to do about an error that leaves a call's outcome unknown, and that doesn't pass by itself."""

NO_CREDENTIALS = (
    "the service has no AWS credentials. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, where it is "
    "started, and start it again"
)

UNUSABLE_ADVICE = "Log in again where the service was started, or correct AWS_PROFILE there and start it again."

REFUSAL_ADVICE = {
    RefusalKind.ACCOUNT: "With the service's credentials, shoestring aws doctor says what this account lacks.",
    RefusalKind.IMAGE: "Correct the region's image in SHOESTRING_EC2_REGIONS; shoestring aws doctor checks it.",
    RefusalKind.INVALID: "With the service's settings, shoestring aws doctor tries such a launch.",
}
"""What to do about a refusal that no later try changes: it ends the job. About that of a region: ADVICE."""


def data_role_advice(code: str, message: str, role: str) -> str:
    """What to do about a refused launch with this instance profile, if that may be why; else "".

    EC2 has no code for it, and answers the same for minutes where the profile or its role is new, because IAM is
    eventually consistent: docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html. Of a role that the
    caller may not pass it says that the launch isn't allowed, and not always what is missing.
    """
    if code.startswith("InvalidParameterValue") and "instanceprofile" in message.lower().replace(" ", ""):
        return (
            f"SHOESTRING_EC2_DATA_ROLE names the instance profile {role}: make one of that name with a role in it "
            "(docs/aws.md, Your data), correct the setting, or wait some minutes if it is new."
        )
    if code == "UnauthorizedOperation" and ("iam:PassRole" in message or "not authorized to perform:" not in message):
        return (
            f"The machine was to get the role of {role} (SHOESTRING_EC2_DATA_ROLE), for which the service's "
            "credentials need iam:PassRole: `shoestring aws bootstrap --dry-run` prints the policy, and "
            "`shoestring aws doctor` tries a launch with the role and one without."
        )
    return ""


def described(code: str, message: str, refusal: RefusalKind | None = None) -> str:
    """An error with what to do about it. `refusal`: of the launch that it answers."""
    advice = ADVICE.get(code) if refusal in (None, RefusalKind.REGION) else REFUSAL_ADVICE.get(refusal)
    said = f"{code}: {message}"
    return f"{said.rstrip('.')}. {advice}" if advice else said


def read_error(response: dict[str, Any]) -> tuple[str, str, int]:
    """Code, message and HTTP status of the response in a botocore ClientError."""
    error = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(error.get("Code", "")), str(error.get("Message", "")), int(status)
