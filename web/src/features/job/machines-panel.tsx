import type { Schemas } from "../../api/client";
import { attemptReasonLabel, MACHINE_END_CAUSES, machineStateLabel } from "../../lib/labels";
import { formatDollars, formatExact } from "../../lib/money";
import { formatCount } from "../../lib/number";
import { Panel } from "../../components/panel";
import { useNow } from "../../lib/use-now";
import { secondsBetween, formatClock, formatDuration } from "../../lib/time";

export type Attempt = Schemas["Attempt"];

export function MachinesPanel({ list }: { list: Schemas["AttemptList"] | undefined }) {
  const now = useNow();
  if (!list || list.attempts.length === 0) {
    return (
      <Panel title="Attempts and machines">
        <p className="empty small">No machines yet.</p>
      </Panel>
    );
  }
  return (
    <Panel
      title="Attempts and machines"
      aside={
        <span className="muted">
          {formatCount(list.steps)} steps{list.rolled_back_steps > 0 ? `, ${formatCount(list.rolled_back_steps)} recomputed` : ", 0 recomputed"}
        </span>
      }
    >
      <div className="table-scroll">
        <table className="machines">
          <thead>
            <tr>
              <th>Attempt</th>
              <th>Slot</th>
              <th>Machine</th>
              <th>State</th>
              <th className="num">Per hour</th>
              <th className="num">Launched</th>
              <th className="num">Time</th>
              <th className="num">Cost</th>
            </tr>
          </thead>
          {[...list.attempts].reverse().map((attempt) => (
            <tbody key={attempt.number}>
              <tr className="group">
                <th colSpan={8} scope="rowgroup">
                  Attempt {attempt.number} <span className="muted">{describeAttempt(attempt)}</span>
                </th>
              </tr>
              {attempt.machines.map((machine) => (
                <tr key={machine.id} data-machine={machine.id}>
                  <td className="muted">{attempt.number}</td>
                  <td>m{machine.slot}</td>
                  <td title={machine.provider_id ?? ""}>
                    {machine.type} <span className="muted">{machine.market.replace("_", " ")} · {machine.zone || machine.region}</span>
                  </td>
                  <td>
                    <span className={`state ${machine.state}`}>{machineStateLabel(machine.state)}</span>
                    {machine.end_cause && <span className="muted"> · {MACHINE_END_CAUSES[machine.end_cause] ?? machine.end_cause}</span>}
                  </td>
                  <td className="num" title={`on demand ${formatExact(machine.on_demand_per_hour)}`}>{formatExact(machine.price_per_hour)}</td>
                  <td className="num">{formatClock(machine.launched_at)}</td>
                  <td className="num">{formatDuration(secondsBetween(machine.launched_at, machine.ended_at, now))}</td>
                  <td className="num" title={`${formatExact(machine.cost)}${machine.posted ? "" : ", not yet billed"}`}>
                    {formatDollars(machine.cost)}
                    {!machine.posted && <span className="muted">*</span>}
                  </td>
                </tr>
              ))}
            </tbody>
          ))}
        </table>
      </div>
      {list.attempts.some((attempt) => attempt.machines.some((machine) => !machine.posted)) && <p className="footnote muted">* accrued; billed when the machine has terminated</p>}
    </Panel>
  );
}

function describeAttempt(attempt: Attempt): string {
  const stepped = attempt.generations.filter((one) => one.last_step !== null);
  const first = stepped[0]?.start_step;
  const last = stepped.at(-1)?.last_step;
  return [
    attempt.state === "closed" ? attemptReasonLabel(attempt.reason ?? "ended") : attempt.state,
    first !== undefined && last !== null && last !== undefined ? `steps ${formatCount(first + 1)}–${formatCount(last)}` : attempt.trained ? "" : "no steps",
    attempt.generations.length > 1 ? `${attempt.generations.length} generations` : "",
  ]
    .filter(Boolean)
    .join(" · ");
}
