/** What the machines of the last 28 days were paid for besides training that was kept. */
import { useQuery } from "@tanstack/react-query";
import { waste } from "../../api/queries";
import type { Schemas } from "../../api/client";
import { formatDollars, formatExact, fractionOf, toMicro } from "../../lib/money";
import { formatPercent } from "../../lib/number";
import { Async } from "../../components/async";
import { Link } from "../../router";

const CAUSES: Record<Schemas["Waste"]["cause"], string> = {
  set_up: "Set-up",
  idle: "Idle",
  lost_steps: "Lost steps",
  failed_launch: "No step made",
};

export function WastePanel() {
  return (
    <section className="panel" aria-label="Waste" data-waste>
      <header>
        <h2>Waste</h2>
      </header>
      <Async reading={useQuery(waste)} rows={2}>{(report) => <Report report={report} />}</Async>
    </section>
  );
}

function Report({ report: { total, jobs } }: { report: Schemas["WasteReport"] }) {
  const cost = toMicro(total.cost.amount);
  if (cost === 0n) return <p className="muted">Nothing was spent in the last 28 days.</p>;
  return (
    <>
      <p>
        {formatDollars(total.wasted)} of {formatDollars(total.cost)} in the last 28 days (
        {formatPercent(fractionOf(toMicro(total.wasted.amount), cost))}) did not go into training that was kept.
      </p>
      <dl className="figures">
        {total.causes.map((one) => (
          <div key={one.cause}>
            <dt>{CAUSES[one.cause]}</dt>
            <dd title={formatExact(one.cost)}>{formatDollars(one.cost)}</dd>
          </div>
        ))}
      </dl>
      {jobs.length > 0 && (
        <p className="muted">
          Most of it in{" "}
          {jobs.slice(0, 3).map(({ job, name, cost }, place) => (
            <span key={job}>
              {place > 0 && ", "}
              <Link to={`/jobs/${job}`}>{name}</Link> ({formatDollars(cost.wasted)})
            </span>
          ))}
          .
        </p>
      )}
    </>
  );
}
