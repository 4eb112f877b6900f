/* Numbers, times and sizes as people read them. Null is a dash: not known is not zero. */

export const NONE = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const digits = (value) => (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
const trimmed = (value, places) => value.toLocaleString("en", { maximumFractionDigits: places });

export const count = (value) => (known(value) ? trimmed(value, 0) : NONE);
export const number = (value) => (known(value) ? (value && Math.abs(value) < 0.01 ? value.toLocaleString("en", { maximumSignificantDigits: 2 }) : trimmed(value, digits(value))) : NONE);
export const rate = (value) => (known(value) ? `${number(value)}/s` : NONE);
export const percent = (ratio) => (known(ratio) ? `${trimmed(ratio * 100, ratio && Math.abs(ratio) < 0.1 ? 2 : 1)}%` : NONE);
export const ofHundred = (value) => (known(value) ? percent(value / 100) : NONE);

export function seconds(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${number(value * 1e6)} µs`;
  if (size < 1) return `${number(value * 1e3)} ms`;
  if (size < 120) return `${number(value)} s`;
  return age(value);
}

export function age(value) {
  if (!known(value)) return NONE;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; Math.abs(value) >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${unit ? number(value) : count(value)} ${units[unit]}`;
}

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
export const clock = (at) => (known(at) ? new Date(at * 1000).toLocaleTimeString("en-GB", CLOCK) : NONE);
export const hourMinute = (at) => clock(at).slice(0, 5);
export const moment = (at) => (known(at) ? `${new Date(at * 1000).toLocaleDateString("en-CA")} ${clock(at)}` : NONE);
export const short = (digest) => (digest ? String(digest).slice(0, 12) : NONE);
