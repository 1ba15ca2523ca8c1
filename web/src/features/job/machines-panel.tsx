import type { Schemas } from "../../api/client";
import { attemptReasonLabel, MACHINE_END_CAUSES, machineStateLabel } from "../../lib/labels";
import { formatDollars, formatExact } from "../../lib/money";
import { counted, formatCount } from "../../lib/number";
import { Async, type Reading } from "../../components/async";
import { Panel } from "../../components/panel";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { useNow } from "../../lib/use-now";
import { secondsBetween, formatDuration, zoneName } from "../../lib/time";

export type Attempt = Schemas["Attempt"];
type AttemptList = Schemas["AttemptList"];

export function MachinesPanel({ reading }: { reading: Reading<AttemptList> }) {
  const list = reading.data;
  return (
    <Panel
      title="Attempts and machines"
      aside={
        list !== undefined &&
        list.attempts.length > 0 && (
          <span className="muted">
            {counted(list.steps, "step")}, {formatCount(list.rolled_back_steps)} recomputed
          </span>
        )
      }
    >
      <Async reading={reading}>
        {({ attempts }) => (attempts.length === 0 ? <p className="empty small">No machines yet.</p> : <MachinesTable attempts={attempts} />)}
      </Async>
    </Panel>
  );
}

function MachinesTable({ attempts }: { attempts: Attempt[] }) {
  const now = useNow();
  return (
    <>
      <TableScroll label="Attempts and machines">
        <table className="machines stacked">
          <thead>
            <tr>
              <th>Machine</th>
              <th>Type</th>
              <th>State</th>
              <th className="num">Per hour</th>
              <th className="num">Launched ({zoneName()})</th>
              <th className="num">Time</th>
              <th className="num">Cost</th>
            </tr>
          </thead>
          {[...attempts].reverse().map((attempt) => (
            <tbody key={attempt.number}>
              <tr className="group">
                <th colSpan={7} scope="rowgroup">
                  Attempt {attempt.number} <span className="muted">{describeAttempt(attempt)}</span>
                </th>
              </tr>
              {attempt.machines.map((machine) => (
                <tr key={machine.id} data-machine={machine.id}>
                  <td>m{machine.slot}</td>
                  <td title={machine.provider_id ?? ""}>
                    {machine.type} <span className="muted">{machine.market.replace("_", " ")} · {machine.zone || machine.region}</span>
                    {(machine.image || machine.driver) && <div className="muted">{describeImage(machine)}</div>}
                  </td>
                  <td>
                    <span className={`state ${machine.state}`}>{machineStateLabel(machine.state)}</span>
                    {machine.end_cause && <span className="muted"> · {MACHINE_END_CAUSES[machine.end_cause] ?? machine.end_cause}</span>}
                    {machine.left && <div className="muted">{machine.left.text}</div>}
                  </td>
                  <td className="num" data-label="Per hour" title={`on demand ${formatExact(machine.on_demand_per_hour)}`}>{formatExact(machine.price_per_hour)}</td>
                  <td className="num" data-label="Launched"><Time at={machine.launched_at} /></td>
                  <td className="num" data-label="Time">{formatDuration(secondsBetween(machine.launched_at, machine.ended_at, now))}</td>
                  <td className="num" data-label="Cost" title={describeBill(machine)}>
                    {formatDollars(machine.cost)}
                    {!machine.posted && <span className="muted">*</span>}
                  </td>
                </tr>
              ))}
            </tbody>
          ))}
        </table>
      </TableScroll>
      {attempts.some((attempt) => attempt.machines.some((machine) => !machine.posted)) && <p className="footnote muted">* accrued; billed when the machine has terminated</p>}
    </>
  );
}

function describeImage({ image, driver }: Attempt["machines"][number]): string {
  return [image, driver && `NVIDIA driver ${driver}`].filter(Boolean).join(" · ");
}

/** The exact amount, and each line of the bill where there are several. */
function describeBill(machine: Attempt["machines"][number]): string {
  const total = `${formatExact(machine.cost)}${machine.posted ? "" : ", not yet billed"}`;
  if (machine.lines.length < 2) return total;
  return [total, ...machine.lines.map((line) => `${line.line} ${formatExact(line.amount)}: ${line.reason.text}`)].join("\n");
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
