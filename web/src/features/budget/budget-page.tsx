import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { flushSync } from "react-dom";
import { type Budget, budgets, jobPages, me, unbudgeted } from "../../api/queries";
import { formatDollars, formatExact, toMicro, fractionOf } from "../../lib/money";
import { headline } from "../../lib/labels";
import { formatPercent } from "../../lib/number";
import { formatTime } from "../../lib/time";
import { Async } from "../../components/async";
import { Command } from "../../components/copy-button";
import { ProblemNote } from "../../components/problem-note";
import { Page } from "../../components/page";
import { Sentence } from "../../components/sentence";
import { Link } from "../../router";
import { WastePanel } from "./waste-panel";
import { BurnDown } from "./burn-down";
import { RequestsPanel } from "./requests-panel";
import { ConcurrencyForm, GrantForm, GuaranteeForm, LimitForm, LinesForm, PeriodForm, TransferForm, WeightForm } from "./budget-forms";
import { unbroken } from "../../lib/unbroken";

export function BudgetPage() {
  const all = useQuery(budgets);
  const role = useQuery(me).data?.role;
  const admin = role === "admin";
  /** A lead shares out among members what the team may spend. */
  const changes = (budget: Budget) => admin || (role === "lead" && budget.kind === "member");
  return (
    <Page title="Budget">
      <p className="lead">
        The cost of a machine is held before it is rented and settled when it has terminated, so a budget is never overspent. A
        job's page says whether its prices are simulated.
      </p>
      <RequestsPanel />
      <JobsWaitingForBudget />
      <Async reading={all}>
        {(budgets) => (
          <div className="budgets">
            {budgets.filter((one) => one.kind !== "job").map((one) => (
              <BudgetCard key={one.id} budget={one} others={transferTargets(one, budgets)} admin={changes(one)} />
            ))}
          </div>
        )}
      </Async>
      <WastePanel />
      <Unbudgeted />
      <p className="muted">
        Next in the queue is the team, and in it the member, that has the fewest dollars spent lately or held now for its weight;
        before all others, a team that stays within its guaranteed rate.
      </p>
      <p className="muted">
        Every line of the ledger: <a href="/v1/ledger?format=csv">CSV</a>, <a href="/v1/ledger?format=json">JSON</a>.
      </p>
      <p className="muted">
        From a terminal: <Command text="shoestring budget show" />
      </p>
    </Page>
  );
}

/** What no budget pays for: the service's own machine, and leaks, which should be nothing. */
function Unbudgeted() {
  return (
    <Async reading={useQuery(unbudgeted)} rows={1}>
      {({ hosting, leaked }) => (
        <>
          {hosting && (
            <p className="muted" data-hosting>
              The service itself: {formatDollars(hosting.spent)} since {formatTime(hosting.since)}, for {hosting.name}, with disks and
              address {formatExact(hosting.hourly)} an hour. That is an estimate, and no budget pays for it.
            </p>
          )}
          <p className={toMicro(leaked.amount) > 0n ? "note warn" : "muted"} data-leaked>
            Leaked: {formatDollars(leaked)}, of machines, disks and addresses that ran at a provider without a job. They are ended when they are
            found.
          </p>
        </>
      )}
    </Async>
  );
}

/** The jobs that can't run because a budget is exhausted. */
function JobsWaitingForBudget() {
  const [queued, paused] = [useInfiniteQuery(jobPages("state=queued")), useInfiniteQuery(jobPages("state=paused"))];
  const jobs = [queued, paused].flatMap(({ data }) => data?.pages[0]?.jobs ?? []);
  const waiting = jobs.filter((job) => job.wait_reason === "budget");
  const failed = [queued, paused].find(({ error }) => error);
  if (failed) return <ProblemNote error={failed.error} retry={() => void failed.refetch()} />;
  if (waiting.length === 0) return null;
  return (
    <div className="note warn" role="status">
      <strong>{waiting.length === 1 ? "One job is waiting for budget" : `${waiting.length} jobs are waiting for budget`}</strong>
      <ul>
        {waiting.map((job) => (
          <li key={job.id}>
            <Link to={`/jobs/${job.id}`}>{job.name}</Link>: <Sentence text={headline(job)} />
          </li>
        ))}
      </ul>
      <p className="muted">Raise a limit below: queued jobs then start and paused ones resume by themselves.</p>
    </div>
  );
}

