# SPDX-License-Identifier: Apache-2.0
"""What a user installs: the command line and the Python client."""
