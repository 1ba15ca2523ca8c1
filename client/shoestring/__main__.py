# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:  # -m puts the current folder first, where a json.py would hide Python's own
        sys.path.append(sys.path.pop(0))

    from shoestring.cli import main

    main()
