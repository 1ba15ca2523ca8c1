import { beforeEach, describe, expect, test } from "vitest";
import { address, backOff, type Message, Stream } from "./stream";

/** A browser's side of the connection, worked by hand. */
class Source extends EventTarget {
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
  say(name: string, data: unknown, lastEventId = "") {
    this.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(data), lastEventId }));
  }
}

let sources: Source[];
let frames: (() => void)[];
let timers: Map<number, { act: () => void; ms: number }>;
let stream: Stream;

beforeEach(() => {
  [sources, frames, timers] = [[], [], new Map()];
  let next = 1;
  stream = new Stream({
    open: (url) => {
      const source = new Source(url);
      sources.push(source);
      return source as unknown as EventSource;
    },
    nextFrame: (act) => frames.push(act),
    later: (act, ms) => {
      timers.set(next, { act, ms });
      return next++;
    },
    cancel: (timer) => timers.delete(timer),
    random: () => 1,
  });
});

function pass(): number[] {
  const due = [...timers.entries()];
  timers.clear();
  for (const [, { act }] of due) act();
  return due.map(([, { ms }]) => ms);
}

function frame() {
  for (const act of frames.splice(0)) act();
}

function reader(topics: string[]) {
  const got: Message[][] = [];
  let rereads = 0;
  const stop = stream.subscribe({ topics, receive: (messages) => got.push([...messages]), reread: () => rereads++ });
  return { got, stop, rereads: () => rereads };
}

const latest = () => sources.at(-1)!;

describe("one connection", () => {
  test("carries the topics of all readers", () => {
    reader(["jobs", "budget"]);
    reader(["job:1", "jobs"]);
    pass();
    expect(sources).toHaveLength(1);
    expect(latest().url).toBe("/v1/stream?topics=budget%2Cjob%3A1%2Cjobs");
  });

  test("is opened again from the last cursor when the topics change, and the old one closed", () => {
    reader(["jobs"]);
    pass();
    latest().open();
    latest().say("job", { id: "1" }, "c7");
    const second = reader(["job:1"]);
    pass();
    expect(sources).toHaveLength(2);
    expect(sources[0]!.closed).toBe(true);
    expect(latest().url).toContain("cursor=c7");
    second.stop();
    pass();
    expect(latest().url).toBe("/v1/stream?topics=jobs&cursor=c7");
  });

  test("hands a burst out once per frame, in order, to everybody", () => {
    const [one, two] = [reader(["jobs"]), reader(["budget"])];
    pass();
    latest().open();
    for (let i = 0; i < 5; i++) latest().say("job", { id: i }, `c${i}`);
    expect(one.got).toEqual([]);
    frame();
    expect(one.got).toHaveLength(1);
    expect(one.got[0]!.map(({ data }) => (data as { id: unknown }).id)).toEqual([0, 1, 2, 3, 4]);
    expect(two.got).toEqual(one.got);
  });
});

describe("rereading", () => {
  test("is asked for after a connection that began without a cursor, not after one with", () => {
    const one = reader(["jobs"]);
    pass();
    latest().open();
    expect(one.rereads()).toBe(1);
    latest().say("job", {}, "c1");
    latest().fail();
    pass();
    latest().open();
    expect(one.rereads()).toBe(1);
  });

  test("is asked for by resync, whose cursor is gone on from", () => {
    const one = reader(["jobs"]);
    pass();
    latest().open();
    latest().say("resync", {}, "c9");
    expect(one.rereads()).toBe(2);
    latest().fail();
    pass();
    expect(latest().url).toContain("cursor=c9");
  });
});

describe("a broken connection", () => {
  test("is tried again with longer and longer waits, from the cursor first", () => {
    reader(["jobs"]);
    pass();
    latest().open();
    latest().say("job", {}, "c3");
    let refusals = 0;
    stream.onRefused = () => refusals++;
    latest().fail();
    expect(stream.status).toBe("reconnecting");
    expect(pass()).toEqual([250]);
    expect(latest().url).toContain("cursor=c3");
    latest().fail();
    expect(pass()).toEqual([500]);
    expect(latest().url).not.toContain("cursor"); // the cursor may be what was refused
    latest().fail();
    expect(pass()).toEqual([1000]);
    expect(refusals).toBe(2);
    latest().open();
    expect(stream.status).toBe("live");
    latest().fail();
    expect(pass()).toEqual([250]);
  });

  test("of a former topic set changes nothing", () => {
    reader(["jobs"]);
    pass();
    latest().open();
    reader(["budget"]);
    pass();
    latest().open();
    sources[0]!.fail();
    expect(stream.status).toBe("live");
  });

  test("is left alone while nobody looks, and taken up at once after", () => {
    reader(["jobs"]);
    pass();
    latest().open();
    stream.sleep();
    expect(latest().closed).toBe(true);
    expect(pass()).toEqual([]);
    stream.wake();
    expect(pass()).toEqual([0]);
    expect(sources).toHaveLength(2);
  });
});

test("waits double, are bounded, and are spread", () => {
  expect([0, 1, 2, 20].map((failures) => backOff(failures, 1))).toEqual([250, 500, 1000, 10_000]);
  expect(backOff(3, 0)).toBe(1000);
});

test("an address without a cursor has none", () => {
  expect(address("jobs", null)).toBe("/v1/stream?topics=jobs");
});
