# SPDX-License-Identifier: Apache-2.0
"""Soak tests: each file is one, run by `make soak` (see bench/soak.py)."""
