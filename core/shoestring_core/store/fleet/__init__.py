# SPDX-License-Identifier: Apache-2.0
"""Attempts, machines, generations and their members: the only code that writes their rows.

planning    the queue as the planner sees it; its decisions written down: attempts, launch intents, waits; prices
launches    the calls that rent machines: begun, refused, unanswered, given up
facts       what the provider says about machines, and the rows to be compared with it
agents      the machines' sessions, what they say, and what they are told to do
gangs       generations and attempts, opened and ended; jobs that end or go on with them
work        what a tick works on
billing     holds extended, costs posted, final bills
services    which services answer, and since when
records     what these share: rows read, claimed, changed under a guard, and told of in the feed

Decisions are fenced: each guarded UPDATE repeats the whole condition of its decision, and does nothing if that no
longer holds. Facts (what a provider says about a machine) are always written, guarded by the machine's id alone.
Whatever decides about a job's gang touches the job's row first, so that two deciders come one after the other.
"""
