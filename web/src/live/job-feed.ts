/** What streams of one job: its curves and its log. Charts and the log draw from here, once per frame, past React's data. */
import { api, body, type Schemas } from "../api/client";
import { attempts, queries, readAgain } from "../api/resources";
import { type Curves, EMPTY, merge } from "./curves";
import { appended, type Log, NO_LOG } from "../lib/lines";
import { type Message, stream } from "./stream";

export const TAIL = 2000;
export const LONGEST_TAIL = 10_000;
/** A state behind the tables is read again at most so often. */
const REREAD_MS = 700;

export class JobFeed {
  curves: Curves = EMPTY;
  log: Log = NO_LOG;
  /** The service kept fewer lines than were written. */
  truncated = false;
  loading = true;
  error: unknown = null;
  private tail = TAIL;
  private listeners = new Set<() => void>();
  private timer: number | null = null;

  constructor(readonly id: string) {}

  /** Read, then follow; ends with the returned function. */
  open(): () => void {
    const close = stream.subscribe({
      topics: [`job:${this.id}`],
      receive: (messages) => this.receive(messages),
      reread: () => void this.read(),
    });
    void this.read();
    return () => {
      close();
      if (this.timer !== null) window.clearTimeout(this.timer);
    };
  }

  subscribe = (changed: () => void): (() => void) => {
    this.listeners.add(changed);
    return () => this.listeners.delete(changed);
  };

  get mayHaveEarlierLines(): boolean {
    return this.tail < LONGEST_TAIL && this.log.lines.length >= this.tail;
  }

  async loadEarlierLines(): Promise<void> {
    this.tail = LONGEST_TAIL;
    await this.readLog();
    this.tell();
  }

  /** Generations as the attempts know them: they say where lost work begins before its replacement has stepped. */
  learn(generations: Schemas["Generation"][]): void {
    this.curves = merge(this.curves, { curves: [], generations });
    this.tell();
  }

  private async read(): Promise<void> {
    try {
      const [answer] = await Promise.all([
        api.GET("/v1/jobs/{job_id}/metrics", { params: { path: { job_id: this.id }, query: { attempts: "all" } } }),
        this.readLog(),
      ]);
      this.curves = merge(this.curves, body(answer));
      this.error = null;
    } catch (error) {
      this.error = error;
    }
    this.loading = false;
    this.tell();
  }

  private async readLog(): Promise<void> {
    const answer = await api.GET("/v1/jobs/{job_id}/logs", {
      params: { path: { job_id: this.id }, query: { tail: this.tail } },
    });
    const read = body(answer) as Schemas["Logs"];
    this.truncated = read.truncated;
    this.log = appended(appended(NO_LOG, read.lines), this.log.lines); // what was read is older, or the same
  }

  private receive(messages: readonly Message[]): void {
    let touched = false;
    for (const message of messages) {
      if (message.name === "points" && message.data.job === this.id) {
        this.curves = merge(this.curves, message.data);
        touched = true;
      } else if (message.name === "logs" && message.data.job === this.id) {
        this.log = appended(this.log, message.data.lines);
        touched = true;
      } else if (message.name === "event" && message.data.job === this.id) {
        this.noteEvent(message.data);
      }
    }
    if (touched) this.tell();
  }

  private noteEvent(event: Schemas["Event"]): void {
    const events = ["job", this.id, "events"];
    if (queries.getQueryData(events) === undefined) readAgain({ queryKey: events });
    queries.setQueryData<Schemas["Event"][]>(events, (old) =>
      old && !old.some(({ cursor }) => cursor === event.cursor) ? [...old, event] : old,
    );
    this.timer ??= window.setTimeout(() => {
      this.timer = null;
      for (const part of ["attempts", "cost", "artifacts"]) {
        readAgain({ queryKey: ["job", this.id, part] });
      }
    }, REREAD_MS);
  }

  private tell(): void {
    for (const changed of this.listeners) changed();
  }
}

/** Keep a feed's generations those of the attempts table. */
export function followAttempts(feed: JobFeed): () => void {
  const key = attempts(feed.id).queryKey;
  return queries.getQueryCache().subscribe(({ query, type }) => {
    if (type !== "updated" || query.queryKey.join() !== key.join()) return;
    const data = query.state.data as Schemas["AttemptList"] | undefined;
    if (data) feed.learn(data.attempts.flatMap((attempt) => attempt.generations));
  });
}
