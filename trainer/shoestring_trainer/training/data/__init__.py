# SPDX-License-Identifier: Apache-2.0
"""What is trained on: where images and labels come from, and the decoded copies that training reads."""