const KINDS: Record<string, string> = { org: "Organization", team: "Team", member: "Member" };

/** Members whose limits may get dollars of this one's. */
function transferTargets(budget: Budget, all: readonly Budget[]): Budget[] {
  if (budget.kind !== "member" || !budget.limit) return [];
  return all.filter((one) => one.kind === "member" && one.limit && one.id !== budget.id);
}

type Editing = "limit" | "grant" | "transfer" | "weight" | "guarantee" | "concurrency" | "lines" | "period";
const BUTTONS: Record<Editing, string> = {
  limit: "Set limit",
  grant: "Grant",
  transfer: "Transfer",
  weight: "Set weight",
  guarantee: "Guarantee a rate",
  concurrency: "Set concurrency",
  lines: "Set soft lines",
  period: "Set period",
};

function BudgetCard({ budget, others, admin }: { budget: Budget; others: readonly Budget[]; admin: boolean }) {
  const [editing, setEditing] = useState<Editing | null>(null);
  const buttons = useRef(new Map<Editing, HTMLButtonElement | null>());
  /** The focus returns to where it came from. */
  function close() {
    const from = editing;
    flushSync(() => setEditing(null));
    if (from) buttons.current.get(from)?.focus();
  }
  const possible: Record<Editing, boolean> = {
    limit: true,
    grant: budget.limit !== null,
    transfer: others.length > 0,
    weight: budget.weight !== null,
    guarantee: budget.guaranteed_rate !== null,
    concurrency: budget.weight !== null,
    lines: true,
    period: budget.limit !== null,
  };
  const [posted, held, over] = [toMicro(budget.posted.amount), toMicro(budget.held.amount), toMicro(budget.overdraft.amount)];
  const limit = budget.limit ? toMicro(budget.limit.amount) : null;
  const whole = limit !== null && limit > posted + held ? limit : posted + held;
  return (
    <section className="panel budget" aria-label={`${KINDS[budget.kind] ?? budget.kind} ${budget.owner}`} data-budget={budget.kind}>
      <header>
        <h2>
          <span className="muted">{KINDS[budget.kind] ?? budget.kind}</span> {budget.owner}
        </h2>
        {admin && !editing && (
          <div className="row">
            {(Object.keys(BUTTONS) as Editing[]).filter((one) => possible[one]).map((one) => (
              <button key={one} ref={(button) => void buttons.current.set(one, button)} type="button" className="small" onClick={() => setEditing(one)}>
                {BUTTONS[one]}
              </button>
            ))}
          </div>
        )}
      </header>
      {limit !== null && (
        <div className="budget-bar" role="img" aria-label={`${formatDollars(posted)} spent and ${formatDollars(held)} held of ${formatDollars(limit)}`}>
          <span className="spent" style={{ width: widthOf(posted, whole) }} />
          <span className="held" style={{ width: widthOf(held, whole) }} />
          {budget.soft_lines.map(({ percent, at, reached }) => (
            <span key={percent} className={reached ? "line reached" : "line"} style={{ left: widthOf(at ? toMicro(at.amount) : 0n, whole) }} />
          ))}
        </div>
      )}
      {budget.period && (
        <p className="muted" data-period>
          {periodEnds(budget.period)}{" "}
          {carriesOver(budget.period)}
        </p>
      )}
      <ReachedLine budget={budget} />
      <dl className="figures">
        <Figure name="Limit" value={budget.limit ? formatDollars(budget.limit) : "none"} />
        <Figure name="Spent" value={formatDollars(budget.posted)} title={formatExact(budget.posted)} mark="spent" note={limit ? formatPercent(fractionOf(posted, limit)) : ""} />
        <Figure name="Held" value={formatDollars(budget.held)} title={formatExact(budget.held)} mark="held" />
        <Figure name="Left" value={budget.left ? formatDollars(budget.left) : "–"} strong />
        {budget.weight !== null && <Figure name="Weight" value={String(budget.weight)} />}
        {budget.guaranteed_rate && toMicro(budget.guaranteed_rate.amount) > 0n && (
          <Figure name="Guaranteed" value={`${formatDollars(budget.guaranteed_rate)}/h`} />
        )}
        {budget.concurrency && <Figure name="At once" value={atOnce(budget.concurrency)} />}
        {budget.recent && <Figure name="Spent lately" value={formatDollars(budget.recent)} title={formatExact(budget.recent)} />}
      </dl>
      {budget.limit && budget.kind !== "member" && <BurnDown budget={budget} />}
      {over > 0n && (
        <p className="note bad">
          <strong>Overdraft {formatDollars(over)}.</strong> Spent and held exceed the limit: running jobs save a checkpoint and pause, and no job
          starts until the limit is raised.
        </p>
      )}
      {editing === "limit" && <LimitForm budget={budget} done={close} />}
      {editing === "grant" && <GrantForm budget={budget} done={close} />}
      {editing === "transfer" && <TransferForm budget={budget} others={others} done={close} />}
      {editing === "period" && <PeriodForm budget={budget} done={close} />}
      {editing === "lines" && <LinesForm budget={budget} done={close} />}
      {editing === "weight" && <WeightForm budget={budget} done={close} />}
      {editing === "concurrency" && <ConcurrencyForm budget={budget} done={close} />}
      {editing === "guarantee" && <GuaranteeForm budget={budget} done={close} />}
    </section>
  );
}

