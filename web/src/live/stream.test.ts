import { beforeEach, describe, expect, test } from "vitest";
import { streamUrl, backOff, MAX_SILENCE_MS, type Message, Stream } from "./stream";

/** An EventSource whose events the test sends. */
class FakeEventSource extends EventTarget {
  closed = false;
  constructor(readonly url: string) {
    super();
  }
  close() {
    this.closed = true;
  }
  open() {
    this.dispatchEvent(new Event("open"));
  }
  fail() {
    this.dispatchEvent(new Event("error"));
  }
  emit(name: string, data: unknown, lastEventId = "") {
    this.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(data), lastEventId }));
  }
}

let sources: FakeEventSource[];
let frames: (() => void)[];
let timers: Map<number, { act: () => void; ms: number }>;
let stream: Stream;

beforeEach(() => {
  [sources, frames, timers] = [[], [], new Map()];
  let next = 1;
  stream = new Stream({
    open: (url) => {
      const source = new FakeEventSource(url);
      sources.push(source);
      return source as unknown as EventSource;
    },
    nextFrame: (act) => frames.push(act),
    setTimer: (act, ms) => {
      timers.set(next, { act, ms });
      return next++;
    },
    clearTimer: (timer) => timers.delete(timer),
    random: () => 1,
  });
});

/** Runs the timers of connections, or those that notice silence, and returns their times. */
function runTimers({ silence = false } = {}): number[] {
  const due = [...timers.entries()].filter(([, { ms }]) => (ms === MAX_SILENCE_MS) === silence);
  for (const [timer] of due) timers.delete(timer);
  for (const [, { act }] of due) act();
  return due.map(([, { ms }]) => ms);
}

function nextFrame() {
  for (const act of frames.splice(0)) act();
}

function subscribe(topics: string[]) {
  const got: Message[][] = [];
  let refetches = 0;
  const stop = stream.subscribe({ topics, receive: (messages) => got.push([...messages]), refetchAll: () => refetches++ });
  return { got, stop, refetches: () => refetches };
}

const latest = () => sources.at(-1)!;

describe("one connection", () => {
  test("carries the topics of all subscribers", () => {
    subscribe(["jobs", "budget"]);
    subscribe(["job:1", "jobs"]);
    runTimers();
    expect(sources).toHaveLength(1);
    expect(latest().url).toBe("/v1/stream?topics=budget%2Cjob%3A1%2Cjobs");
  });

  test("is reopened from the last cursor when the topics change, and the old one is closed", () => {
    subscribe(["jobs"]);
    runTimers();
    latest().open();
    latest().emit("job", { id: "1" }, "c7");
    const second = subscribe(["job:1"]);
    runTimers();
    expect(sources).toHaveLength(2);
    expect(sources[0]!.closed).toBe(true);
    expect(latest().url).toContain("cursor=c7");
    second.stop();
    runTimers();
    expect(latest().url).toBe("/v1/stream?topics=jobs&cursor=c7");
  });

  test("delivers a burst once per frame, in order, to every subscriber", () => {
    const [one, two] = [subscribe(["jobs"]), subscribe(["budget"])];
    runTimers();
    latest().open();
    for (let i = 0; i < 5; i++) latest().emit("job", { id: i }, `c${i}`);
    expect(one.got).toEqual([]);
    nextFrame();
    expect(one.got).toHaveLength(1);
    expect(one.got[0]!.map(({ data }) => (data as { id: unknown }).id)).toEqual([0, 1, 2, 3, 4]);
    expect(two.got).toEqual(one.got);
  });
});

