/** The small pieces that every page is made of. */
import { type ReactNode, useEffect, useId, useRef, useState } from "react";
import { Problem } from "../api/client";
import type { Job } from "../api/resources";
import { percent } from "../lib/number";

export function Page({ title, mark, actions, children, wide = false }: {
  title: string;
  /** Stands beside the title; `actions` stand at the far end. */
  mark?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
  wide?: boolean;
}) {
  useEffect(() => {
    document.title = `${title} · Shoestring`;
  }, [title]);
  return (
    <main id="main" className={wide ? "page wide" : "page"} tabIndex={-1}>
      <div className="page-head">
        <h1>{title}</h1>
        {mark}
        <div className="page-actions">{actions}</div>
      </div>
      {children}
    </main>
  );
}

const FAILED = new Set(["user_code", "out_of_memory", "nan", "data", "image", "no_capacity", "quota", "account", "infrastructure"]);

/** State in a word, with a colour and a mark that don't depend on each other. */
export function StateChip({ job }: { job: Pick<Job, "state" | "end_reason"> }) {
  const [tone, word] = tell(job);
  return (
    <span className={`chip ${tone}`} data-state={job.state}>
      <span className="dot" aria-hidden="true" />
      {word}
    </span>
  );
}

function tell({ state, end_reason }: Pick<Job, "state" | "end_reason">): [tone: string, word: string] {
  if (state !== "ended") return [state, state === "awaiting_approval" ? "needs approval" : state];
  if (end_reason === "succeeded" || end_reason === "goal_reached") return ["good", "finished"];
  if (end_reason && FAILED.has(end_reason)) return ["bad", "failed"];
  return ["over", "stopped"];
}

export function ProgressBar({ fraction, label, tone = "" }: { fraction: number | null; label: string; tone?: string }) {
  const known = fraction !== null;
  return (
    <span
      className={`bar ${tone} ${known ? "" : "unknown"}`}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      {...(known ? { "aria-valuenow": Math.round(fraction * 100), "aria-valuetext": percent(fraction) } : {})}
    >
      <span style={{ width: `${(fraction ?? 0) * 100}%` }} />
    </span>
  );
}

/** An error in words, with what to do about it. */
export function ProblemNote({ error, retry }: { error: unknown; retry?: () => void }) {
  if (!error) return null;
  const known = error instanceof Problem ? error.document : null;
  return (
    <div className="note bad" role="alert">
      <strong>{known?.title ?? "Something went wrong"}</strong>
      <p>{known?.detail ?? String((error as Error).message ?? error)}</p>
      {known?.hint && <p className="dim">{known.hint}</p>}
      {retry && (
        <button type="button" className="small" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Skeleton({ rows = 3 }: { rows?: number }) {
  return (
    <div className="skeleton" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, i) => (
        <span key={i} />
      ))}
    </div>
  );
}

export function CopyButton({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  async function copy() {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  }
  if (!navigator.clipboard) return null; // plain http to another host
  return (
    <button type="button" className="small quiet" onClick={() => void copy()}>
      <span aria-live="polite">{done ? "Copied" : label}</span>
    </button>
  );
}

export function Command({ text }: { text: string }) {
  return (
    <span className="command">
      <code>{text}</code>
      <CopyButton text={text} />
    </span>
  );
}

/** A panel with a heading; `fold` lets it be closed. */
export function Panel({ title, aside, children, className = "" }: { title: string; aside?: ReactNode; children: ReactNode; className?: string }) {
  const id = useId();
  return (
    <section className={`panel ${className}`} aria-labelledby={id}>
      <header>
        <h2 id={id}>{title}</h2>
        {aside && <div className="aside">{aside}</div>}
      </header>
      {children}
    </section>
  );
}

/** Asks before something that can't be taken back. The browser's own dialog: focus stays inside, Escape closes. */
export function Confirm({ title, children, act, close, word, busy }: {
  title: string;
  children: ReactNode;
  act: () => void;
  close: () => void;
  word: string;
  busy: boolean;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} aria-labelledby={id} onClose={close}>
      <h2 id={id}>{title}</h2>
      {children}
      <div className="row end">
        <button type="button" onClick={close}>
          Not now
        </button>
        <button type="button" className="danger" disabled={busy} onClick={act}>
          {busy ? "One moment…" : word}
        </button>
      </div>
    </dialog>
  );
}

/** The time, said again every so often, for "4 min ago" and for clocks that run. */
export function useNow(every_ms = 1000): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every_ms);
    return () => clearInterval(timer);
  }, [every_ms]);
  return now;
}
