import { useQuery } from "@tanstack/react-query";
import type { Schemas } from "../api/client";
import { events } from "../api/resources";
import { Panel, ProblemNote, Skeleton } from "../parts";
import { clock, moment } from "../time";

const SHOWN = 200;

export function TimelinePanel({ id }: { id: string }) {
  const list = useQuery(events(id));
  const shown = (list.data ?? []).slice(-SHOWN).reverse();
  return (
    <Panel title="Timeline" aside={list.data && <span className="dim">newest first</span>}>
      <ProblemNote error={list.error} />
      {list.isPending && <Skeleton />}
      <ol className="timeline" tabIndex={0} aria-label="Events">
        {shown.map((event) => (
          <li key={event.cursor} className={toneOf(event)}>
            <time dateTime={event.at} title={moment(event.at)}>
              {clock(event.at)}
            </time>
            <span>
              <strong>{headOf(event)}</strong> {event.reason && headOf(event) !== event.reason && event.reason}
              <span className="dim"> {event.actor}</span>
            </span>
          </li>
        ))}
      </ol>
    </Panel>
  );
}

function headOf({ kind, data, reason }: Schemas["Event"]): string {
  if (kind === "job" && typeof data.to === "string") return `Job ${data.to.replaceAll("_", " ")}.`;
  if (kind === "agent") return reason.replaceAll("_", " ");
  if (kind === "machine" && typeof data.to === "string") return `Machine ${data.to}.`;
  if (kind === "generation" && typeof data.to === "string") return `Generation ${data.to}.`;
  return `${kind.slice(0, 1).toUpperCase()}${kind.slice(1)}.`;
}

function toneOf({ kind, reason }: Schemas["Event"]): string {
  if (kind === "alarm" || (kind === "agent" && ["notice", "rejected", "warning"].includes(reason))) return "warn";
  return kind === "job" ? "main" : "";
}
