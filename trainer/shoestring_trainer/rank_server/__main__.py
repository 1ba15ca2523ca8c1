# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer.rank_server PARENT_PID [MODULE ...]`."""

import sys

from shoestring_trainer.rank_server.server import main

sys.exit(main(sys.argv[1:]))
