# SPDX-License-Identifier: Apache-2.0
"""What runs on a rented machine: the agent, the machine host and the trainer."""
