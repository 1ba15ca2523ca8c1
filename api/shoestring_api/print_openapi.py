# SPDX-License-Identifier: Apache-2.0
"""Print the OpenAPI document: `python -m shoestring_api.print_openapi`."""

from __future__ import annotations

import json
import sys

from shoestring_api.app import create_app

if __name__ == "__main__":
    json.dump(create_app().openapi(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
