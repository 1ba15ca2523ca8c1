import { useQuery } from "@tanstack/react-query";
import type { Schemas } from "../../api/client";
import { budgets, cost, type Job } from "../../api/resources";
import { dollars, exact, micro, share, sum } from "../../lib/money";
import { energy, percent } from "../../lib/number";
import { tightest } from "../budget/budget";
import { Panel } from "../../components/parts";
import { Link } from "../../router";
import { clock } from "../../lib/time";

/** Cost so far, beside what the same hours would have cost on demand. */
export function MoneyPanel({ job }: { job: Job }) {
  const money = job.cost;
  const report = useQuery(cost(job.id)).data;
  const budget = tightest(useQuery(budgets).data ?? []);
  const soFar = sum(money.spent, money.running);
  const onDemand = micro(money.on_demand.amount);
  const whole = onDemand > soFar ? onDemand : soFar;
  return (
    <Panel title="Cost" className="cost" aside={<span className="tag">{money.price_basis} prices</span>}>
      <dl className="compare">
        <div>
          <dt>So far</dt>
          <dd className="strong" data-cost>{dollars(soFar)}</dd>
          <span className="meter ours" style={{ width: `${share(soFar, whole) * 100}%` }} />
        </div>
        <div>
          <dt>Same time on demand</dt>
          <dd>{dollars(onDemand)}</dd>
          <span className="meter" style={{ width: `${share(onDemand, whole) * 100}%` }} />
        </div>
      </dl>
      {onDemand > soFar && soFar > 0n && <p className="good-text">{percent(1 - share(soFar, onDemand))} saved by spot machines</p>}
      <dl className="lines">
        <Line name="Settled" value={exact(money.spent)} />
        {!money.settled && <Line name="Running, not yet billed" value={exact(money.running)} />}
        {micro(money.held.amount) > 0n && <Line name="Held for its machines" value={exact(money.held)} />}
        {money.limit && <Line name="Limit of this job" value={exact(money.limit)} />}
        {budget?.left && (
          <Line name={<Link to="/budget">Left of the {budget.kind} budget</Link>} value={dollars(budget.left)} />
        )}
      </dl>
      {report?.energy && (
        <dl className="lines">
          <Line name={`Energy of its ${report.energy.of.map((part) => part.toUpperCase()).join(" and ")}`} value={energy(report.energy.joules)} />
        </dl>
      )}
      {money.settled && <p className="foot dim">Settled: every machine has ended and is billed.</p>}
      {report && report.transfers.length > 0 && <Ledger transfers={report.transfers} />}
    </Panel>
  );
}

function Line({ name, value }: { name: React.ReactNode; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Ledger({ transfers }: { transfers: Schemas["Transfer"][] }) {
  return (
    <details>
      <summary>Ledger, {transfers.length} {transfers.length === 1 ? "entry" : "entries"}</summary>
      <div className="table-box short" tabIndex={0} role="region" aria-label="Ledger">
        <table>
          <thead>
            <tr>
              <th>At</th>
              <th>Kind</th>
              <th>For</th>
              <th className="num">Amount</th>
            </tr>
          </thead>
          <tbody>
            {transfers.map((one, i) => (
              <tr key={i} title={`${one.debit} → ${one.credit}, by ${one.actor}. ${one.reason}`}>
                <td className="num">{clock(one.at)}</td>
                <td>{one.kind}</td>
                <td className="dim">{one.line ?? one.reason}</td>
                <td className="num">{exact(one.amount)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}
