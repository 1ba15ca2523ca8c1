import { type Curves, splitCurve } from "../../live/curves";
import { formatDuration } from "../../lib/time";

/** What training waits for, by the metric that counts the seconds since its value before. */
const CAUSES = { "stall/download_s": "downloading shards", "stall/decode_s": "decoding images", "stall/upload_s": "copying to the device" };

/** Say how long training has waited for its input, by cause; "" if it never has, or doesn't tell. */
export function describeStalls(curves: Curves): string {
  const parts = Object.entries(CAUSES).flatMap(([name, cause]) => {
    const seconds = splitCurve(curves, name).merged.values.reduce((sum, value) => sum + value, 0);
    return seconds > 0 ? [`${formatDuration(seconds)} ${cause}`] : [];
  });
  return parts.length > 0 ? `Waited for input: ${parts.join(", ")}.` : "";
}
