# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: their files, the state of a run, and weights to start from."""
