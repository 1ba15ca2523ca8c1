# SPDX-License-Identifier: Apache-2.0
"""Read YAML or JSON text written by a person into plain values, exactly as written.

Numbers with a point or an exponent become Decimal, so that `3.00` keeps its digits until a field decides on its type.
Keys stay text (YAML would read the key `on` as true). Refused: aliases, tags, duplicate keys, several documents, NUL
characters, deep nesting, numbers that are not finite or have too many digits.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import yaml

from shoestring_core.errors import InvalidSpec, Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 12
MAX_VALUES = 4_000
MAX_KEY_CHARACTERS = 200
MAX_NUMBER_DIGITS = 30


def read(source: str | bytes | Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """Return the document as dict, list, str, bool, None, int and Decimal, and its problems.

    An invalid value is replaced by None, so that the rest can still be validated. Only a Mapping can hold floats.
    Raises InvalidSpec if the document can't be parsed at all: bad encoding, syntax, size, depth.
    """
    problems: list[Problem] = []
    tree: Any = source if isinstance(source, Mapping) else _parse(decode_text(source), problems)
    return _Normalizer(problems).value(tree, "", 0), problems


def parse_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar: null, true, false, a number, or else the text itself."""
    if text in _KEYWORDS:
        return _KEYWORDS[text]
    if _NOT_FINITE.fullmatch(text):
        return _UnusableNumber(text)
    if not _NUMBER.fullmatch(text):
        return text
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_NUMBER_DIGITS or len(exponent.lstrip("+-0")) > 2:
        return _UnusableNumber(text)
    return int(text) if _INTEGER.fullmatch(text) else Decimal(text)


def locate(text: str, pointer: str) -> tuple[int, int] | None:
    """Line and column, both from 1, of what a JSON pointer names in a document, or of what is there of the way to it.

    Of a document that can't be read, by the empty pointer: where reading it stops. None: it can't be told.
    """
    if not pointer and text.lstrip().startswith(("{", "[")) and (place := _locate_json_error(text)):
        return place
    wanted = pointer.split("/")[1:]
    found, depth = None, -1
    try:
        for at, event in _places(text):
            if depth < len(at) <= len(wanted) and at == wanted[: len(at)]:
                found, depth = (event.start_mark.line + 1, event.start_mark.column + 1), len(at)
    except yaml.MarkedYAMLError as wrong:
        mark = wrong.problem_mark or wrong.context_mark
        return (mark.line + 1, mark.column + 1) if mark else None
    except yaml.YAMLError:
        return None
    return found


def _places(text: str) -> Iterator[tuple[list[str], Any]]:
    """Each key and each item of a YAML document: the way to it, as parts of a pointer, and its parser event."""
    around: list[str | int | None] = []  # per level: a mapping's last key, None before its first; an item's number
    in_value = False  # of a mapping
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            around.pop()
            in_value = False
        elif isinstance(event, yaml.NodeEvent):
            is_key = bool(around) and not isinstance(around[-1], int) and not in_value
            if is_key:
                around[-1] = str(getattr(event, "value", "")).replace("~", "~0").replace("/", "~1")
            elif around and isinstance(around[-1], int):
                around[-1] += 1
            if is_key or not in_value:
                yield [str(part) for part in around], event
            in_value = is_key
            if isinstance(event, yaml.CollectionStartEvent):
                around.append(-1 if isinstance(event, yaml.SequenceStartEvent) else None)
                in_value = False


def _locate_json_error(text: str) -> tuple[int, int] | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as wrong:
        return wrong.lineno, wrong.colno
    except (ValueError, RecursionError):
        return None
    return None


def json_pointer(parent: str, key: str | int) -> str:
    """Return the JSON pointer (RFC 6901) of `key` inside `parent`."""
    return f"{parent}/{str(key).replace('~', '~0').replace('/', '~1')}"


