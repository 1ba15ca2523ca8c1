# SPDX-License-Identifier: Apache-2.0
"""Text of other people in a terminal: what is taken from it, and what stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.terminal_text import printable

SGR = re.compile(r"\x1b\[[0-9;:]*m")


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b]0;title\x07", "\x1b]8;;http://elsewhere\x1b\\", "\x1b]52;c;Y29weQ==\x07", "\x1b[2J", "\x1b[1;1H",
        "\x1b[?1049h",
        "\x1bc", "\x1b(0", "\x1bP$qm\x1b\\", "\x9b2J", "\x9d0;title\x9c", "\x07", "\x08", "\r", "\x00", "\x7f", "\x1b",
        "\x1b\x1b[2J", "\x1b]0;never ended", "\u202e", "\x1b[31\x1b[2J",
    ],
)  # fmt: skip
def test_control_sequences_are_removed_and_the_text_around_them_stays(sequence: str) -> None:
    assert re.fullmatch(r"a(31)?(b\nc|\nc)", printable(f"a{sequence}b\nc"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printable(f"a{sequence}b", colors=True))


def test_colors_stay_where_they_are_wanted_and_end_with_the_text() -> None:
    assert printable("\x1b[1;31mred\x1b[2J", colors=True) == "\x1b[1;31mred\x1b[0m"
    assert printable("\x1b[1;31mred") == "red"


def test_other_text_stays_as_it_is() -> None:
    text = "Größe\t100 % [/x] :smile: 猫\n"
    assert printable(text) == printable(text, colors=True) == text


@given(st.text(alphabet="\x1b\x9b\x9d\x07\x9c[]P\\0;:mJh8 \nab"))
def test_nothing_that_controls_a_terminal_survives(text: str) -> None:
    rest = SGR.sub("", printable(text, colors=True))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", rest)
