# SPDX-License-Identifier: Apache-2.0
"""Copies data sets from S3 to a machine's disk before training. Does not import torch."""
