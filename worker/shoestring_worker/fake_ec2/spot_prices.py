# SPDX-License-Identifier: Apache-2.0
"""Spot prices as they are set; moto's are the same everywhere, and of 2006.

source  docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from shoestring_worker.fake_ec2.wire import Answer, Call, xml_answer

Prices = Mapping[str, Mapping[str, str]]
"""Dollars per hour, by zone and type."""

_ITEM = (
    "<item><instanceType>{type}</instanceType><productDescription>Linux/UNIX</productDescription>"
    "<spotPrice>{price}</spotPrice><timestamp>{time}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
)


class SpotMarket:
    """None has a price until some are set."""

    def __init__(self) -> None:
        self._history: list[tuple[datetime, Prices]] = []

    def set(self, prices: Prices, at: datetime | None = None) -> None:
        """These hold from now on, or from another time on; those set for later times stay. {}: forget all."""
        since = (at or datetime.now(UTC)).replace(microsecond=0)
        self._history = sorted([*self._history, (since, prices)], key=lambda change: change[0]) if prices else []

    def describe(self, call: Call) -> Answer:
        """The changes in the call's region since its StartTime, and the price then, of the types that it names."""
        wanted = {value for name, value in call.parameters.items() if name.startswith("InstanceType.")}
        start = datetime.fromisoformat(call.parameters.get("StartTime", "1970-01-01T00:00:00+00:00"))
        found: dict[tuple[str, str], list[tuple[datetime, str]]] = {}
        for since, prices in self._history:
            for zone, of_zone in prices.items():
                for kind, price in of_zone.items():
                    if zone.startswith(call.region) and (not wanted or kind in wanted):
                        of_product = found.setdefault((zone, kind), [])
                        if since <= start:
                            of_product.clear()
                        of_product.append((since, price))
        items = "".join(
            _ITEM.format(type=kind, price=price, time=f"{since:%Y-%m-%dT%H:%M:%S.000Z}", zone=zone)
            for (zone, kind), changes in found.items()
            for since, price in reversed(changes)
        )
        body = f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/>"
        return xml_answer("200 OK", f"<DescribeSpotPriceHistoryResponse>{body}</DescribeSpotPriceHistoryResponse>")
