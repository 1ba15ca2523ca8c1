# SPDX-License-Identifier: Apache-2.0
"""What S3's error codes mean, and what to do about each.

source  docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from botocore.exceptions import (
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    LoginError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from shoestring_core.errors import Unavailable

MISSING_BUCKET = {"NoSuchBucket", "404"}
WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"}
DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"}
REFUSED_CREDENTIALS = {
    "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
MISSING_CREDENTIALS = (NoCredentialsError, PartialCredentialsError)
UNUSABLE_CREDENTIALS = (
    CredentialRetrievalError, SSOError, TokenRetrievalError, LoginError, ProfileNotFound, ConfigNotFound,
    ConfigParseError, RuntimeError,
)  # fmt: skip
"""What boto3 raises, before anything is sent, where a login has expired or a profile isn't there. RuntimeError: of
credentials that are still expired after they were renewed."""


def explain(error: Exception, what: str, bucket: str, prefix: str) -> Unavailable:
    """The error of a call as a sentence, and what to do about it. `what`: read | write to | list | sign URLs for"""
    if isinstance(error, MISSING_CREDENTIALS):
        return Unavailable(
            f"No credentials were found with which to {what} bucket {bucket}.",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role.",
        )
    if isinstance(error, UNUSABLE_CREDENTIALS):
        return Unavailable(
            f"The credentials with which to {what} bucket {bucket} can't be renewed: {error}",
            hint="Sign in again, correct AWS_PROFILE, or see why the service that gives them doesn't.",
        )
    if not isinstance(error, ClientError):
        return Unavailable(
            f"The service could not {what} bucket {bucket}: {error}",
            hint="See that the store can be reached. SHOESTRING_OBJECT_STORE_ENDPOINT_URL is its address, if set.",
        )
    code, message = str(error.response["Error"].get("Code", "")), str(error.response["Error"].get("Message", ""))
    if code in MISSING_BUCKET:
        return Unavailable(
            f"There is no bucket {bucket}.",
            hint=f"Create it: aws s3 mb s3://{bucket}. Or name another in SHOESTRING_OBJECT_STORE.",
        )
    if code in WRONG_REGION:
        region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
        return wrong_region(bucket, region or "another region", "this one")
    if needs_key(code, message):
        return Unavailable(
            f"The service could not {what} bucket {bucket}, which is encrypted with a key of AWS KMS that these "
            f"credentials may not use: {code}: {message}",
            hint="Allow kms:GenerateDataKey and kms:Decrypt on that key, and see that it is enabled; or set the "
            "bucket's default encryption to SSE-S3.",
        )
    if code in DENIED:
        return Unavailable(
            f"The credentials may not {what} bucket {bucket}.",
            hint=f"Allow s3:ListBucket on arn:aws:s3:::{bucket}, and s3:GetObject, s3:PutObject and "
            f"s3:AbortMultipartUpload on arn:aws:s3:::{bucket}/{prefix}*.",
        )
    if code in REFUSED_CREDENTIALS:
        return Unavailable(
            f"S3 refuses the credentials with which to {what} bucket {bucket}: {code}.",
            hint="Renew them; restart the service if they are in its environment.",
        )
    if code == "RequestTimeTooSkewed":
        return Unavailable(
            f"The service could not {what} bucket {bucket}: this computer's clock is wrong by over 15 minutes.",
            hint="Let NTP set the clock.",
        )
    return Unavailable(f"The service could not {what} bucket {bucket}: {code}: {message}", hint="It is tried again.")


def needs_key(code: str, message: str) -> bool:
    """Whether S3 refuses because of the key with which the bucket is encrypted.

    source  docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html
    """
    return code.startswith("KMS.") or (code in DENIED and "kms:" in message.lower())


def wrong_region(bucket: str, actual: str, configured: str) -> Unavailable:
    return Unavailable(
        f"Bucket {bucket} is in {actual}, but the service is set to {configured}.",
        hint=f"Set AWS_DEFAULT_REGION to the bucket's region, or use a bucket in {configured}.",
    )
