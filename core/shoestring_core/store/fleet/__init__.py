# SPDX-License-Identifier: Apache-2.0
"""Attempts, machines, generations and their members: the only code that writes their rows.

open_work           what a tick may have to act on, read at once
queue               the queue as the scheduler sees it, and why jobs wait
planning            decisions to rent, recorded: attempts and launch intents
offers              offers of the providers, and the history of their prices
launches            launch calls: begun, refused, unanswered, given up
observations        what providers report about machines, and the rows to compare with it
agents              the machines' sessions, their reports, and the orders they get
gangs               generations and attempts, opened and ended; jobs that end or continue with them
active_attempts     attempts with their machines, generation and members
leaks               what ran without a row
billing             holds extended, costs posted, final bills
service_heartbeats  which of our services answer, and since when
rows                what these share: rows loaded, locked, changed under a guard, and recorded in the feed

Decisions are fenced: each guarded UPDATE repeats the whole condition of its decision, and does nothing if that no
longer holds. Observations (what a provider reports about a machine) are always recorded, guarded by the machine's id
alone. Decisions about a job's gang lock the job's row first, so that they come one after the other.
"""
