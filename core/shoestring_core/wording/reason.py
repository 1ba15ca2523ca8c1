# SPDX-License-Identifier: Apache-2.0
"""Reasons: a code and typed facts. Stored in rows and sent over the wire as {"code": …, "facts": {…}}."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import PlainSerializer, PlainValidator, TypeAdapter


@dataclass(frozen=True)
class Reason(ABC):
    """Base class of all reasons. A subclass sets `code`, has the facts as fields, and words them in `text`.

    Amounts of money are decimal dollars, as everywhere on the wire.
    """

    code: ClassVar[str]
    known: ClassVar[dict[str, type[Reason]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (code := cls.__dict__.get("code")) is not None and Reason.known.setdefault(code, cls) is not cls:
            raise TypeError(f"two reasons have the code {code!r}")

    @abstractmethod
    def text(self) -> str:
        """The sentence for users. Called by `wording.render` alone."""

    def hint(self) -> str | None:
        """What the user can do about it, where `text` is the message of an error."""
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """The fields as JSON."""
        facts: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json")
        return facts

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "facts": self.facts}


def parse(code: str, facts: Mapping[str, Any]) -> Reason:
    """The reason with this code and these facts. Raises ValueError for an unknown code or facts that don't fit."""
    if code not in Reason.known:
        raise ValueError(f"no reason has the code {code!r}")
    return _adapter(Reason.known[code]).validate_python(dict(facts))


def load(code: str, facts: Mapping[str, Any]) -> Reason:
    """The reason as it was stored; UnknownReason if this version doesn't know it, or its facts have changed since."""
    try:
        return parse(code, facts)
    except ValueError:
        return UnknownReason(code)


@dataclass(frozen=True)
class UnknownReason(Reason):
    code = "unknown"
    stored_code: str

    def text(self) -> str:
        return f"{self.stored_code.replace('_', ' ').capitalize()}."


def _parse_nested(value: Any) -> Reason:
    match value:
        case Reason():
            return value
        case {"code": str(code), "facts": dict(facts)}:
            return load(code, facts)
    raise ValueError("neither a reason nor a stored one")


NestedReason = Annotated[Reason, PlainValidator(_parse_nested), PlainSerializer(Reason.as_json)]
"""The type of a fact that is itself a reason."""


@cache
def _adapter(kind: type[Reason]) -> TypeAdapter[Reason]:
    return TypeAdapter(kind)
