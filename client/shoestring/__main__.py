# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring`."""

from shoestring.cli import main

main()
