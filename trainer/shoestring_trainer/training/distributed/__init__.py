# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training: process group, collectives, and layers that see the global batch."""
