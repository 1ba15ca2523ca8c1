# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer.machinehost`."""

import sys

from shoestring_trainer.machinehost.command_line import main

sys.exit(main())
