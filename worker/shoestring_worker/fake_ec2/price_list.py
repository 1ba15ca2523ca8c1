# SPDX-License-Identifier: Apache-2.0
"""The Price List API, which moto lacks: on-demand prices as they are set, in us-east-1 those of the built-in list.

source  docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from shoestring_core import catalog

from shoestring_worker.fake_ec2.wire import Answer, Call, json_answer

PAGE_SIZE = 10
"""The API may return fewer than it was asked for, and so does this: a client that stops early misses some."""


class OnDemandMarket:
    def __init__(self) -> None:
        self._prices: dict[str, dict[str, str]] = {}
        self.set({})

    def set(self, prices: Mapping[str, Mapping[str, str]]) -> None:
        """By region and type, besides those of the built-in list's region. {}: forget the others."""
        listed = catalog.price_list_of("ec2")
        built_in = {listed.on_demand_region: {machine.type: machine.on_demand for machine in listed.types}}
        self._prices = built_in | {region: dict(types) for region, types in prices.items()}

    def describe(self, call: Call) -> Answer:
        """The products in the region that a filter names, page by page."""
        prices = sorted(self._prices.get(call.parameters.get("Filter.regionCode", ""), {}).items())
        begin = int(call.parameters.get("NextToken", 0))
        end = begin + PAGE_SIZE
        page = {"FormatVersion": "aws_v1", "PriceList": [_product(*one) for one in prices[begin:end]]}
        return json_answer(page | ({"NextToken": str(end)} if end < len(prices) else {}))


def _product(type_: str, dollars: str) -> str:
    price = {"unit": "Hrs", "pricePerUnit": {"USD": f"{float(dollars):.10f}"}}
    terms = {"OnDemand": {"SKU.TERM": {"priceDimensions": {"SKU.TERM.RATE": price}}}}
    return json.dumps({"product": {"attributes": {"instanceType": type_}}, "serviceCode": "AmazonEC2", "terms": terms})
