# SPDX-License-Identifier: Apache-2.0
"""The ledger: who may spend how much, what is held, and what was spent. Amounts are micro-dollars.

accounts     the tree of accounts, and who may see them
limits       what an account may spend: adjusted, granted, transferred
holds        money held for machines: placed, extended, released
commitments  money held for a job that has a deadline, for its machines to come
settlement   the cost of machines posted against their holds
periods      months and terms, and what is left at their borders
forecasts    what a period will have spent at its end
soft_lines   shares of a limit at which spenders are warned
shares       what teams and members spent lately, and their weights
export       every line that concerns a team
audit        totals compared with the sums they stand for
balances     the guarded updates of accounts that holds and settlement share
feed         movements of money and alarms as events

Accounts form a tree, organization > team > member > job. On each of them, at every commit (invariant I1, also a CHECK):

    posted + held <= limit + overdraft

A machine's money is first *held*, on its job's account and every account above, then *posted* in increments as the
provider's evidence comes in, and the rest of the hold is released. What a provider charges beyond the hold is
*overrun*: posted all the same, to an account of its own, with an alarm. Only an overrun and a lowered limit make an
overdraft; while an account has one, nothing can be held there or below.

A budget may have periods. Its account keeps counting; a limit of a period is what may be spent beyond what earlier
periods used, and a border is one immutable change of the limit.

Every entry is one immutable transfer; corrections are further transfers. Accounts are written leaves first, by id
within a level, so that writers can't deadlock. So a transaction holds or settles for one machine, or for several at
once with `place_holds`.
"""

from shoestring_core.store.ledger.accounts import (
    accounts_upward,
    ancestors,
    belongs_to,
    create_accounts,
    create_job_account,
    ensure_member_accounts,
    job_account,
    paying_accounts,
    period_limit,
    period_use,
    team_account,
    team_budgets,
    title,
    titles,
    visible_account,
)
from shoestring_core.store.ledger.audit import Discrepancy, find_discrepancies
from shoestring_core.store.ledger.caps import set_concurrency
from shoestring_core.store.ledger.commitments import adjust_commitment, commit_money, load_commitments
from shoestring_core.store.ledger.forecasts import BudgetForecast, due_forecasts, load_forecast, tell_forecast
from shoestring_core.store.ledger.holds import HoldRequest, extend_hold, place_hold, place_holds, release_hold
from shoestring_core.store.ledger.limits import grant, set_limit, tightest_account, transfer, was_limited
from shoestring_core.store.ledger.periods import (
    Plan,
    begin_roll_over,
    due_borders,
    load_periods,
    roll_over,
    set_period,
)
from shoestring_core.store.ledger.settlement import settle, transfers_of
from shoestring_core.store.ledger.shares import (
    SHARING,
    load_half_life,
    recent_spending,
    set_guaranteed_rate,
    set_half_life,
    set_weight,
)
from shoestring_core.store.ledger.soft_lines import BUDGETS, lines_of, set_soft_lines

__all__ = [
    "BUDGETS",
    "SHARING",
    "BudgetForecast",
    "Discrepancy",
    "HoldRequest",
    "Plan",
    "accounts_upward",
    "adjust_commitment",
    "ancestors",
    "begin_roll_over",
    "belongs_to",
    "commit_money",
    "create_accounts",
    "create_job_account",
    "due_borders",
    "due_forecasts",
    "ensure_member_accounts",
    "extend_hold",
    "find_discrepancies",
    "grant",
    "job_account",
    "lines_of",
    "load_commitments",
    "load_forecast",
    "load_half_life",
    "load_periods",
    "paying_accounts",
    "period_limit",
    "period_use",
    "place_hold",
    "place_holds",
    "recent_spending",
    "release_hold",
    "roll_over",
    "set_concurrency",
    "set_guaranteed_rate",
    "set_half_life",
    "set_limit",
    "set_period",
    "set_soft_lines",
    "set_weight",
    "settle",
    "team_account",
    "team_budgets",
    "tell_forecast",
    "tightest_account",
    "title",
    "titles",
    "transfer",
    "transfers_of",
    "visible_account",
    "was_limited",
]
