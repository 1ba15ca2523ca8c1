# SPDX-License-Identifier: Apache-2.0
"""S3 in front of moto's: which call a request is, and the rules of presigned URLs and checksums that moto lacks."""

from __future__ import annotations

import hmac
import io
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlencode
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from shoestring_worker.fake_ec2.wire import Answer, Call, Environ, access_key_id, region, xml_answer

SECRET_ACCESS_KEY = "none"
"""Of every access key."""
_ACTIONS = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}


def read_call(environ: Environ) -> Call:
    """The call in a request, whose body can be read again afterwards."""
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    method, (bucket, _, key) = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/").partition("/")
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    if "partNumber" in query:
        action = "UploadPart"
    elif method == "POST":
        action = "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    else:
        action = _ACTIONS[method] if key else _ACTIONS[method].replace("Object", "Bucket")
    return Call(region(environ), action, {"Bucket": bucket, "Key": key})


def answer(environ: Environ, call_moto: Callable[[Environ], Answer]) -> Answer:
    """The answer to a request, by S3's rules."""
    if "X-Amz-Signature" in environ.get("QUERY_STRING", "") and (refusal := _refuse_url(environ)):
        return refusal
    if environ["REQUEST_METHOD"] == "PUT":
        # S3 computes this one of an object that comes without a checksum:
        # docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
        environ.setdefault("HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", "CRC64NVME")
    return call_moto(environ)


def error_answer(status: int, code: str, message: str) -> Answer:
    """docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""
    document = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    return xml_answer(f"{status} ERROR", document)


def _refuse_url(environ: Environ) -> Answer | None:
    """docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html"""
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}
    signature, at = query.pop("X-Amz-Signature"), query["X-Amz-Date"]
    headers = {"host": environ["HTTP_HOST"]}
    for name in query["X-Amz-SignedHeaders"].split(";"):
        headers[name] = environ.get(f"HTTP_{name.upper().replace('-', '_')}", "")
    url = f"http://{headers['host']}{environ['RAW_URI'].partition('?')[0]}?{urlencode(query)}"
    request = AWSRequest(method=environ["REQUEST_METHOD"], url=url, headers=headers)
    request.context["timestamp"] = at
    auth = S3SigV4QueryAuth(Credentials(access_key_id(environ), SECRET_ACCESS_KEY), "s3", region(environ))
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    if not hmac.compare_digest(expected, signature):
        return error_answer(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")
    signed_at = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if time.time() > signed_at + int(query["X-Amz-Expires"]):
        return error_answer(403, "AccessDenied", "Request has expired")
    return None
