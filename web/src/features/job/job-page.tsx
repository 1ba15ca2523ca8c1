import { useMutation, useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useState } from "react";
import { api, body, newIdempotencyKey, Problem } from "../../api/client";
import { attempts, budgets, job as jobQuery, type Job, queries, queue } from "../../api/queries";
import { CurvesPanel } from "./curves-panel";
import { ArtifactsPanel } from "./artifacts-panel";
import { LogsPanel } from "./logs-panel";
import { MachinesPanel } from "./machines-panel";
import { CostPanel } from "./cost-panel";
import { TimelinePanel } from "./timeline-panel";
import { followAttempts, JobFeed } from "../../live/job-feed";
import { shortId } from "../../lib/labels";
import { formatDollars, formatExact, toMicro, sumMicro } from "../../lib/money";
import { counted, formatCount, formatMetric, formatPercent } from "../../lib/number";
import { ConfirmDialog } from "../../components/confirm-dialog";
import { CopyButton } from "../../components/copy-button";
import { Page } from "../../components/page";
import { ProblemNote } from "../../components/problem-note";
import { ProgressBar } from "../../components/progress-bar";
import { Sentence } from "../../components/sentence";
import { Skeleton } from "../../components/skeleton";
import { StatusBadge } from "../../components/status-badge";
import { useRights } from "../../lib/use-rights";
import { useNow } from "../../lib/use-now";
import { navigate, Link } from "../../router";
import { secondsBetween, formatDuration } from "../../lib/time";
import { latestValidation } from "../jobs/jobs-page";
import { tightestBudget } from "../../lib/tightest-budget";

const SpecPanel = lazy(() => import("./spec-panel")); // curves don't wait for a YAML library

export default function JobPage({ id }: { id: string }) {
  const [feed] = useState(() => new JobFeed(id));
  const read = useQuery(jobQuery(id));
  const job = read.data;
  const exists = job !== undefined; // the service rejects a stream of an unknown job
  useEffect(() => {
    if (!exists) return undefined;
    const closers = [followAttempts(feed), feed.open()];
    return () => closers.forEach((close) => close());
  }, [feed, exists]);
  if (!job) {
    return (
      <Page title={read.error instanceof Problem && read.error.document.status === 404 ? "Job not found" : "Job"}>
        {read.error ? <ProblemNote error={read.error} retry={() => void read.refetch()} /> : <Skeleton rows={6} />}
        <Link to="/">All jobs</Link>
      </Page>
    );
  }
  return <JobDetails job={job} feed={feed} />;
}

function JobDetails({ job, feed }: { job: Job; feed: JobFeed }) {
  const attemptList = useQuery(attempts(job.id));
  const list = attemptList.data;
  const ended = job.state === "ended";
  return (
    <Page title={job.name} wide badge={<StatusBadge job={job} />} actions={<Actions job={job} />}>
      <div className="status-line">
        <p data-status-text>
          <Sentence text={job.status_text} />
          {job.wait_reason === "budget" && job.reason?.facts.own !== true && (
            <>
              {" "}
              <Link to="/budget">Raise it or ask for more</Link>
            </>
          )}
        </p>
        {job.state === "queued" && <QueuedOutlook id={job.id} />}
        {job.sizing && <p data-sizing><Sentence text={job.sizing.text} /></p>}
        {job.deadline && <p data-deadline><Sentence text={job.deadline.text} /></p>}
        {job.outlasts_notice && !ended && <p data-outlasts-notice><Sentence text={job.outlasts_notice.text} /></p>}
        <p className="muted">
          {[job.recipe, `by ${job.user}`, `team ${job.team}`].filter(Boolean).join(" · ")} · <code title={job.id}>{shortId(job.id)}</code>{" "}
          <CopyButton text={job.id} label="Copy id" />
          {job.retried_from && (
            <>
              {" "}
              · retried from <Link to={`/jobs/${job.retried_from}`}>{shortId(job.retried_from)}</Link>
            </>
          )}
        </p>
      </div>
      <Facts job={job} attempts={list?.attempts.filter(({ trained, state }) => trained || state !== "closed").length ?? 0} recomputed={list?.rolled_back_steps ?? 0} />
      <CurvesPanel feed={feed} attempts={list?.attempts ?? []} startedAt={job.first_step_at ?? job.started_at} ended={ended} />
      <div className="columns">
        <LogsPanel feed={feed} ended={ended} />
        <div className="stack">
          <CostPanel job={job} />
          <ArtifactsPanel job={job} />
        </div>
      </div>
      <MachinesPanel reading={attemptList} />
      <div className="columns even">
        <TimelinePanel id={job.id} attempts={list?.attempts ?? []} />
        <Suspense fallback={<Skeleton />}>
          <SpecPanel job={job} />
        </Suspense>
      </div>
    </Page>
  );
}

/** When a queued job is expected to start. */
function QueuedOutlook({ id }: { id: string }) {
  const entry = useQuery(queue).data?.jobs.find(({ job }) => job === id);
  if (!entry) return null;
  return (
    <p data-outlook>
      <Link to="/queue">Place {entry.position} in the queue</Link>. <Sentence text={entry.outlook.text} />
    </p>
  );
}

