import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { type FormEvent, useEffect, useRef, useState } from "react";
import { type Job, jobPages, recipes } from "../../api/resources";
import { dollars, exact, sum } from "../../lib/money";
import { count, metric } from "../../lib/number";
import { Command, Page, ProblemNote, ProgressBar, Skeleton, StateChip, useNow } from "../../components/parts";
import { go, Link, useAddress } from "../../router";
import { ago, duration } from "../../lib/time";

export function JobsPage() {
  const filter = useAddress().searchParams.get("filter") ?? "";
  const list = useInfiniteQuery(jobPages(filter));
  const jobs = list.data?.pages.flatMap((page) => page.jobs) ?? [];
  return (
    <Page title="Jobs" wide actions={<><Filter key={filter} filter={filter} /><Link to="/new" className="button primary">New job</Link></>}>
      <ProblemNote error={list.error} retry={() => void list.refetch()} />
      {list.isPending ? (
        <Skeleton rows={6} />
      ) : jobs.length > 0 ? (
        <Table jobs={jobs} />
      ) : (
        !list.error && (filter ? <NoMatch filter={filter} /> : <NoJobs />)
      )}
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
    <div className="table-box">
      <table className="jobs">
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
    </div>
  );
}

function Row({ job, now }: { job: Job; now: number }) {
  const { progress, cost } = job;
  const best = newestValidation(job);
  const over = job.state === "ended";
  return (
    <tr data-job={job.id}>
      <td>
        <StateChip job={job} />
      </td>
      <td className="name">
        <Link to={`/jobs/${job.id}`}>{job.name}</Link>
        <span className="dim">{[job.recipe, job.user].filter(Boolean).join(" · ")}</span>
      </td>
      <td className="grow">
        <ProgressBar
          fraction={progress.fraction ?? (over ? (progress.step ? 1 : 0) : job.state === "running" ? null : 0)}
          label={`Progress of ${job.name}`}
          tone={job.state === "running" ? "" : "calm"}
        />
        <span className="sentence">
          <span>{job.sentence}</span>
          {progress.step > 0 && (
            <span className="dim num">
              step {count(progress.step)}
              {progress.steps_total ? ` of ${count(progress.steps_total)}` : ""}
              {job.state === "running" && progress.eta_s ? ` · ${duration(progress.eta_s)} left` : ""}
            </span>
          )}
        </span>
      </td>
      <td className="num" data-label="Validation">{best ? <span title={best.name}>{metric(best.name, best.value)}</span> : <span className="dim">–</span>}</td>
      <td className="num" data-label="Spent" title={`${exact(cost.spent)} settled, ${exact(cost.running)} running (${cost.price_basis} prices)`}>
        {dollars(sum(cost.spent, cost.running))}
      </td>
      <td className="num dim" data-label="Submitted">{ago(job.created_at, now)}</td>
    </tr>
  );
}

export function newestValidation(job: Pick<Job, "latest" | "result">): { name: string; value: number } | null {
  const known = { ...job.latest, ...job.result } as Record<string, unknown>;
  for (const name of ["val/acc", "val/loss", ...Object.keys(known).filter((one) => one.startsWith("val/"))]) {
    const found = known[name];
    if (typeof found === "number" || typeof found === "string") return { name, value: Number(found) };
  }
  return null;
}

const EXAMPLES = ["state=running", "state=queued", "state=ended", "recipe~digits", "user=admin"];

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
    go(text.trim() ? `/?${new URLSearchParams({ filter: text.trim() })}` : "/");
  }
  return (
    <form className="filter" role="search" onSubmit={submit}>
      <input
        ref={box}
        type="search"
        list="filters"
        aria-label="Filter jobs"
        placeholder="Filter, such as state=running"
        value={text}
        maxLength={500}
        onChange={(event) => {
          setText(event.target.value);
          if (event.target.value === "" && filter !== "") go("/");
        }}
      />
      <datalist id="filters">
        {EXAMPLES.map((one) => (
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
        No job matches <code>{filter}</code>.
      </p>
      <Link to="/" className="button">Show all jobs</Link>
    </div>
  );
}

function NoJobs() {
  const first = useQuery(recipes).data?.[0]?.name ?? "digits/quickstart";
  return (
    <div className="empty">
      <h2>No jobs yet</h2>
      <p>The first one takes half a minute and nothing to download: a network learns handwritten digits on two spot machines.</p>
      <Link to={`/new?recipe=${encodeURIComponent(first)}`} className="button primary">Train it</Link>
      <p className="dim">or from a terminal</p>
      <Command text={`shoestring submit ${first} resources.nodes=2 --watch`} />
    </div>
  );
}

