/** Money comes as a decimal string and is never made a float: sums and roundings are of integer micro-dollars. */
import type { components } from "../api/schema";

export type Money = components["schemas"]["Money"];

const MICRO = 1_000_000n;

/** Micro-dollars of a decimal string such as "3.00" or "-0.001316". */
export function toMicro(amount: string): bigint {
  const negative = amount.startsWith("-");
  const [whole = "0", fraction = ""] = amount.replace(/^-/, "").split(".");
  const size = BigInt(whole) * MICRO + BigInt(fraction.slice(0, 6).padEnd(6, "0"));
  return negative ? -size : size;
}

export function sumMicro(...amounts: Money[]): bigint {
  return amounts.reduce((total, one) => total + toMicro(one.amount), 0n);
}

/** What people read: cents from a dollar up, four decimals below it if it has them, never "$0.00" for something. */
export function formatDollars(amount: Money | bigint | null | undefined): string {
  if (amount === null || amount === undefined) return "–";
  const size = typeof amount === "bigint" ? amount : toMicro(amount.amount);
  if (size < 0n) return `−${formatDollars(-size)}`;
  if (size > 0n && size < 100n) return "<$0.0001";
  return size === 0n || size >= MICRO ? `$${rounded(size, 2)}` : `$${rounded(size, 4).replace(/00$/, "")}`;
}

/** The exact amount, for titles and tables where every digit counts. */
export function formatExact(amount: Money): string {
  return amount.amount.startsWith("-") ? `−$${amount.amount.slice(1)}` : `$${amount.amount}`;
}

/** `part` of `whole` as a number from 0 to 1; 0 if the whole is nothing. */
export function fractionOf(part: bigint, whole: bigint): number {
  if (whole <= 0n) return part > 0n ? 1 : 0;
  return Math.min(1, Math.max(0, Number((part * 10_000n) / whole) / 10_000));
}

function rounded(size: bigint, decimals: number): string {
  const unit = 10n ** BigInt(6 - decimals);
  const units = (size + unit / 2n) / unit;
  const scale = 10n ** BigInt(decimals);
  const whole = (units / scale).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  return `${whole}.${(units % scale).toString().padStart(decimals, "0")}`;
}
