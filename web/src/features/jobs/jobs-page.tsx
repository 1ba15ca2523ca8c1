import { useInfiniteQuery } from "@tanstack/react-query";
import { type FormEvent, useEffect, useRef, useState } from "react";
import { type Job, jobPages } from "../../api/queries";
import { formatDollars, formatExact, sumMicro } from "../../lib/money";
import { headline } from "../../lib/labels";
import { formatCount, formatMetric } from "../../lib/number";
import { Async } from "../../components/async";
import { Command } from "../../components/copy-button";
import { Page } from "../../components/page";
import { ProgressBar } from "../../components/progress-bar";
import { Sentence } from "../../components/sentence";
import { StatusBadge } from "../../components/status-badge";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { useRights } from "../../lib/use-rights";
import { useNow } from "../../lib/use-now";
import { navigate, Link, useLocation } from "../../router";
import { formatAgo, formatDuration } from "../../lib/time";

export function JobsPage() {
  const filter = useLocation().searchParams.get("filter") ?? "";
  const list = useInfiniteQuery(jobPages(filter));
  const { run } = useRights();
  return (
    <Page title="Jobs" wide actions={<><Filter key={filter} filter={filter} />{run && <Link to="/new" className="button primary">New job</Link>}</>}>
      <Async reading={list} rows={6}>
        {({ pages }) => {
          const jobs = pages.flatMap((page) => page.jobs);
          return jobs.length > 0 ? <Table jobs={jobs} /> : filter ? <NoMatch filter={filter} /> : <NoJobs />;
        }}
      </Async>
      {list.hasNextPage && (
        <button type="button" className="more" disabled={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>
          {list.isFetchingNextPage ? "Loading…" : "Load more"}
        </button>
      )}
    </Page>
  );
}

function Table({ jobs }: { jobs: Job[] }) {
  const now = useNow(5000);
  return (
    <TableScroll label="Jobs">
      <table className="jobs stacked">
        <thead>
          <tr>
            <th>State</th>
            <th>Job</th>
            <th className="grow">Progress</th>
            <th className="num">Validation</th>
            <th className="num">Spent</th>
            <th className="num">Submitted</th>
          </tr>
        </thead>
        <tbody>
          {jobs.map((job) => (
            <Row key={job.id} job={job} now={now} />
          ))}
        </tbody>
      </table>
    </TableScroll>
  );
}

function Row({ job, now }: { job: Job; now: number }) {
  const { progress, cost } = job;
  const validation = latestValidation(job);
  const ended = job.state === "ended";
  return (
    <tr data-job={job.id}>
      <td>
        <StatusBadge job={job} />
      </td>
      <td className="name">
        <Link to={`/jobs/${job.id}`}>{job.name}</Link>
        <span className="muted">{[job.recipe, job.user].filter(Boolean).join(" · ")}</span>
      </td>
      <td className="grow">
        <ProgressBar
          fraction={progress.fraction ?? (ended ? (progress.step ? 1 : 0) : job.state === "running" ? null : 0)}
          label={`Progress of ${job.name}`}
          tone={job.state === "running" ? "" : "calm"}
        />
        <span className="status-text">
          <span><Sentence text={headline(job)} /></span>
          {progress.step > 0 && (
            <span className="muted num">
              step {formatCount(progress.step)}
              {progress.steps_total ? ` of ${formatCount(progress.steps_total)}` : ""}
              {job.state === "running" && progress.eta_s ? ` · ${formatDuration(progress.eta_s)} left` : ""}
            </span>
          )}
        </span>
      </td>
      <td className="num" data-label="Validation">{validation ? <span title={validation.name}>{formatMetric(validation.name, validation.value)}</span> : <span className="muted">–</span>}</td>
      <td className="num" data-label="Spent" title={`${formatExact(cost.spent)} settled, ${formatExact(cost.running)} accrued (${cost.price_basis} prices)`}>
        {formatDollars(sumMicro(cost.spent, cost.running))}
      </td>
      <td className="num muted" data-label="Submitted"><Time at={job.created_at} text={formatAgo(job.created_at, now)} /></td>
    </tr>
  );
}

export function latestValidation(job: Pick<Job, "latest" | "result">): { name: string; value: number } | null {
  const known = { ...job.latest, ...job.result } as Record<string, unknown>;
  for (const name of ["val/acc", "val/loss", ...Object.keys(known).filter((one) => one.startsWith("val/"))]) {
    const value = known[name];
    if (typeof value === "number" || typeof value === "string") return { name, value: Number(value) };
  }
  return null;
}

const FILTER_EXAMPLES = ["status=running", "status=queued", "status=failed", "recipe~digits", "user=admin"];

function Filter({ filter }: { filter: string }) {
  const [text, setText] = useState(filter);
  const box = useRef<HTMLInputElement>(null);
  useEffect(() => {
    function focus(event: KeyboardEvent) {
      const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select");
      if (event.key !== "/" || typing || event.metaKey || event.ctrlKey) return;
      event.preventDefault();
      box.current?.focus();
    }
    window.addEventListener("keydown", focus);
    return () => window.removeEventListener("keydown", focus);
  }, []);
  function submit(event: FormEvent) {
    event.preventDefault();
    navigate(text.trim() ? `/?${new URLSearchParams({ filter: text.trim() })}` : "/");
  }
  return (
    <form className="filter" role="search" onSubmit={submit}>
      <input
        ref={box}
        type="search"
        list="filters"
        aria-label="Filter jobs"
        placeholder="status=running"
        value={text}
        maxLength={500}
        onChange={(event) => {
          setText(event.target.value);
          if (event.target.value === "" && filter !== "") navigate("/");
        }}
      />
      <datalist id="filters">
        {FILTER_EXAMPLES.map((one) => (
          <option key={one} value={one}>
            {one}
          </option>
        ))}
      </datalist>
    </form>
  );
}

function NoMatch({ filter }: { filter: string }) {
  return (
    <div className="empty">
      <p>
        No jobs match <code>{filter}</code>.
      </p>
      <Link to="/" className="button">Show all jobs</Link>
    </div>
  );
}

const EXAMPLE_RECIPE = "digits/quickstart";

function NoJobs() {
  return (
    <div className="empty">
      <h2>No jobs yet</h2>
      <p>Start with a small example: it trains a classifier of handwritten digits on two spot machines in half a minute and downloads nothing.</p>
      <Link to={`/new?recipe=${encodeURIComponent(EXAMPLE_RECIPE)}`} className="button primary">Train it</Link>
      <p className="muted">or from a terminal</p>
      <Command text={`shoestring submit ${EXAMPLE_RECIPE} resources.nodes=2 --watch`} />
    </div>
  );
}

