# SPDX-License-Identifier: Apache-2.0
"""Formats that several packages write and read: durations, floats in JSON, cursors, wake-ups, timeouts."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from shoestring_core import spec
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.durations import format_duration, parse_duration
from shoestring_core.json_floats import decode_float, encode_float
from shoestring_core.store.cursors import InvalidCursor, decode_cursor, encode_cursor
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wakeups import WakeMessage, celery_broker_url

# Durations


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.44, "8.4s"), (42.2, "42s"), (130, "2m10s"), (300, "5m"), (3900, "1h05m"), (59.9, "1m")]
)
def test_a_duration_is_formatted_as_limits_time_is_written(seconds, text):
    assert format_duration(seconds) == text
    assert abs(parse_duration(text) - seconds) < 1
    assert spec.parse({"recipe": "digits/quickstart", "limits": {"time": text}}).limits.time == parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0.5", 0.5), ("90s", 90), ("1.5h", 5400), ("1d2h3m4s", 93_784), ("0s", 0)]
)
def test_a_duration_is_a_number_of_seconds_or_has_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "s", "5 m", "-5s", "5x", "1m1h", "1e3", "NaN", "5m\n", "9" * 10])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a duration such as 90s"):
        parse_duration(text)


# Floats in JSON


class PydanticFloat(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings", allow_inf_nan=True)
    value: float


@pytest.mark.parametrize("value", [0.0, -1.5, 1e300, math.nan, math.inf, -math.inf])
def test_a_float_is_encoded_as_pydantic_does_and_decoded_again(value):
    encoded = encode_float(value)
    assert json.dumps(encoded, allow_nan=False) == json.dumps(
        json.loads(PydanticFloat(value=value).model_dump_json())["value"]
    )
    assert decode_float(encoded) == pytest.approx(value, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("value", ["nan", "inf", "1.0", "", None, True, [], {}])
def test_what_is_no_number_is_no_float(value):
    with pytest.raises(ValueError, match="is not a number"):
        decode_float(value)


# Cursors


@pytest.mark.parametrize("position", [b"", b"a", b"ab", b"abc", bytes(range(256))])
def test_a_cursor_gives_back_its_position_and_fits_a_url(position):
    cursor = encode_cursor(position)
    assert decode_cursor(cursor) == position
    assert all(character.isalnum() or character in "-_" for character in cursor)


@pytest.mark.parametrize("cursor", ["!", "a", "äöü", "YWJj+", "YWJj/"])
def test_what_is_no_cursor_is_refused(cursor):
    with pytest.raises(InvalidCursor):
        decode_cursor(cursor)


# Wake-ups


def test_a_wake_message_survives_the_way_through_redis():
    message = WakeMessage(sender="a", changed=frozenset({uuid7(), uuid7()}), watched=frozenset({uuid7()}))
    assert WakeMessage.model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
    ],
)
def test_celery_names_a_unix_socket_its_own_way(url, broker):
    assert celery_broker_url(url) == broker


# Timeouts


def test_timeouts_are_given_as_durations_or_as_microseconds():
    assert Timeouts.model_validate({"drain": "1m30s", "boot": "2.5"}).drain == 90 * S
    assert Timeouts.model_validate({"boot": "2.5"}).boot == 2_500_000
    assert Timeouts(boot=5).boot == 5
    assert Timeouts.model_validate_json(Timeouts(boot=5).model_dump_json()) == Timeouts(boot=5)


@pytest.mark.parametrize("given", [{"drain": "soon"}, {"drain": 0}, {"drain": "0"}, {"patience": "5s"}])
def test_an_unusable_timeout_is_refused(given):
    with pytest.raises(ValidationError):
        Timeouts.model_validate(given)
