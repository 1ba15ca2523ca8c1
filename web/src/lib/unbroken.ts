/** Spaces within figures, at which no line may end: "9.4 %", "1.5 GB", "3m 20s", "2 × L4". */

const NBSP = "\u00a0";
const UNIT = "%|(?:[kMGT]?B|[KMGT]iB)(?:/s)?|kWh|[JW]|IOPS|[µm]?s|min|[dhm]|×";
const FIGURE = new RegExp(`(\\d[dhm]?) (?=(?:${UNIT}|\\d\\d[hms])(?![\\w/]))`, "g");

/** The text with its figures kept on one line with their units; also for sentences of the service. */
export function unbroken(text: string): string {
  return text.replace(FIGURE, `$1${NBSP}`).replace(/× (?=\S)/g, `×${NBSP}`);
}
