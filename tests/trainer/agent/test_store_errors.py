# SPDX-License-Identifier: Apache-2.0
"""How an agent understands what an object store answers to its signed URLs."""

from __future__ import annotations

import httpx
import pytest
from shoestring_trainer.agent.service_client import RequestRejected, Unreachable, read_store_error

S3_ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>m</Message></Error>'


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (500, "InternalError"), (400, "RequestTimeout"), (409, "ConditionalRequestConflict")],
)
def test_what_s3_can_t_do_now_is_tried_again(status: int, code: str) -> None:
    assert isinstance(read_store_error(httpx.Response(status, text=S3_ERROR.format(code))), Unreachable)


@pytest.mark.parametrize(
    ("status", "code", "meant"),
    [
        (403, "AccessDenied", 403), (400, "ExpiredToken", 403), (400, "TokenRefreshRequired", 403),
        (412, "PreconditionFailed", 412), (404, "NoSuchKey", 404), (400, "EntityTooLarge", 400),
    ],
)  # fmt: skip
def test_what_s3_refuses_is_a_url_that_ended_an_object_that_is_there_or_a_wrong_request(
    status: int, code: str, meant: int
) -> None:
    error = read_store_error(httpx.Response(status, text=S3_ERROR.format(code)))
    assert isinstance(error, RequestRejected)
    assert (error.status, error.code) == (meant, code)


def test_what_the_service_s_own_store_refuses_is_its_problem_document() -> None:
    error = read_store_error(httpx.Response(412, json={"code": "precondition-failed", "detail": "it exists"}))
    assert isinstance(error, RequestRejected)
    assert (error.status, error.code, error.detail) == (412, "precondition-failed", "it exists")
