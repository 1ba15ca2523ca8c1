# SPDX-License-Identifier: Apache-2.0
"""The trainer's commands beside `train`, and training without the service."""
