# SPDX-License-Identifier: Apache-2.0
"""A certificate of the API's own: refused before anything is opened, and cookies that go over https alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from shoestring_api.settings import ApiSettings

from tests.certificates import make_certificate


def settings(**changed: Path) -> ApiSettings:
    return ApiSettings(database_url="sqlite://", object_store="objects", **changed)


def test_with_a_certificate_machines_and_cookies_use_https(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    served = settings(tls_cert=made.file, tls_key=made.key_file)
    assert (served.agent_base_url(), served.on_https()) == ("https://127.0.0.1:8000", True)
    assert (settings().agent_base_url(), settings().on_https()) == ("http://127.0.0.1:8000", False)


def test_a_certificate_that_can_not_be_served_is_a_wrong_setting(tmp_path: Path) -> None:
    made, other = make_certificate(tmp_path), make_certificate(tmp_path, "other")
    for changed, expected in (
        ({"tls_cert": made.file}, "SHOESTRING_TLS_CERT and SHOESTRING_TLS_KEY together"),
        ({"tls_cert": made.file, "tls_key": other.key_file}, "other.key doesn't belong"),
    ):
        with pytest.raises(ValidationError, match=expected):
            settings(**changed)
