import type { Schemas } from "../../api/client";
import { END_CAUSES } from "../../lib/events";
import { dollars, exact } from "../../lib/money";
import { count } from "../../lib/number";
import { Panel, useNow } from "../../components/parts";
import { between, clock, duration } from "../../lib/time";

export type Attempt = Schemas["Attempt"];

export function MachinesPanel({ list }: { list: Schemas["AttemptList"] | undefined }) {
  const now = useNow();
  if (!list || list.attempts.length === 0) {
    return (
      <Panel title="Machines and attempts">
        <p className="empty small">No machine has been rented yet.</p>
      </Panel>
    );
  }
  return (
    <Panel
      title="Machines and attempts"
      aside={
        <span className="dim">
          {count(list.steps)} steps{list.steps_lost > 0 ? `, ${count(list.steps_lost)} done again` : ", none done twice"}
        </span>
      }
    >
      <div className="table-box">
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
            <tbody key={attempt.no}>
              <tr className="group">
                <th colSpan={8} scope="rowgroup">
                  Attempt {attempt.no} <span className="dim">{about(attempt)}</span>
                </th>
              </tr>
              {attempt.machines.map((machine) => (
                <tr key={machine.id} data-machine={machine.id}>
                  <td className="dim">{attempt.no}</td>
                  <td>m{machine.slot}</td>
                  <td title={machine.provider_id ?? ""}>
                    {machine.type} <span className="dim">{machine.market.replace("_", " ")} · {machine.zone || machine.region}</span>
                  </td>
                  <td>
                    <span className={`state ${machine.state}`}>{machine.state}</span>
                    {machine.end_cause && <span className="dim"> · {END_CAUSES[machine.end_cause] ?? machine.end_cause}</span>}
                  </td>
                  <td className="num" title={`on demand ${exact(machine.on_demand_per_hour)}`}>{exact(machine.price_per_hour)}</td>
                  <td className="num">{clock(machine.launched_at)}</td>
                  <td className="num">{duration(between(machine.launched_at, machine.ended_at, now))}</td>
                  <td className="num" title={`${exact(machine.cost)}${machine.posted ? "" : ", not yet billed"}`}>
                    {dollars(machine.cost)}
                    {!machine.posted && <span className="dim">*</span>}
                  </td>
                </tr>
              ))}
            </tbody>
          ))}
        </table>
      </div>
      {list.attempts.some((attempt) => attempt.machines.some((machine) => !machine.posted)) && <p className="foot dim">* computed now; billed when the machine has ended</p>}
    </Panel>
  );
}

function about(attempt: Attempt): string {
  const stepped = attempt.generations.filter((one) => one.last_step !== null);
  const first = stepped[0]?.start_step;
  const last = stepped.at(-1)?.last_step;
  return [
    attempt.state === "closed" ? (attempt.reason?.replaceAll("_", " ") ?? "over") : attempt.state,
    first !== undefined && last !== null && last !== undefined ? `steps ${count(first + 1)}–${count(last)}` : attempt.trained ? "" : "no step yet",
    attempt.generations.length > 1 ? `${attempt.generations.length} generations` : "",
  ]
    .filter(Boolean)
    .join(" · ");
}
