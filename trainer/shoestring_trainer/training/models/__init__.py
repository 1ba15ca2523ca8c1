# SPDX-License-Identifier: Apache-2.0
"""Networks by name, their summary and their compilation."""
