# SPDX-License-Identifier: Apache-2.0
"""`shoestring offers`: what machines there are, and what they cost."""

from __future__ import annotations

from typing import Annotated

import typer
from shoestring_core import rest

from shoestring.cli.terminal import Json, Url, format_price, open_client, out, print_result, print_table

COLUMNS = ("TYPE", "PROVIDER", "REGION", "GPU", "VCPUS", "MEMORY", "MARKET", "PER HOUR", "ON DEMAND", "INTERRUPTED")


def list_offers(
    gpu: Annotated[str | None, typer.Option("--gpu", help="Only with such GPUs: L4, A100:8, 24GB.., any.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Only this region of a provider.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the machines that providers offer, the cheapest first.

    With what is left out, and why.

    \b
    shoestring offers --gpu L4
    shoestring offers --region us-east-1 --json
    """
    with open_client(url) as client:
        offered = client.offers(gpu=gpu, region=region)
    print_result(offered, as_json, lambda: _print(offered))


def _print(offered: rest.OfferList) -> None:
    unserved = {offer.provider: offer.fetched_at for offer in offered.offers if not offer.available}
    for provider, since in sorted(unserved.items()):
        ever = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
        out.print(f"{provider}: no worker serves it{ever}, so no job can run there, and its prices are not live.\n")
    print_table(
        COLUMNS,
        [_row(offer) for offer in offered.offers],
        f"{offered.no_offer.text if offered.no_offer else 'No such machine.'} List all: shoestring offers",
        drop=("INTERRUPTED", "ON DEMAND", "MEMORY", "VCPUS", "PROVIDER"),
    )
    for quota in offered.quotas:
        out.print(quota.text)
    for provider in sorted({offer.provider for offer in offered.offers}):
        out.print(f"\n{provider}: its prices come from:")
        for source in sorted({offer.price_source for offer in offered.offers if offer.provider == provider}):
            out.print(f"  {source}")
    for left_out in offered.not_offered:
        out.print(f"{left_out.provider}: not {', '.join(left_out.types + left_out.regions)}. {left_out.reason.text}")


def _row(offer: rest.Offer) -> tuple[str, ...]:
    gpu = f"{offer.gpus} × {offer.gpu} {offer.gpu_memory_mib // 1024} GiB" if offer.gpu else "none"
    return (
        offer.type,
        offer.provider,
        offer.zone or offer.region,
        gpu,
        str(offer.vcpus or ""),
        f"{offer.memory_mib // 1024} GiB" if offer.memory_mib else "",
        offer.market.replace("_", " "),
        format_price(offer.price_per_hour),
        format_price(offer.on_demand_per_hour),
        offer.interruption or "",
    )