function Facts({ job, attempts, recomputed }: { job: Job; attempts: number; recomputed: number }) {
  const now = useNow();
  const { progress, cost } = job;
  const validation = latestValidation(job);
  const budget = tightestBudget(useQuery(budgets).data ?? [], job.user);
  return (
    <dl className="stats">
      <div className="wide">
        <dt>Progress</dt>
        <dd>
          <span className="num">
            {progress.fraction !== null ? formatPercent(progress.fraction) : progress.step > 0 ? `step ${formatCount(progress.step)}` : "–"}
          </span>
          <ProgressBar fraction={progress.fraction ?? (job.state === "running" ? null : 0)} label="Progress" />
          <small>
            step {formatCount(progress.step)}
            {progress.steps_total ? ` of ${formatCount(progress.steps_total)}` : ""}
            {progress.epoch !== null ? ` · epoch ${progress.epoch.toFixed(1)}` : ""}
            {job.state === "running" && progress.eta_s ? ` · about ${formatDuration(progress.eta_s)} left` : ""}
          </small>
        </dd>
      </div>
      <div>
        <dt>{validation?.name ?? "Validation"}</dt>
        <dd>{validation ? formatMetric(validation.name, validation.value) : "–"}</dd>
      </div>
      <div>
        <dt>{job.state === "ended" ? "Duration" : "Since submission"}</dt>
        <dd>{formatDuration(secondsBetween(job.created_at, job.ended_at, now))}</dd>
      </div>
      <div>
        <dt>Attempts</dt>
        <dd>
          {attempts || "–"} {recomputed > 0 && <small>{counted(recomputed, "step")} recomputed</small>}
        </dd>
      </div>
      <div>
        <dt>Spent</dt>
        <dd title={`${formatExact(cost.spent)} settled + ${formatExact(cost.running)} accrued`}>
          {formatDollars(sumMicro(cost.spent, cost.running))} <small>on-demand {formatDollars(toMicro(cost.on_demand.amount))}</small>
        </dd>
      </div>
      <div>
        <dt>Budget left</dt>
        <dd>{budget?.left ? formatDollars(budget.left) : "–"}</dd>
      </div>
    </dl>
  );
}

function Actions({ job }: { job: Job }) {
  const [confirming, setConfirming] = useState(false);
  const { run } = useRights();
  const known = { params: { path: { job_id: job.id } } };
  const keyed = () => ({ params: { ...known.params, header: { "Idempotency-Key": newIdempotencyKey() } } });
  const stop = useMutation({
    mutationFn: async () => body(await api.POST("/v1/jobs/{job_id}:stop", { ...keyed(), body: { mode: "stop" } })),
    onSuccess: updateCaches,
    onSettled: () => setConfirming(false),
  });
  const resume = useMutation({ mutationFn: async () => body(await api.POST("/v1/jobs/{job_id}:resume", keyed())), onSuccess: updateCaches });
  const retry = useMutation({ mutationFn: async () => body(await api.POST("/v1/jobs/{job_id}:retry", keyed())), onSuccess: updateCaches });
  /** Leads to the new job, unless the reader has gone elsewhere meanwhile. */
  const startRetry = () => retry.mutate(undefined, { onSuccess: ({ id }) => navigate(`/jobs/${id}`) });
  const error = stop.error ?? resume.error ?? retry.error;
  const stoppable = job.state !== "ended" && job.state !== "stopping";
  const [wasStoppable] = useState(stoppable);
  if (!run) return null;
  return (
    <div className="actions">
      {job.wait_reason === "resume" && (
        <button type="button" className="primary" disabled={resume.isPending} onClick={() => resume.mutate()}>
          Resume
        </button>
      )}
      {job.state === "ended" && (
        <button type="button" disabled={retry.isPending} onClick={startRetry}>
          Retry
        </button>
      )}
      {stoppable && (
        <button type="button" className="danger quiet" onClick={() => setConfirming(true)}>
          Stop
        </button>
      )}
      {/* Its place stays empty: a job that ends while somebody reaches for Stop is not to be started again. */}
      {!stoppable && wasStoppable && <span className="button placeholder" aria-hidden="true">Stop</span>}
      {confirming && (
        <ConfirmDialog title={`Stop ${job.name}?`} confirmLabel="Stop job" busy={stop.isPending} confirm={() => stop.mutate()} close={() => setConfirming(false)}>
          <p>
            {job.state === "running" || job.state === "launching"
              ? "The job saves a checkpoint, its machines are terminated within seconds, and the amount held for them is released. What they have cost so far is charged."
              : "The job leaves the queue. It has no machines and causes no further cost."}
          </p>
          <p className="muted">A stopped job can't be resumed, but Retry starts a new job from its last checkpoint.</p>
        </ConfirmDialog>
      )}
      <ProblemNote error={error} />
    </div>
  );
}

function updateCaches(job: Job): void {
  queries.setQueryData(jobQuery(job.id).queryKey, job);
  void queries.invalidateQueries({ queryKey: ["jobs"] });
}
