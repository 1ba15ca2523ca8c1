/** The live curves and log of one job. Charts and the log read from it once per frame, outside React's query cache. */
import { api, body, type Schemas } from "../api/client";
import { attempts, queries, refetch } from "../api/queries";
import { type Curves, mergeUpdate, NO_CURVES } from "./curves";
import { appendLines, type Log, EMPTY_LOG } from "../lib/log-lines";
import { type Message, stream } from "./stream";

export const INITIAL_TAIL = 2000;
export const MAX_TAIL = 10_000;
/** Attempts, cost and artifacts are fetched again at most once in this time. */
const REFETCH_INTERVAL_MS = 700;

export class JobFeed {
  curves: Curves = NO_CURVES;
  log: Log = EMPTY_LOG;
  /** The log quota was reached: later lines were dropped. */
  truncated = false;
  /** Curves and log were fetched: what they lack does not exist. */
  loaded = false;
  error: unknown = null;
  private tail = INITIAL_TAIL;
  private listeners = new Set<() => void>();
  private refetchTimer: number | null = null;

  constructor(readonly id: string) {}

  /** Fetch, then follow the stream until the returned function is called. */
  open(): () => void {
    const close = stream.subscribe({
      topics: [`job:${this.id}`],
      receive: (messages) => this.receive(messages),
      refetchAll: () => void this.refetch(),
    });
    void this.refetch();
    return () => {
      close();
      if (this.refetchTimer !== null) window.clearTimeout(this.refetchTimer);
    };
  }

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  get mayHaveEarlierLines(): boolean {
    return this.tail < MAX_TAIL && this.log.lines.length >= this.tail;
  }

  async loadEarlierLines(): Promise<void> {
    this.tail = MAX_TAIL;
    await this.fetchLog();
    this.notifyListeners();
  }

  /** Set the generations from the attempts list, which knows where steps are rolled back before new steps arrive. */
  setGenerations(generations: Schemas["Generation"][]): void {
    this.curves = mergeUpdate(this.curves, { curves: [], generations });
    this.notifyListeners();
  }

  refetch = async (): Promise<void> => {
    try {
      const [answer] = await Promise.all([
        api.GET("/v1/jobs/{job_id}/metrics", { params: { path: { job_id: this.id }, query: { attempts: "all" } } }),
        this.fetchLog(),
      ]);
      this.curves = mergeUpdate(this.curves, body(answer));
      this.loaded = true;
      this.error = null;
    } catch (error) {
      this.error = error;
    }
    this.notifyListeners();
  };

  private async fetchLog(): Promise<void> {
    const answer = await api.GET("/v1/jobs/{job_id}/logs", {
      params: { path: { job_id: this.id }, query: { tail: this.tail } },
    });
    const logs = body(answer) as Schemas["Logs"];
    this.truncated = logs.truncated;
    this.log = appendLines(appendLines(EMPTY_LOG, logs.lines), this.log.lines); // fetched lines are older than or the same as streamed ones
  }

  private receive(messages: readonly Message[]): void {
    let changed = false;
    for (const message of messages) {
      if (message.name === "points" && message.data.job === this.id) {
        this.curves = mergeUpdate(this.curves, message.data);
        changed = true;
      } else if (message.name === "logs" && message.data.job === this.id) {
        this.log = appendLines(this.log, message.data.lines);
        changed = true;
      } else if (message.name === "event" && message.data.job === this.id) {
        this.addEvent(message.data);
      }
    }
    if (changed) this.notifyListeners();
  }

  private addEvent(event: Schemas["Event"]): void {
    const events = ["job", this.id, "events"];
    if (queries.getQueryData(events) === undefined) refetch({ queryKey: events });
    queries.setQueryData<Schemas["Event"][]>(events, (old) =>
      old && !old.some(({ cursor }) => cursor === event.cursor) ? [...old, event] : old,
    );
    this.refetchTimer ??= window.setTimeout(() => {
      this.refetchTimer = null;
      for (const part of ["attempts", "cost", "artifacts"]) {
        refetch({ queryKey: ["job", this.id, part] });
      }
    }, REFETCH_INTERVAL_MS);
  }

  private notifyListeners(): void {
    for (const listener of this.listeners) listener();
  }
}

/** Update a feed's generations whenever the attempts are fetched. */
export function followAttempts(feed: JobFeed): () => void {
  const key = attempts(feed.id).queryKey;
  return queries.getQueryCache().subscribe(({ query, type }) => {
    if (type !== "updated" || query.queryKey.join() !== key.join()) return;
    const data = query.state.data as Schemas["AttemptList"] | undefined;
    if (data) feed.setGenerations(data.attempts.flatMap((attempt) => attempt.generations));
  });
}
