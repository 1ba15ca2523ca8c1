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
        self.set({})

    def set(self, prices: Prices) -> None:
        self._prices, self._since = prices, datetime.now(UTC)

    def describe(self, call: Call) -> Answer:
        """The prices in the call's region of the types that it names, or of all."""
        wanted = {value for name, value in call.parameters.items() if name.startswith("InstanceType.")}
        items = "".join(
            _ITEM.format(type=kind, price=price, time=f"{self._since:%Y-%m-%dT%H:%M:%S.000Z}", zone=zone)
            for zone, of_zone in self._prices.items()
            if zone.startswith(call.region)
            for kind, price in of_zone.items()
            if not wanted or kind in wanted
        )
        body = f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/>"
        return xml_answer("200 OK", f"<DescribeSpotPriceHistoryResponse>{body}</DescribeSpotPriceHistoryResponse>")
