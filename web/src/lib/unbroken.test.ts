import { expect, test } from "vitest";
import { unbroken } from "./unbroken";

const shown = (text: string) => unbroken(text).replaceAll("\u00a0", "_");

test.each([
  ["saved (9.4 %)", "saved (9.4_%)"],
  ["1.5 GB at 250 MiB/s with 3,000 IOPS", "1.5_GB at 250_MiB/s with 3,000_IOPS"],
  ["3m 20s, 1h 02m or 4.2 s, 5 min ago", "3m_20s, 1h_02m or 4.2_s, 5_min ago"],
  ["It runs on 2 × g5.xlarge.", "It runs on 2_×_g5.xlarge."],
  ["12 J, 0.5 kWh, 70 W", "12_J, 0.5_kWh, 70_W"],
])("a figure stays with its unit: %s", (text, expected) => expect(shown(text)).toBe(expected));

test.each(["3 machines", "step 4 more", "at 10 steps", "2026-11-28 15:04 UTC", "5 big ones", "of 3 s3 keys", "4 m/s"])(
  "what is no figure with its unit may break: %s",
  (text) => expect(shown(text)).toBe(text),
);
