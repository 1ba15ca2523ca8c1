# SPDX-License-Identifier: Apache-2.0
"""Data in S3, copied to a machine's disk before training. No torch here."""