def format_value(value: Any) -> str:
    """Return `value` as text for a message, at most 40 characters."""
    if value is None:
        text = "nothing"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, dict | list):
        text = "a mapping" if isinstance(value, dict) else "a list"
    else:
        text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


class _UnusableNumber(str):
    """Text of a number that no field accepts: NaN, infinity, too many digits."""


_KEYWORDS = {"": None, "~": None} | {
    spelling: meaning
    for word, meaning in (("null", None), ("true", True), ("false", False))
    for spelling in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?(\.?inf|infinity)|\.?nan", re.IGNORECASE)


def decode_text(source: str | bytes) -> str:
    """Return the text of a document. Raises InvalidSpec, with the line at which it isn't UTF-8."""
    try:
        raw = source.encode() if isinstance(source, str) else bytes(source)
        text = raw.decode("utf-8-sig")
    except UnicodeError as error:
        raise _unreadable("bad-encoding", _describe_encoding(source, error)) from None
    if len(raw) > MAX_BYTES:
        raise _unreadable("too-large", f"The text has {len(raw):,} bytes; at most {MAX_BYTES:,} are read.")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _unreadable("bad-encoding", f"Line {line} contains a NUL character. Is it a text file?")
    if not text.strip():
        raise _unreadable("empty", "The text is empty.")
    return text


def _describe_encoding(source: str | bytes, error: UnicodeError) -> str:
    if isinstance(source, str) or not isinstance(error, UnicodeDecodeError):
        return "The text isn't valid UTF-8. Save the file as UTF-8."
    if source.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "The text is UTF-16, as PowerShell's > writes it. Save the file as UTF-8: Out-File -Encoding utf8."
    line = source.count(b"\n", 0, error.start) + 1
    return f"Line {line} isn't valid UTF-8. Save the file as UTF-8."


def _parse(text: str, problems: list[Problem]) -> Any:
    """Parse as JSON if possible, else as YAML: YAML's scanner misreads some JSON (tabs, surrogate pairs)."""
    if text.lstrip().startswith(("{", "[")):
        duplicates: list[Problem] = []
        try:
            tree = _parse_json(text, duplicates)
        except RecursionError:
            raise _too_deep("") from None
        except ValueError as not_json:
            if text.lstrip()[1:].lstrip().startswith('"'):
                raise _unreadable("syntax", f"Not valid JSON: {not_json}.") from None
        else:
            problems += duplicates
            return tree
    try:
        return _Yaml(text, problems).document()
    except yaml.MarkedYAMLError as wrong:
        mark = wrong.problem_mark or wrong.context_mark
        if mark and _is_indented_with_tab(text, mark.line):
            message = f"Line {mark.line + 1} is indented with a tab. YAML allows only spaces there."
            raise _unreadable("syntax", message) from None
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _unreadable("syntax", f"Not valid YAML{where}: {wrong.problem or wrong.context}.") from None
    except yaml.YAMLError as wrong:
        raise _unreadable("syntax", f"Not valid YAML: {str(wrong).splitlines()[0]}.") from None


def _is_indented_with_tab(text: str, number: int) -> bool:
    lines = text.split("\n")
    line = lines[number] if number < len(lines) else ""
    return "\t" in line[: len(line) - len(line.lstrip())]


def _parse_json(text: str, problems: list[Problem]) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key in _duplicates([key for key, _ in pairs]):
            problems.append(_duplicate_key("", key))
        return dict(pairs)

    return json.loads(
        text,
        parse_int=parse_scalar,
        parse_float=parse_scalar,
        parse_constant=_UnusableNumber,
        object_pairs_hook=mapping,
    )


class _Yaml:
    """Builds plain values from parser events; no tag or alias constructs anything."""

    def __init__(self, text: str, problems: list[Problem]) -> None:
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=_LOADER))
        self.problems = problems

    def document(self) -> Any:
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                break
        else:
            raise _unreadable("empty", "The text has no content, only comments.")
        value = self.value(next(self.events), "", 0)
        next(self.events)  # DocumentEndEvent
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            raise _unreadable("syntax", "The text holds several documents (`---`). Give one.")
        return value

    def value(self, event: Any, at: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise _too_deep(at)
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            name = format_value(event.anchor)
            raise _unreadable("alias", f"The alias {name} in line {line} is not supported. Write the value out.", at)
        if event.tag not in (None, "!"):
            tag = format_value(event.tag)
            raise _unreadable("tag", f"The tag {tag} in line {line} is not supported. Write the plain value.", at)
        if isinstance(event, yaml.ScalarEvent):
            return parse_scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(at, depth)
        return self.mapping(at, depth)

    def sequence(self, at: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.value(event, json_pointer(at, len(items)), depth + 1))
        return items

    def mapping(self, at: str, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                line = event.start_mark.line + 1
                message = f"A key in line {line} is a list, a mapping or an alias. Keys must be text."
                raise _unreadable("syntax", message, at)
            key = event.value
            if key in items:
                self.problems.append(_duplicate_key(at, key))
            items[key] = self.value(next(self.events), json_pointer(at, key), depth + 1)
        return items


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Normalizer:
    """Copies a tree; reports each value that no document may hold and replaces it with None."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.count = 0

    def value(self, value: Any, at: str, depth: int) -> Any:
        self.count += 1
        if depth > MAX_DEPTH:
            raise _too_deep(at)
        if self.count > MAX_VALUES:
            raise _unreadable("too-large", f"The document holds more than {MAX_VALUES:,} values.")
        if isinstance(value, Mapping):
            return self.mapping(value, at, depth)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
            return [self.value(item, json_pointer(at, i), depth + 1) for i, item in enumerate(value)]
        if problem := _value_problem(value):
            code, message = problem
            self.problems.append(Problem(pointer=at, message=message, code=code))
            return None
        return value

    def mapping(self, items: Mapping[Any, Any], at: str, depth: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, value in items.items():
            if not isinstance(key, str) or len(key) > MAX_KEY_CHARACTERS or _value_problem(key):
                shown = ascii(key)[:40]
                self.problems.append(Problem(pointer=at, message=f"{shown} can't be a key.", code="invalid-key"))
            else:
                copy[key] = self.value(value, json_pointer(at, key), depth + 1)
        return copy


def _value_problem(value: Any) -> tuple[str, str] | None:
    """(code, message) if no field can have this value, else None."""
    if isinstance(value, _UnusableNumber):
        return "invalid-number", f"{format_value(value)} is not a usable number."
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            return "bad-encoding", "The text contains a NUL character or an unpaired surrogate."
        return None
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        too_long = abs(value) >= 10**MAX_NUMBER_DIGITS
        return ("invalid-number", "The number has far too many digits.") if too_long else None
    if isinstance(value, float):
        return None if math.isfinite(value) else ("invalid-number", f"{value} is not a usable number.")
    if isinstance(value, Decimal):
        usable = value.is_finite() and abs(value.adjusted()) <= MAX_NUMBER_DIGITS
        return None if usable else ("invalid-number", f"{format_value(value)} is not a usable number.")
    return "invalid-type", f"A value of type {type(value).__name__} is not allowed in a document."


def _duplicates(keys: list[str]) -> list[str]:
    seen: set[str] = set()
    return [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def _duplicate_key(at: str, key: str) -> Problem:
    return Problem(
        pointer=json_pointer(at, key), message=f"{format_value(key)} is given twice. Keep one.", code="duplicate-key"
    )


def _too_deep(at: str) -> InvalidSpec:
    return _unreadable("too-deep", f"The document is nested more than {MAX_DEPTH} levels deep.", at[:200])


def _unreadable(code: str, message: str, at: str = "") -> InvalidSpec:
    return InvalidSpec([Problem(pointer=at, message=message, code=code)])
