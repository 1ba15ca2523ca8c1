import { useMutation, useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useState } from "react";
import { api, body, newKey, Problem } from "../../api/client";
import { attempts, budgets, job as jobQuery, type Job, queries } from "../../api/resources";
import { CurvesPanel } from "./curves";
import { FilesPanel } from "./files";
import { LogsPanel } from "./logs";
import { MachinesPanel } from "./machines";
import { MoneyPanel } from "./money";
import { TimelinePanel } from "./timeline";
import { followAttempts, JobFeed } from "../../live/job-feed";
import { dollars, exact, micro, sum } from "../../lib/money";
import { count, metric, percent } from "../../lib/number";
import { Confirm, CopyButton, Page, ProblemNote, ProgressBar, Skeleton, StateChip, useNow } from "../../components/parts";
import { go, Link } from "../../router";
import { between, duration } from "../../lib/time";
import { newestValidation } from "../jobs/jobs";
import { tightest } from "../budget/budget";

const SpecPanel = lazy(() => import("./spec")); // curves don't wait for a YAML library

export default function JobPage({ id }: { id: string }) {
  const [feed] = useState(() => new JobFeed(id));
  const read = useQuery(jobQuery(id));
  const job = read.data;
  const known = job !== undefined; // a stream about no job would be refused as a whole
  useEffect(() => {
    if (!known) return undefined;
    const stops = [followAttempts(feed), feed.open()];
    return () => stops.forEach((stop) => stop());
  }, [feed, known]);
  if (!job) {
    return (
      <Page title={read.error instanceof Problem && read.error.document.status === 404 ? "No such job" : "Job"}>
        {read.error ? <ProblemNote error={read.error} retry={() => void read.refetch()} /> : <Skeleton rows={6} />}
        <Link to="/">All jobs</Link>
      </Page>
    );
  }
  return <Known job={job} feed={feed} />;
}

function Known({ job, feed }: { job: Job; feed: JobFeed }) {
  const list = useQuery(attempts(job.id)).data;
  const over = job.state === "ended";
  return (
    <Page title={job.name} wide mark={<StateChip job={job} />} actions={<Actions job={job} />}>
      <div className={`sentence-line ${job.end_reason ?? ""}`}>
        <p data-sentence>{job.sentence}</p>
        {job.sizing && <p data-sizing>{job.sizing}</p>}
        <p className="dim">
          {[job.recipe, `by ${job.user}`, `team ${job.team}`].filter(Boolean).join(" · ")} · <code title={job.id}>{job.id.slice(-8)}</code>{" "}
          <CopyButton text={job.id} label="Copy id" />
          {job.retried_from && (
            <>
              {" "}
              · retried from <Link to={`/jobs/${job.retried_from}`}>{job.retried_from.slice(-8)}</Link>
            </>
          )}
        </p>
      </div>
      <Facts job={job} attempts={list?.attempts.filter((one) => one.trained).length ?? 0} lost={list?.steps_lost ?? 0} />
      <CurvesPanel feed={feed} attempts={list?.attempts ?? []} startedAt={job.first_step_at ?? job.started_at} over={over} />
      <div className="two">
        <LogsPanel feed={feed} over={over} />
        <div className="stack">
          <MoneyPanel job={job} />
          <FilesPanel job={job} />
        </div>
      </div>
      <MachinesPanel list={list} />
      <div className="two even">
        <TimelinePanel id={job.id} attempts={list?.attempts ?? []} />
        <Suspense fallback={<Skeleton />}>
          <SpecPanel job={job} />
        </Suspense>
      </div>
    </Page>
  );
}

