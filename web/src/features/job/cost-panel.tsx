import { useQuery } from "@tanstack/react-query";
import type { CSSProperties, ReactNode } from "react";
import type { Schemas } from "../../api/client";
import { budgets, cost, type Job } from "../../api/queries";
import { transferKindLabel } from "../../lib/labels";
import { formatDollars, formatExact, type Money, toMicro, fractionOf, sumMicro } from "../../lib/money";
import { formatEnergy, formatPercent } from "../../lib/number";
import { tightestBudget } from "../../lib/tightest-budget";
import { Async } from "../../components/async";
import { Panel } from "../../components/panel";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { Link } from "../../router";
import { Sentence } from "../../components/sentence";
import { zoneName } from "../../lib/time";

/** Cost so far, beside what the same hours would have cost on demand. */
export function CostPanel({ job }: { job: Job }) {
  const jobCost = job.cost;
  const report = useQuery(cost(job.id));
  const budget = tightestBudget(useQuery(budgets).data ?? [], job.user);
  const spent = sumMicro(jobCost.spent, jobCost.running);
  const onDemand = toMicro(jobCost.on_demand.amount);
  const whole = onDemand > spent ? onDemand : spent;
  return (
    <Panel title="Cost" className="cost" aside={<span className="tag">{jobCost.price_basis} prices</span>}>
      <dl className="compare">
        <div className="spot" style={barOf(fractionOf(spent, whole))}>
          <dt>So far</dt>
          <dd className="strong" data-cost>{formatDollars(spent)}</dd>
        </div>
        <div style={barOf(fractionOf(onDemand, whole))}>
          <dt>On-demand equivalent</dt>
          <dd>{formatDollars(onDemand)}</dd>
        </div>
      </dl>
      {onDemand > spent && spent > 0n && <p className="good-text">{formatPercent(1 - fractionOf(spent, onDemand))} saved by spot instances</p>}
      <dl className="amounts">
        <Line name="Settled" amount={jobCost.spent} />
        {!jobCost.settled && <Line name="Accrued, not yet billed" amount={jobCost.running} />}
        {toMicro(jobCost.estimated.amount) > 0n && <Line name="Of it estimated, for disks and addresses" amount={jobCost.estimated} />}
        {toMicro(jobCost.held.amount) > 0n && <Line name="Held for machines" amount={jobCost.held} />}
        {jobCost.limit && <Line name="Job cost limit" amount={jobCost.limit} />}
        {budget?.left && (
          <Line name={<Link to="/budget">Left in the {budget.kind} budget</Link>} amount={budget.left} />
        )}
      </dl>
      {jobCost.settled && <p className="footnote muted">Settled: every machine has terminated and been billed.</p>}
      <Async reading={report} rows={1}>
        {({ energy, transfers, quote }) => (
          <>
            {quote && <p data-kept-quote={quote.actual ? quote.actual.cost_place : "open"}><Sentence text={quote.summary.text} /></p>}
            {energy && (
              <dl className="amounts">
                <div>
                  <dt>{`Energy, ${energy.of.map((part) => part.toUpperCase()).join(" and ")}`}</dt>
                  <dd>{formatEnergy(energy.joules)}</dd>
                </div>
              </dl>
            )}
            {transfers.length > 0 && <Ledger transfers={transfers} />}
          </>
        )}
      </Async>
    </Panel>
  );
}

/** The length of the bar under a line, which the style sheet draws. */
function barOf(fraction: number): CSSProperties {
  return { "--part": `${fraction * 100}%` } as CSSProperties;
}

function Line({ name, amount }: { name: ReactNode; amount: Money }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd title={formatExact(amount)}>{formatDollars(amount)}</dd>
    </div>
  );
}

function Ledger({ transfers }: { transfers: Schemas["Transfer"][] }) {
  return (
    <details>
      <summary>Ledger, {transfers.length} {transfers.length === 1 ? "entry" : "entries"}</summary>
      <TableScroll short label="Ledger">
        <table>
          <thead>
            <tr>
              <th>Time ({zoneName()})</th>
              <th>Type</th>
              <th>Item</th>
              <th className="num">Amount</th>
            </tr>
          </thead>
          <tbody>
            {transfers.map((one, i) => (
              <tr key={i} title={`${one.debit_account} → ${one.credit_account}, by ${one.actor}. ${one.reason.text}`}>
                <td className="num"><Time at={one.at} /></td>
                <td>{transferKindLabel(one.kind)}</td>
                <td className="muted">{one.line ?? <Sentence text={one.reason.text} />}</td>
                <td className="num" title={formatExact(one.amount)}>{formatDollars(one.amount)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
    </details>
  );
}
