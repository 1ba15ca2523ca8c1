# SPDX-License-Identifier: Apache-2.0
"""The long proofs: each file is one, run by `make soak` (see bench/soak.py)."""
