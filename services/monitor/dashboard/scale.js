/* Where on a chart a number lies, and which numbers to write at its edges. Pure. */

/** A step of 1, 2 or 5 times a power of ten, so that about `wanted` of them reach `span`. */
export function niceStep(span, wanted) {
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((digit) => digit * power >= rough * 0.999) ?? 10);
}

/** From 0 to the next nice number above everything, with the ticks between. `unit` is what has no halves: 1 for
 * counts, a power of 1024 for bytes. */
export function valueTicks(most, unit = 0) {
  const top = most > 0 ? most : 1;
  const step = unit ? Math.max(niceStep(top / unit, 4), unit === 1 ? 1 : 0) * unit : niceStep(top, 4);
  const count = Math.max(1, Math.ceil(top / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, index) => index * step);
}

/** The unit in which so many bytes are written. */
export const byteUnit = (most) => 1024 ** Math.max(0, Math.floor(Math.log(Math.max(most, 1)) / Math.log(1024)));

const STEPS_S = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

/** Round local times between two moments, at most `most` of them. */
export function timeTicks(from, to, most) {
  const step = STEPS_S.find((each) => (to - from) / each <= most) ?? STEPS_S.at(-1);
  const offset = new Date(from * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((from - offset) / step) * step + offset;
  const ticks = [];
  for (let at = first; at <= to; at += step) ticks.push(at);
  return ticks;
}

/** Runs of known points, as [[x, y], …] each: a gap in the data is a gap in the line. */
export function runs(at, values, x, y) {
  const found = [];
  let run = [];
  values.forEach((value, index) => {
    if (typeof value === "number" && Number.isFinite(value)) run.push([x(at[index]), y(value)]);
    else if (run.length) { found.push(run); run = []; }
  });
  if (run.length) found.push(run);
  return found;
}

const SETTLED_S = 4;

/** How many windows are over, and told of by everyone: the newest one would look like a fall. */
export function whole(at, step, now) {
  const open = at.findIndex((begin) => begin + step > now - SETTLED_S);
  return open < 0 ? at.length : open;
}

export const last = (values) => (values ?? []).findLast((value) => typeof value === "number") ?? null;
export const largest = (values) => (values ?? []).reduce((most, value) => (typeof value === "number" && value > most ? value : most), 0);
