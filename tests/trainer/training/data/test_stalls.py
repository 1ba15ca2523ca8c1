# SPDX-License-Identifier: Apache-2.0
"""Waits for input are counted by cause, once."""

from __future__ import annotations

import pytest
from shoestring_trainer.training.data import stalls
from shoestring_trainer.training.data.stalls import InputStalls


def test_a_wait_is_the_downloads_as_far_as_the_decoder_waited_for_it_and_else_decoding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stalls, "monotonic", lambda: 10.0)
    waited = InputStalls()
    waited.add_take(began=7.0, downloading_s=1.0)
    waited.add_take(began=9.5, downloading_s=60.0)  # for the most part ahead of the step
    assert (waited.download_s, waited.decode_s) == (1.5, 2.0)


def test_a_report_has_what_came_since_the_last_and_a_result_all_of_it():
    waited = InputStalls(download_s=1.0)
    assert waited.since_last_report() == {"stall/download_s": 1.0, "stall/decode_s": 0.0, "stall/upload_s": 0.0}
    assert waited.since_last_report() == {}
    waited.decode_s = 3.0
    assert waited.since_last_report() == {"stall/download_s": 0.0, "stall/decode_s": 3.0, "stall/upload_s": 0.0}
    assert waited.seconds == {"stall/download_s": 1.0, "stall/decode_s": 3.0, "stall/upload_s": 0.0}
    assert InputStalls().seconds == {}


def test_a_long_wait_is_reported_before_the_next_evaluation():
    waited = InputStalls(download_s=6.0, decode_s=3.9)
    assert not waited.report_is_due
    waited.upload_s = 0.2
    assert waited.report_is_due
    waited.since_last_report()
    waited.decode_s += 9.0
    assert not waited.report_is_due
    waited.decode_s += 1.5
    assert waited.report_is_due