/** What runs of what may, such as "2 of 4 jobs, 3 of 8 GPUs". */
function atOnce({ jobs, max_jobs, gpus, max_gpus }: NonNullable<Budget["concurrency"]>): string {
  const parts = [max_jobs === null ? "" : `${jobs} of ${max_jobs} jobs`, max_gpus === null ? "" : `${gpus} of ${max_gpus} GPUs`];
  return parts.filter(Boolean).join(", ");
}

function periodEnds({ kind, begins, ends, ended }: NonNullable<Budget["period"]>): string {
  if (begins) return kind === "month" ? `Months begin ${begins}.` : `A term begins ${begins} and ends ${ends}.`;
  return `${kind === "month" ? "This month" : "This term"} ${ended ? "ended" : "ends"} ${ends}.`;
}

function carriesOver({ rollover, rollover_cap, carried_over, ended }: NonNullable<Budget["period"]>): string {
  const came = toMicro(carried_over.amount) > 0n ? ` ${formatDollars(carried_over)} came from the last one.` : "";
  if (ended) return came.trim();
  if (rollover === "none") return `What is unspent expires.${came}`;
  return `What is unspent carries over${rollover_cap ? `, at most ${formatDollars(rollover_cap)}` : ""}.${came}`;
}

/** The highest soft line that was reached, and the next one. */
function ReachedLine({ budget }: { budget: Budget }) {
  const highest = budget.soft_lines.filter(({ reached }) => reached).at(-1);
  if (!budget.limit || !highest) return null;
  const next = budget.soft_lines.find(({ reached }) => !reached);
  return (
    <p className={next ? "note" : "note warn"} data-soft-line={highest.percent}>
      {unbroken(`${highest.percent} % of this limit was reached.${next?.at ? ` The next soft line is ${next.percent} %, at ${formatDollars(next.at)}.` : ""}`)}
    </p>
  );
}

function Figure({ name, value, title, mark, note, strong }: { name: string; value: string; title?: string; mark?: string; note?: string; strong?: boolean }) {
  return (
    <div>
      <dt>
        {mark && <span className={`swatch ${mark}`} aria-hidden="true" />}
        {name}
      </dt>
      <dd title={title} className={strong ? "strong" : ""}>
        {value} {note && <span className="muted">{note}</span>}
      </dd>
    </div>
  );
}

function widthOf(part: bigint, whole: bigint): string {
  return `${fractionOf(part, whole) * 100}%`;
}