function Facts({ job, attempts, lost }: { job: Job; attempts: number; lost: number }) {
  const now = useNow();
  const { progress, cost } = job;
  const validation = newestValidation(job);
  const budget = tightest(useQuery(budgets).data ?? []);
  return (
    <dl className="facts">
      <div className="wide">
        <dt>Progress</dt>
        <dd>
          <span className="num">
            {progress.fraction !== null ? percent(progress.fraction) : progress.step > 0 ? `step ${count(progress.step)}` : "–"}
          </span>
          <ProgressBar fraction={progress.fraction ?? (job.state === "running" ? null : 0)} label="Progress" />
          <small>
            step {count(progress.step)}
            {progress.steps_total ? ` of ${count(progress.steps_total)}` : ""}
            {progress.epoch !== null ? ` · epoch ${progress.epoch.toFixed(1)}` : ""}
            {job.state === "running" && progress.eta_s ? ` · about ${duration(progress.eta_s)} left` : ""}
          </small>
        </dd>
      </div>
      <div>
        <dt>{validation?.name ?? "Validation"}</dt>
        <dd>{validation ? metric(validation.name, validation.value) : "–"}</dd>
      </div>
      <div>
        <dt>{job.state === "ended" ? "Took" : "Since submit"}</dt>
        <dd>{duration(between(job.created_at, job.ended_at, now))}</dd>
      </div>
      <div>
        <dt>Attempts</dt>
        <dd>
          {attempts || "–"} {lost > 0 && <small>{count(lost)} steps done again</small>}
        </dd>
      </div>
      <div>
        <dt>Spent</dt>
        <dd title={`${exact(cost.spent)} settled + ${exact(cost.running)} running`}>
          {dollars(sum(cost.spent, cost.running))} <small>on demand {dollars(micro(cost.on_demand.amount))}</small>
        </dd>
      </div>
      <div>
        <dt>Budget left</dt>
        <dd>{budget?.left ? dollars(budget.left) : "–"}</dd>
      </div>
    </dl>
  );
}

function Actions({ job }: { job: Job }) {
  const [asking, setAsking] = useState(false);
  const known = { params: { path: { job_id: job.id } } };
  const keyed = () => ({ params: { ...known.params, header: { "Idempotency-Key": newKey() } } });
  const stop = useMutation({
    mutationFn: async () => body(await api.POST("/v1/jobs/{job_id}:stop", { ...keyed(), body: { mode: "stop" } })),
    onSuccess: take,
    onSettled: () => setAsking(false),
  });
  const resume = useMutation({ mutationFn: async () => body(await api.POST("/v1/jobs/{job_id}:resume", keyed())), onSuccess: take });
  const retry = useMutation({
    mutationFn: async () => body(await api.POST("/v1/jobs/{job_id}:retry", keyed())),
    onSuccess: (fresh) => {
      take(fresh);
      go(`/jobs/${fresh.id}`);
    },
  });
  const error = stop.error ?? resume.error ?? retry.error;
  const stoppable = job.state !== "ended" && job.state !== "stopping";
  return (
    <div className="actions">
      {job.state === "paused" && (
        <button type="button" className="primary" disabled={resume.isPending} onClick={() => resume.mutate()}>
          Resume
        </button>
      )}
      {job.state === "ended" && (
        <button type="button" disabled={retry.isPending} onClick={() => retry.mutate()}>
          Retry
        </button>
      )}
      {stoppable && (
        <button type="button" className="danger quiet" onClick={() => setAsking(true)}>
          Stop
        </button>
      )}
      {asking && (
        <Confirm title={`Stop ${job.name}?`} word="Stop the job" busy={stop.isPending} act={() => stop.mutate()} close={() => setAsking(false)}>
          <p>
            {job.state === "running" || job.state === "launching"
              ? "It saves a checkpoint, its machines end within seconds, and what is held for them is given back. What they have cost so far stays spent."
              : "It leaves the queue. Nothing is running for it, and nothing more is spent."}
          </p>
          <p className="dim">A stopped job can't go on, but Retry starts a new one from its last checkpoint.</p>
        </Confirm>
      )}
      <ProblemNote error={error} />
    </div>
  );
}

function take(job: Job): void {
  queries.setQueryData(jobQuery(job.id).queryKey, job);
  void queries.invalidateQueries({ queryKey: ["jobs"] });
}
