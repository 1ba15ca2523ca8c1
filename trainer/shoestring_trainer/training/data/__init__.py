# SPDX-License-Identifier: Apache-2.0
"""Datasets: where images and labels come from, the decoded cache that training reads, augmentation and batches."""
