# SPDX-License-Identifier: Apache-2.0
"""Commands on an AWS account that need its credentials alone: no settings, no service, no database."""
