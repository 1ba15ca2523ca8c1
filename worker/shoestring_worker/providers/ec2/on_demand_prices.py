# SPDX-License-Identifier: Apache-2.0
"""On-demand prices by the AWS Price List Query API: dollars per hour of machines with GPUs, by region and type.

source  docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-price-list-query-api.html
        docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

ENDPOINT_REGIONS = ("us-east-1", "eu-central-1", "ap-south-1")
"""Where the API answers, for all regions: docs.aws.amazon.com/general/latest/gr/billing.html"""
SOURCE = "AWS Price List API"
PRODUCT = {
    "instanceFamily": "GPU instance",
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "tenancy": "Shared",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}
"""What distinguishes a machine as we launch it from others of its type."""


def read_on_demand_prices(pricing: Any, region: str) -> dict[str, str]:
    """By type. `pricing`: boto3's client. Raises ClientError and BotoCoreError."""
    filters = [
        {"Type": "TERM_MATCH", "Field": field, "Value": value}
        for field, value in {**PRODUCT, "regionCode": region}.items()
    ]
    pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters)
    priced = (_read_product(json.loads(product)) for page in pages for product in page["PriceList"])
    return {type_: dollars for type_, dollars in priced if dollars}


def _read_product(product: Mapping[str, Any]) -> tuple[str, str]:
    """Type and dollars per hour; "" where it has no price by the hour, as what can only be reserved."""
    terms = product.get("terms", {}).get("OnDemand", {}).values()
    dimensions = [dimension for term in terms for dimension in term["priceDimensions"].values()]
    hourly = (Decimal(each["pricePerUnit"].get("USD", 0)) for each in dimensions if each["unit"] == "Hrs")
    dollars = next((format(price.normalize(), "f") for price in hourly if price > 0), "")
    return product["product"]["attributes"]["instanceType"], dollars
