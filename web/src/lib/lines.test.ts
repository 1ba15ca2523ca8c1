import { expect, test } from "vitest";
import { appended, KEPT_LINES, type LogLine, NO_LOG, pieces, plain } from "./lines";

const line = (offset: number, text = `line ${offset}`, rank = 0): LogLine => ({ machine: "m", slot: 0, rank, offset, text });

test("a line that comes twice is kept once", () => {
  const log = appended(appended(NO_LOG, [line(0), line(7)]), [line(7), line(14), line(0)]);
  expect(log.lines.map(({ offset }) => offset)).toEqual([0, 7, 14]);
});

test("ranks have lines of their own at the same place", () => {
  expect(appended(NO_LOG, [line(0, "a", 0), line(0, "b", 1)]).lines).toHaveLength(2);
});

test("nothing new is the same log", () => {
  const log = appended(NO_LOG, [line(0)]);
  expect(appended(log, [line(0)])).toBe(log);
});

test("the oldest lines go, and may come back", () => {
  const log = appended(NO_LOG, Array.from({ length: KEPT_LINES + 5 }, (_, i) => line(i)));
  expect(log.lines).toHaveLength(KEPT_LINES);
  expect(log.lines[0]!.offset).toBe(5);
  expect(appended(log, [line(0)]).lines.at(-1)!.offset).toBe(0);
});

test("colours become classes and leave the text", () => {
  expect(pieces("\u001b[32mok\u001b[0m done \u001b[1;31mbad\u001b[0m")).toEqual([
    { text: "ok", className: "ansi-green" },
    { text: " done ", className: "" },
    { text: "bad", className: "ansi-red ansi-bold" },
  ]);
});

test("markup is text and stays text", () => {
  expect(pieces("<img src=x onerror=alert(1)>&amp;")).toEqual([{ text: "<img src=x onerror=alert(1)>&amp;", className: "" }]);
});

test("a progress bar shows its last state", () => {
  expect(plain("10%\r 20%\r100%\r\r")).toBe("100%");
});

test("other controls are not shown", () => {
  expect(plain("a\u0007b\u0000c\u001b[2Kd")).toBe("abcd");
});
