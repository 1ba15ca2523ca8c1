/**
 * The tab's only live connection. Subscribers name topics; the connection carries their union and is reopened from the
 * last cursor when it changes. Messages are delivered once per animation frame, so that a burst causes one paint.
 *
 * `refetchAll` is called when messages may have been missed: after a connection that started without a cursor, and after
 * `resync` (the cursor was too old).
 */
import type { Schemas } from "../api/client";

export type Message =
  | { name: "job"; data: Schemas["Job"] }
  | { name: "points"; data: Schemas["PointsMessage"] }
  | { name: "logs"; data: Schemas["LogsMessage"] }
  | { name: "event"; data: Schemas["Event"] }
  | { name: "budget"; data: Schemas["Budget"] };

export type Status = "connecting" | "live" | "reconnecting" | "asleep";

export interface Subscriber {
  topics: readonly string[];
  receive: (messages: readonly Message[]) => void;
  refetchAll: () => void;
}

const NAMES = ["job", "points", "logs", "event", "budget"] as const;
/** The service sends a ping after five seconds without messages. A connection that is silent for longer than two is dead. */
export const MAX_SILENCE_MS = 12_000;
const FIRST_RETRY_MS = 250;
const MAX_RETRY_MS = 10_000;
/** A hidden tab closes its connection after this time, because browsers allow about six connections to one host. */
const SLEEP_AFTER_MS = 60_000;

/** The browser functions that the stream uses, replaced in tests. */
export interface StreamDeps {
  open: (url: string) => EventSource;
  nextFrame: (callback: () => void) => void;
  setTimer: (callback: () => void, ms: number) => number;
  clearTimer: (timer: number) => void;
  random: () => number;
}

export class Stream {
  private subscribers = new Set<Subscriber>();
  private watchers = new Set<() => void>();
  private source: EventSource | null = null;
  private connectedTopics: string | null = null;
  private cursor: string | null = null;
  private queue: Message[] = [];
  private frameRequested = false;
  private failures = 0;
  private timer: number | null = null;
  private silenceTimer: number | null = null;
  private asleep = false;
  private state: Status = "connecting";
  /** Called when a connection could not be opened, perhaps because the session expired. */
  onRefused: () => void = () => {};

  constructor(private readonly deps: StreamDeps) {}

  get status(): Status {
    return this.state;
  }

  watch = (listener: () => void): (() => void) => {
    this.watchers.add(listener);
    return () => this.watchers.delete(listener);
  };

  /** Start at this position of the feed, from before anything was read: then nothing has to be read again. */
  startAt(cursor: string): void {
    this.cursor ??= cursor;
  }

  subscribe(subscriber: Subscriber): () => void {
    this.subscribers.add(subscriber);
    this.reconnectSoon();
    return () => {
      this.subscribers.delete(subscriber);
      this.reconnectSoon();
    };
  }

  sleep(): void {
    this.asleep = true;
    this.disconnect();
    this.setStatus("asleep");
  }

  wake(): void {
    this.asleep = false;
    this.failures = 0;
    if (this.source === null) this.schedule(0);
  }

  private topics(): string {
    return [...new Set([...this.subscribers].flatMap((subscriber) => subscriber.topics))].sort().join(",");
  }

  /** Deferred, because a page changes several subscriptions at once. */
  private reconnectSoon(): void {
    if (this.failures === 0) this.schedule(0);
  }

  private schedule(ms: number): void {
    if (this.timer !== null) this.deps.clearTimer(this.timer);
    this.timer = this.deps.setTimer(() => {
      this.timer = null;
      this.connect();
    }, ms);
  }

