# SPDX-License-Identifier: Apache-2.0
"""A fake of EC2 for tests and trials without an account: moto's server with a layer in front of it, in its own process.

    python -m shoestring_worker.fake_ec2 --port 5005 [--machinehost machinehost.json]

Moto keeps instances, volumes and tags in memory. The layer adds what moto lacks and launches depend on: idempotency
tokens, refusals, throttling, lost requests and replies, listings that lag, spot prices and requests, and instances that
run and end: with a machine host, the user data of each instance is executed on this computer, without any isolation.
Needs the extra `fake-ec2`. Requests below /_fake/ set faults and tell what was asked: see `control.py`.
"""
