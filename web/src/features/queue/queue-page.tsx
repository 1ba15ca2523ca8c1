/** The queue: whose turn it is, why jobs wait, when they are expected to start and for how much more they would now. */
import { useQuery } from "@tanstack/react-query";
import type { Schemas } from "../../api/client";
import { queue } from "../../api/queries";
import { Async } from "../../components/async";
import { Command } from "../../components/copy-button";
import { Page } from "../../components/page";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { formatDollars } from "../../lib/money";
import { counted } from "../../lib/number";
import { formatDuration, formatTime, zoneName } from "../../lib/time";
import { useNow } from "../../lib/use-now";
import { Link } from "../../router";
import { Sentence } from "../../components/sentence";
import { WhatIfPanel } from "./what-if-panel";

export function QueuePage() {
  const read = useQuery(queue);
  return (
    <Page title="Queue" wide actions={<Link to="/new" className="button primary">New job</Link>}>
      <p className="lead">
        Your team's jobs in the order of service. Starts are what the scheduler would decide if jobs take as long as their quotes say, and
        nobody submits, stops or grants anything.
      </p>
      <Async reading={read} rows={4}>
        {(data) => (data.jobs.length > 0 ? <Table data={data} /> : <Nothing waiting={data.waiting} />)}
      </Async>
      <WhatIfPanel queued={read.data?.jobs ?? []} />
      <p className="muted">
        Next is the team, and in it the member, that has the fewest dollars spent lately or held now for its weight. From a terminal:{" "}
        <Command text="shoestring queue" />
      </p>
    </Page>
  );
}

function Table({ data }: { data: Schemas["Queue"] }) {
  const others = data.waiting - data.jobs.length;
  return (
    <>
      <TableScroll label="Queue">
        <table className="jobs stacked">
          <thead>
            <tr>
              <th className="num">Place</th>
              <th>Job</th>
              <th className="grow">Outlook</th>
              <th className="num">Starts ({zoneName()})</th>
              <th className="num">Expected cost</th>
            </tr>
          </thead>
          <tbody>
            {data.jobs.map((one) => (
              <Row key={one.job} entry={one} />
            ))}
          </tbody>
        </table>
      </TableScroll>
      {others > 0 && <p className="muted" data-others>{counted(others, "job")} more in the queue, of other teams or further back.</p>}
    </>
  );
}

function Row({ entry }: { entry: Schemas["QueueEntry"] }) {
  const now = useNow(5000);
  const { start } = entry;
  const waits = start ? (Date.parse(start.at) - now) / 1000 : 0;
  return (
    <tr data-queued={entry.job}>
      <td className="num" data-label="Place">{entry.position}</td>
      <td className="name">
        <Link to={`/jobs/${entry.job}`}>{entry.name}</Link>
        <span className="muted">{[entry.recipe, entry.user].filter(Boolean).join(" · ")}</span>
      </td>
      <td className="grow">
        <span data-outlook><Sentence text={entry.outlook.text} /></span>
        {entry.reason && <span className="status-text muted"><Sentence text={entry.reason.text} /></span>}
      </td>
      <td className="num" data-label="Starts">
        {start ? <Time at={start.at} text={waits < 1 ? "now" : `${formatTime(start.at, now)} (${formatDuration(waits)})`} /> : <span className="muted">unknown</span>}
      </td>
      <td className="num" data-label="Expected cost">{start?.cost ? formatDollars(start.cost) : <span className="muted">unknown</span>}</td>
    </tr>
  );
}

function Nothing({ waiting }: { waiting: number }) {
  return (
    <div className="empty">
      <h2>No job of your team is waiting</h2>
      <p>{waiting > 0 ? `${counted(waiting, "job")} of other teams ${waiting === 1 ? "is" : "are"} in the queue.` : "A job that is submitted now starts at once, if a machine and the budget allow it."}</p>
      <Link to="/new" className="button primary">New job</Link>
    </div>
  );
}
