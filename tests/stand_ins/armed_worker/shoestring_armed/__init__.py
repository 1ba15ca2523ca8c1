# SPDX-License-Identifier: Apache-2.0
"""Only to be found: `up` gives its children the folders of PYTHONPATH that hold a package of ours."""
