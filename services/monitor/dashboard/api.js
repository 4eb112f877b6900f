/* Asking the monitor. What fails is an Error that says what to tell the reader. */

const PATIENCE_MS = 10_000;
let apiKey = null; // for as long as the page is open, and nowhere else

export const setApiKey = (key) => { apiKey = key; };

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    throw Object.assign(new Error("The monitor does not answer."), { away: true });
  }
  let body = null;
  try {
    body = await response.json();
  } catch {
    throw Object.assign(new Error(`The monitor answered ${response.status} without JSON.`), { status: response.status });
  }
  if (response.ok) return body;
  throw Object.assign(new Error(body.error ?? `The monitor answered ${response.status}.`), { status: response.status, code: body.code });
}

export const get = (path) => ask(path, { headers: { accept: "application/json" } });

export function act(path) {
  const headers = { "content-type": "application/json", "x-aiaas-dashboard": "1" };
  if (apiKey) headers["x-api-key"] = apiKey;
  return ask(path, { method: "POST", headers, body: "{}" });
}

export const part = (text) => encodeURIComponent(text);

const remembered = new Map();

/** As `get`, but an answer is good for so many seconds: what covers an hour need not be asked for every other second. */
export async function getAbout(path, seconds) {
  const known = remembered.get(path);
  if (known && performance.now() - known.at < seconds * 1000) return known.body;
  const body = await get(path);
  if (remembered.size > 50) remembered.clear();
  remembered.set(path, { at: performance.now(), body });
  return body;
}

export const forget = () => remembered.clear();
