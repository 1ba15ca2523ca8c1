/** Log lines: kept once each, in the order they came, and cut into coloured pieces without ever becoming HTML. */
import Anser from "anser";
import type { components } from "../api/schema";

export type LogLine = components["schemas"]["LogLine"];

export const MAX_LINES = 20_000;

export interface Log {
  readonly lines: readonly LogLine[];
  readonly known: ReadonlySet<string>;
}

export const EMPTY_LOG: Log = { lines: [], known: new Set() };

/** The log with more lines at its end; those it has already are left out, and beyond `MAX_LINES` the oldest go. */
export function appendLines(log: Log, more: readonly LogLine[]): Log {
  const known = new Set(log.known);
  const fresh = more.filter((line) => !known.has(key(line)) && known.add(key(line)));
  if (fresh.length === 0) return log;
  const lines = [...log.lines, ...fresh];
  for (const dropped of lines.splice(0, Math.max(0, lines.length - MAX_LINES))) known.delete(key(dropped));
  return { lines, known };
}

export function key(line: LogLine): string {
  return `${line.machine}/${line.rank}/${line.offset}`;
}

export interface StyledText {
  text: string;
  className: string;
}

/** A line as a terminal would leave it: carriage returns overwrite, colours become classes, other controls go. */
export function parseAnsi(text: string): StyledText[] {
  return Anser.ansiToJson(collapseCarriageReturns(text), { use_classes: true, remove_empty: true }).map((piece) => ({
    text: piece.content.replace(CONTROLS, ""),
    className: [piece.fg, piece.bg && `${piece.bg}-bg`, ...piece.decorations.map((name) => `ansi-${name}`)]
      .filter(Boolean)
      .join(" "),
  }));
}

/** What is seen, without colours: to search in. */
export function stripAnsi(text: string): string {
  return Anser.ansiToText(collapseCarriageReturns(text)).replace(CONTROLS, "");
}

const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f]/g;

function collapseCarriageReturns(text: string): string {
  const whole = text.replace(/\r+$/, "");
  return whole.slice(whole.lastIndexOf("\r") + 1);
}
