# SPDX-License-Identifier: Apache-2.0
"""Ranks that train together: process group, collectives, layers that see the whole batch."""
