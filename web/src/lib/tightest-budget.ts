// SPDX-License-Identifier: Apache-2.0
import { type Budget } from "../api/queries";
import { toMicro } from "./money";

/** Return the limited budget with the least left, which will be exhausted first, of those that pay for a user's jobs. */
export function tightestBudget(budgets: readonly Budget[], user: string | undefined): Budget | undefined {
  return budgets
    .filter(({ left, kind, owner }) => left !== null && kind !== "job" && (kind !== "member" || owner === user))
    .reduce<Budget | undefined>((least, budget) => (!least || toMicro(budget.left!.amount) < toMicro(least.left!.amount) ? budget : least), undefined);
}