  private connect(): void {
    const topics = this.topics();
    if (this.asleep || (topics === this.connectedTopics && this.source)) return;
    this.disconnect();
    if (topics === "") {
      this.cursor = null; // signed out: the next to sign in may be of another team
      return;
    }
    const withoutCursor = this.cursor === null;
    const source = this.deps.open(streamUrl(topics, this.cursor));
    this.source = source;
    this.connectedTopics = topics;
    this.expectMessages(source);
    source.addEventListener("open", () => {
      this.expectMessages(source);
      this.failures = 0;
      this.setStatus("live");
      if (withoutCursor) this.refetchAll();
    });
    source.addEventListener("error", () => this.retry(source));
    for (const name of NAMES) {
      source.addEventListener(name, (event) => {
        this.expectMessages(source);
        this.enqueue(name, event as MessageEvent<string>);
      });
    }
    source.addEventListener("ping", (event) => {
      this.expectMessages(source);
      this.cursor = (event as MessageEvent<string>).lastEventId || this.cursor;
    });
    source.addEventListener("resync", (event) => {
      this.cursor = (event as MessageEvent<string>).lastEventId || null;
      this.queue = [];
      this.refetchAll();
    });
  }

  /** Reconnect unless the connection brings something in time. */
  private expectMessages(source: EventSource): void {
    if (source !== this.source) return;
    this.stopExpecting();
    this.silenceTimer = this.deps.setTimer(() => this.reconnect(), MAX_SILENCE_MS);
  }

  private stopExpecting(): void {
    if (this.silenceTimer !== null) this.deps.clearTimer(this.silenceTimer);
    this.silenceTimer = null;
  }

  private disconnect(): void {
    this.stopExpecting();
    this.source?.close();
    this.source = null;
    this.connectedTopics = null;
  }

  private retry(source: EventSource): void {
    if (source !== this.source) return;
    if (this.failures > 0 || this.state !== "live") {
      this.cursor = null; // the cursor may be the cause; without one everything is fetched again
      this.onRefused();
    }
    this.reconnect();
  }

  private reconnect(): void {
    this.disconnect();
    this.setStatus("reconnecting");
    this.schedule(backOff(this.failures++, this.deps.random()));
  }

  private enqueue(name: Message["name"], event: MessageEvent<string>): void {
    if (event.lastEventId) this.cursor = event.lastEventId;
    this.queue.push({ name, data: JSON.parse(event.data) } as Message);
    if (this.frameRequested) return;
    this.frameRequested = true;
    this.deps.nextFrame(() => {
      this.frameRequested = false;
      const messages = this.queue;
      this.queue = [];
      if (messages.length > 0) for (const subscriber of this.subscribers) subscriber.receive(messages);
    });
  }

  private refetchAll(): void {
    for (const subscriber of this.subscribers) subscriber.refetchAll();
  }

  private setStatus(state: Status): void {
    if (this.state === state) return;
    this.state = state;
    for (const listener of this.watchers) listener();
  }
}

export function streamUrl(topics: string, cursor: string | null): string {
  const query = new URLSearchParams({ topics });
  if (cursor) query.set("cursor", cursor);
  return `/v1/stream?${query}`;
}

/** Return the milliseconds to the next attempt: exponential, bounded, with jitter so that tabs don't reconnect at once. */
export function backOff(failures: number, random: number): number {
  return Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** failures) * (0.5 + random / 2);
}

export const stream = new Stream({
  open: (url) => new EventSource(url),
  // A hidden tab gets no animation frames.
  nextFrame: (callback) => (document.hidden ? setTimeout(callback, 250) : requestAnimationFrame(callback)),
  setTimer: (callback, ms) => window.setTimeout(callback, ms),
  clearTimer: (timer) => window.clearTimeout(timer),
  random: Math.random,
});

/** Close the connection while the tab is hidden, and reconnect at once when the network returns. */
export function followVisibility(): void {
  let timer: number | undefined;
  document.addEventListener("visibilitychange", () => {
    window.clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(() => stream.sleep(), SLEEP_AFTER_MS);
    else stream.wake();
  });
  window.addEventListener("online", () => stream.wake());
}
