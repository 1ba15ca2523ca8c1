# SPDX-License-Identifier: Apache-2.0
"""The authority that an agent is given vouches for the service, and for nobody else."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from uuid import UUID

import pytest
from shoestring_trainer.agent.service_client import ServiceClient, Unreachable

from tests.certificates import make_authority, make_certificate, served_with


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_agent_trusts_the_given_authority_for_calls_to_the_service_alone(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    made = make_certificate(tmp_path, signed_by=authority)

    async def download(service: str, url: str, ca: str) -> None:
        client = ServiceClient(service, UUID(int=1), "secret", ca)
        try:
            await client.download(url, tmp_path / "object")
        finally:
            await client.close()

    with served_with(made, Answers) as port, served_with(made, Answers) as elsewhere:
        service, store = (f"https://127.0.0.1:{one}" for one in (port, elsewhere))
        asyncio.run(download(service, f"{service}/object", authority.text))
        assert (tmp_path / "object").exists()
        for url, ca in ((f"{store}/object", authority.text), (f"{service}/object", "")):
            with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
                asyncio.run(download(service, url, ca))
