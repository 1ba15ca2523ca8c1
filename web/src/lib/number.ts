import { unbroken } from "./unbroken";

/** A metric's value in few digits, NaN and infinities by name. */
export function formatValue(x: number | string | null | undefined): string {
  const n = typeof x === "string" ? Number(x) : x;
  if (n === null || n === undefined) return "–";
  if (Number.isNaN(n)) return "NaN";
  if (!Number.isFinite(n)) return n > 0 ? "∞" : "−∞";
  const size = Math.abs(n);
  if (n === 0) return "0";
  if (Number.isInteger(n) && size < 1e6) return n.toLocaleString("en").replace("-", "−");
  if (size >= 1e5 || size < 1e-3) return n.toExponential(2).replace("e+", "e").replace("-", "−");
  if (size >= 1e4) return n.toFixed(0).replace("-", "−");
  return n.toPrecision(4).replace("-", "−");
}

/** Whether a metric is a share of right answers, shown as per cent: val/acc, val/acc_top5, val/acc_tta. */
export function isAccuracy(name: string): boolean {
  return /\/acc(_\w+)?$/.test(name);
}

/** The same for a metric by its name: bytes and per cent have their units. */
export function formatMetric(name: string, x: number | string | null | undefined): string {
  const n = typeof x === "string" ? Number(x) : x;
  if (typeof n === "number" && Number.isFinite(n)) {
    if (name.endsWith("_bytes")) return formatBytes(n);
    if (name.endsWith("_percent")) return unbroken(`${n.toFixed(0)} %`);
    if (name.endsWith("_watts")) return unbroken(`${n.toFixed(0)} W`);
    if (isAccuracy(name)) return unbroken(`${(n * 100).toFixed(2)} %`);
  }
  return formatValue(n);
}

export function formatBytes(n: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [size, unit] = [n, 0];
  while (Math.abs(size) >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return unbroken(`${unit === 0 || size >= 100 ? size.toFixed(0) : size.toFixed(1)} ${units[unit]}`);
}

/** Joules, as kilowatt-hours from a thousandth on. */
export function formatEnergy(joules: number): string {
  const kwh = joules / 3_600_000;
  return unbroken(kwh < 0.001 ? `${joules.toFixed(0)} J` : `${kwh.toPrecision(3)} kWh`);
}

export function formatPercent(fraction: number): string {
  return unbroken(`${(fraction * 100).toFixed(fraction > 0 && fraction < 0.1 ? 1 : 0)} %`);
}

/** A count with its noun, such as "1 step" or "2,000 steps". */
export function counted(n: number, noun: string): string {
  return `${formatCount(n)} ${n === 1 ? noun : `${noun}s`}`;
}

export function formatCount(n: number): string {
  return n.toLocaleString("en");
}
