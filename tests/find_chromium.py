# SPDX-License-Identifier: Apache-2.0
"""Print the Chromium that the dashboard's tests drive; exit 1 when there is none."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Path of the browser: SHOESTRING_CHROMIUM, else one on the PATH, else the one that Playwright downloaded."""
    if named := os.environ.get("SHOESTRING_CHROMIUM"):
        return named
    for name in NAMES:
        if found := shutil.which(name):
            return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser()
    return next((str(path) for path in sorted(cache.glob("chromium-*/chrome-linux*/chrome"), reverse=True)), None)


if __name__ == "__main__":
    path = find_chromium()
    if path is None:
        sys.exit("No Chromium. Run `make setup`, or name one in SHOESTRING_CHROMIUM.")
    print(path)
