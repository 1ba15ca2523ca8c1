/**
 * The one live connection of this tab. Whoever wants something live subscribes here with topics; the connection carries
 * the union of them and is opened again, from the last cursor, when that changes. What arrives is handed out once per
 * animation frame, so that a burst costs one paint.
 *
 * A reader must `reread` what it shows when told to: after a connection that began without a cursor, and after the
 * service said `resync` (the cursor was too old).
 */
import type { Schemas } from "../api/client";

export type Message =
  | { name: "job"; data: Schemas["Job"] }
  | { name: "points"; data: Schemas["PointsMessage"] }
  | { name: "logs"; data: Schemas["LogsMessage"] }
  | { name: "event"; data: Schemas["Event"] }
  | { name: "budget"; data: Schemas["Budget"] };

export type Status = "connecting" | "live" | "reconnecting" | "asleep";

export interface Reader {
  topics: readonly string[];
  receive: (messages: readonly Message[]) => void;
  reread: () => void;
}

const NAMES = ["job", "points", "logs", "event", "budget"] as const;
const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 10_000;
/** A tab that nobody sees gives its connection back after so long: browsers allow about six to one host. */
const SLEEP_AFTER_MS = 60_000;

/** What the stream needs of a browser. */
export interface Surroundings {
  open: (address: string) => EventSource;
  nextFrame: (act: () => void) => void;
  later: (act: () => void, ms: number) => number;
  cancel: (timer: number) => void;
  random: () => number;
}

export class Stream {
  private readers = new Set<Reader>();
  private watchers = new Set<() => void>();
  private source: EventSource | null = null;
  private connected: string | null = null;
  private cursor: string | null = null;
  private queue: Message[] = [];
  private framed = false;
  private failures = 0;
  private timer: number | null = null;
  private asleep = false;
  private state: Status = "connecting";
  /** Called when a connection could not be opened: perhaps the session has ended. */
  onRefused: () => void = () => {};

  constructor(private readonly around: Surroundings) {}

  get status(): Status {
    return this.state;
  }

  watch = (changed: () => void): (() => void) => {
    this.watchers.add(changed);
    return () => this.watchers.delete(changed);
  };

  subscribe(reader: Reader): () => void {
    this.readers.add(reader);
    this.reconsider();
    return () => {
      this.readers.delete(reader);
      this.reconsider();
    };
  }

  sleep(): void {
    this.asleep = true;
    this.disconnect();
    this.say("asleep");
  }

  wake(): void {
    this.asleep = false;
    this.failures = 0;
    if (this.source === null) this.schedule(0);
  }

  private topics(): string {
    return [...new Set([...this.readers].flatMap((reader) => reader.topics))].sort().join(",");
  }

  /** Soon, because a page changes several subscriptions at once. */
  private reconsider(): void {
    if (this.failures === 0) this.schedule(0);
  }

  private schedule(ms: number): void {
    if (this.timer !== null) this.around.cancel(this.timer);
    this.timer = this.around.later(() => {
      this.timer = null;
      this.connect();
    }, ms);
  }

  private connect(): void {
    const topics = this.topics();
    if (this.asleep || (topics === this.connected && this.source)) return;
    this.disconnect();
    if (topics === "") return;
    const fresh = this.cursor === null;
    const source = this.around.open(address(topics, this.cursor));
    this.source = source;
    this.connected = topics;
    source.addEventListener("open", () => {
      this.failures = 0;
      this.say("live");
      if (fresh) this.reread();
    });
    source.addEventListener("error", () => this.retry(source));
    for (const name of NAMES) {
      source.addEventListener(name, (event) => this.take(name, event as MessageEvent<string>));
    }
    source.addEventListener("resync", (event) => {
      this.cursor = (event as MessageEvent<string>).lastEventId || null;
      this.queue = [];
      this.reread();
    });
  }

  private disconnect(): void {
    this.source?.close();
    this.source = null;
    this.connected = null;
  }

  private retry(source: EventSource): void {
    if (source !== this.source) return;
    const opened = this.failures === 0 && this.state === "live";
    this.disconnect();
    this.say("reconnecting");
    if (!opened) {
      this.cursor = null; // it may be what was refused; without one everything is read again
      this.onRefused();
    }
    this.schedule(backOff(this.failures++, this.around.random()));
  }

  private take(name: Message["name"], event: MessageEvent<string>): void {
    if (event.lastEventId) this.cursor = event.lastEventId;
    this.queue.push({ name, data: JSON.parse(event.data) } as Message);
    if (this.framed) return;
    this.framed = true;
    this.around.nextFrame(() => {
      this.framed = false;
      const messages = this.queue;
      this.queue = [];
      if (messages.length > 0) for (const reader of this.readers) reader.receive(messages);
    });
  }

  private reread(): void {
    for (const reader of this.readers) reader.reread();
  }

  private say(state: Status): void {
    if (this.state === state) return;
    this.state = state;
    for (const changed of this.watchers) changed();
  }
}

export function address(topics: string, cursor: string | null): string {
  const query = new URLSearchParams({ topics });
  if (cursor) query.set("cursor", cursor);
  return `/v1/stream?${query}`;
}

/** Milliseconds to the next try: doubling, bounded, and spread so that many tabs don't come back as one. */
export function backOff(failures: number, random: number): number {
  return Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** failures) * (0.5 + random / 2);
}

export const stream = new Stream({
  open: (url) => new EventSource(url),
  // A hidden tab has no frames.
  nextFrame: (act) => (document.hidden ? setTimeout(act, 250) : requestAnimationFrame(act)),
  later: (act, ms) => window.setTimeout(act, ms),
  cancel: (timer) => window.clearTimeout(timer),
  random: Math.random,
});

/** Give the connection back while nobody looks, and try at once when the network returns. */
export function followVisibility(): void {
  let timer: number | undefined;
  document.addEventListener("visibilitychange", () => {
    window.clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(() => stream.sleep(), SLEEP_AFTER_MS);
    else stream.wake();
  });
  window.addEventListener("online", () => stream.wake());
}
