/**
 * Exponential moving average that weighs by distance, not by index: a gap in x forgets as much as the points that are
 * missing in it would have. Its start is debiased, so a constant stays that constant. NaN and infinities are passed
 * through and don't spoil what follows.
 *
 * weight   0 (nothing) to just under 1 (almost only the past), for one mean spacing of x
 * source   debiasing as in Adam (Kingma and Ba, 2015, section 3)
 */
export function smooth(xs: ArrayLike<number>, ys: ArrayLike<number>, weight: number): number[] {
  const n = xs.length;
  const out: number[] = [];
  const spacing = n > 1 ? (xs[n - 1]! - xs[0]!) / (n - 1) : 1;
  let [level, mass, before] = [0, 0, Number.NaN];
  for (let i = 0; i < n; i++) {
    const y = ys[i]!;
    if (!Number.isFinite(y)) {
      out.push(y);
      continue;
    }
    const gap = Number.isNaN(before) || spacing <= 0 ? 1 : (xs[i]! - before) / spacing;
    const kept = weight <= 0 ? 0 : weight ** Math.max(0, gap);
    level = level * kept + y * (1 - kept);
    mass = mass * kept + (1 - kept);
    out.push(mass > 0 ? level / mass : y);
    before = xs[i]!;
  }
  return out;
}
