# SPDX-License-Identifier: Apache-2.0
"""The command line, a module for each group of commands. Results go to stdout, messages to stderr."""

from shoestring.cli.app import app, main

__all__ = ["app", "main"]
