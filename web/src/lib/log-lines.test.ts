import { expect, test } from "vitest";
import { appendLines, MAX_LINES, type LogLine, EMPTY_LOG, parseAnsi, stripAnsi } from "./log-lines";

const line = (offset: number, text = `line ${offset}`, rank = 0): LogLine => ({ machine: "m", slot: 0, rank, offset, text });

test("a line that comes twice is kept once", () => {
  const log = appendLines(appendLines(EMPTY_LOG, [line(0), line(7)]), [line(7), line(14), line(0)]);
  expect(log.lines.map(({ offset }) => offset)).toEqual([0, 7, 14]);
});

test("ranks have lines of their own at the same place", () => {
  expect(appendLines(EMPTY_LOG, [line(0, "a", 0), line(0, "b", 1)]).lines).toHaveLength(2);
});

test("nothing new is the same log", () => {
  const log = appendLines(EMPTY_LOG, [line(0)]);
  expect(appendLines(log, [line(0)])).toBe(log);
});

test("the oldest lines go, and may come back", () => {
  const log = appendLines(EMPTY_LOG, Array.from({ length: MAX_LINES + 5 }, (_, i) => line(i)));
  expect(log.lines).toHaveLength(MAX_LINES);
  expect(log.lines[0]!.offset).toBe(5);
  expect(appendLines(log, [line(0)]).lines.at(-1)!.offset).toBe(0);
});

test("colours become classes and leave the text", () => {
  expect(parseAnsi("\u001b[32mok\u001b[0m done \u001b[1;31mbad\u001b[0m")).toEqual([
    { text: "ok", className: "ansi-green" },
    { text: " done ", className: "" },
    { text: "bad", className: "ansi-red ansi-bold" },
  ]);
});

test("markup is text and stays text", () => {
  expect(parseAnsi("<img src=x onerror=alert(1)>&amp;")).toEqual([{ text: "<img src=x onerror=alert(1)>&amp;", className: "" }]);
});

test("a progress bar shows its last state", () => {
  expect(stripAnsi("10%\r 20%\r100%\r\r")).toBe("100%");
});

test("other controls are not shown", () => {
  expect(stripAnsi("a\u0007b\u0000c\u001b[2Kd")).toBe("abcd");
});