describe("refetching", () => {
  test("is requested after a connection without a cursor, not after one with a cursor", () => {
    const one = subscribe(["jobs"]);
    runTimers();
    latest().open();
    expect(one.refetches()).toBe(1);
    latest().emit("job", {}, "c1");
    latest().fail();
    runTimers();
    latest().open();
    expect(one.refetches()).toBe(1);
  });

  test("is requested by resync, whose cursor is used next", () => {
    const one = subscribe(["jobs"]);
    runTimers();
    latest().open();
    latest().emit("resync", {}, "c9");
    expect(one.refetches()).toBe(2);
    latest().fail();
    runTimers();
    expect(latest().url).toContain("cursor=c9");
  });
});

describe("the first connection", () => {
  test("starts where reading began, so that nothing is read twice", () => {
    stream.startAt("c1");
    const one = subscribe(["jobs"]);
    runTimers();
    latest().open();
    expect(latest().url).toContain("cursor=c1");
    expect(one.refetches()).toBe(0);
  });

  test("of the next to sign in starts at another position", () => {
    stream.startAt("c1");
    subscribe(["jobs"]).stop();
    runTimers();
    stream.startAt("c2");
    subscribe(["jobs"]);
    runTimers();
    expect(latest().url).toContain("cursor=c2");
  });
});

describe("a silent connection", () => {
  test("is reconnected from the last ping's cursor, whether it was open or never answered", () => {
    const one = subscribe(["jobs"]);
    runTimers();
    latest().open();
    latest().emit("ping", {}, "c5");
    runTimers({ silence: true });
    expect(stream.status).toBe("reconnecting");
    expect(latest().closed).toBe(true);
    runTimers();
    expect(sources).toHaveLength(2);
    expect(latest().url).toContain("cursor=c5");
    runTimers({ silence: true }); // it does not even open
    runTimers();
    expect(sources).toHaveLength(3);
    expect(latest().url).toContain("cursor=c5");
    expect(one.refetches()).toBe(1);
  });

  test("is one without messages and pings: each of them starts the wait again", () => {
    subscribe(["jobs"]);
    runTimers();
    latest().open();
    const before = [...timers.keys()];
    latest().emit("job", {}, "c1");
    latest().emit("ping", {}, "c2");
    expect(timers.size).toBe(1);
    expect([...timers.keys()]).not.toEqual(before);
  });
});

describe("a broken connection", () => {
  test("is retried with increasing delays, first from the cursor", () => {
    subscribe(["jobs"]);
    runTimers();
    latest().open();
    latest().emit("job", {}, "c3");
    let refusals = 0;
    stream.onRefused = () => refusals++;
    latest().fail();
    expect(stream.status).toBe("reconnecting");
    expect(runTimers()).toEqual([250]);
    expect(latest().url).toContain("cursor=c3");
    latest().fail();
    expect(runTimers()).toEqual([500]);
    expect(latest().url).not.toContain("cursor"); // the cursor may be what was refused
    latest().fail();
    expect(runTimers()).toEqual([1000]);
    expect(refusals).toBe(2);
    latest().open();
    expect(stream.status).toBe("live");
    latest().fail();
    expect(runTimers()).toEqual([250]);
  });

  test("of an earlier topic set is ignored", () => {
    subscribe(["jobs"]);
    runTimers();
    latest().open();
    subscribe(["budget"]);
    runTimers();
    latest().open();
    sources[0]!.fail();
    expect(stream.status).toBe("live");
  });

  test("is not retried while the tab is hidden, and at once when it is shown", () => {
    subscribe(["jobs"]);
    runTimers();
    latest().open();
    stream.sleep();
    expect(latest().closed).toBe(true);
    expect(runTimers()).toEqual([]);
    stream.wake();
    expect(runTimers()).toEqual([0]);
    expect(sources).toHaveLength(2);
  });
});

test("retry delays double, are bounded and have jitter", () => {
  expect([0, 1, 2, 20].map((failures) => backOff(failures, 1))).toEqual([250, 500, 1000, 10_000]);
  expect(backOff(3, 0)).toBe(1000);
});

test("the URL has no cursor parameter without a cursor", () => {
  expect(streamUrl("jobs", null)).toBe("/v1/stream?topics=jobs");
});
