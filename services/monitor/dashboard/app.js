/* The page: which view, how fresh, which theme; everything that listens.
 *
 * A view is a module with `title(where)`, `load(where)` and `render(data, where)`. The page loads it every two seconds
 * while it can be seen, and brings what is shown in line (`dom.js`). When an answer fails to come, what is there stays,
 * and the page says how old it is; only a view without anything yet shows the failure itself.
 */

import * as alerts from "./alerts.js";
import { forget, get } from "./api.js";
import { confirmed } from "./dialog.js";
import { h, morph, paintAll } from "./dom.js";
import { clock } from "./format.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as overview from "./overview.js";
import { failed, loading } from "./parts.js";
import * as requests from "./requests.js";

const VIEWS = { overview, models, jobs, requests, alerts };
const EVERY_MS = 2000;
const STALE_MS = 8000;
const DONE_MS = 10_000;
const main = document.getElementById("main");
const page = { view: "overview", where: { name: null, range: "-15m" }, turn: 0, data: null, at: 0, error: null, timer: 0, alerts: null, done: { text: "", until: 0 } };

function place() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  let name = null;
  try {
    name = rest.length ? decodeURIComponent(rest.join("/")) || null : null;
  } catch {
    name = rest.join("/"); // not something we wrote: taken as it stands
  }
  return { view: VIEWS[view] ? view : "overview", name };
}

function go() {
  const { view, name } = place();
  Object.assign(page, { view, where: { ...page.where, name }, data: null, error: null, at: 0 });
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  show();
  window.scrollTo(0, 0);
  refresh();
}

async function refresh() {
  clearTimeout(page.timer);
  const turn = ++page.turn;
  const asked = { ...page.where };
  try {
    const data = await VIEWS[page.view].load(asked);
    if (turn !== page.turn) return;
    Object.assign(page, { data, error: null, at: Date.now() });
  } catch (error) {
    if (turn !== page.turn) return;
    page.error = error;
  }
  show();
  if (!document.hidden) page.timer = setTimeout(refresh, EVERY_MS);
}

function show() {
  const { view, where, data, error } = page;
  document.title = `${VIEWS[view].title(where)} · aiaas`;
  const content = data ? VIEWS[view].render(data, where) : error ? failed(error) : loading(view);
  morph(main, h("div", {}, content));
  main.setAttribute("aria-busy", String(!data && !error));
  paintAll(main);
  freshness();
}

function freshness() {
  const { data, error, at } = page;
  const stale = data && error && Date.now() - at > STALE_MS;
  const state = error ? (stale || !data ? "away" : "late") : data ? "live" : "wait";
  document.getElementById("link-state").className = `link-state ${state}`;
  setText("link-text", { away: "Not connected", late: "Late", live: "Live", wait: "Connecting" }[state]);
  const told = Date.now() < page.done.until ? page.done.text : "";
  setText("banner", stale ? `${error.message} What you see is of ${clock(at / 1000)}; asking again.` : told);
  document.getElementById("banner").className = `banner${stale || told ? " shown" : ""}${stale ? "" : " done"}`;
  main.classList.toggle("stale", Boolean(stale));
}

/** Only what changed is written, so that a screen reader says it once. */
function setText(id, text) {
  const node = document.getElementById(id);
  if (node.textContent !== text) node.textContent = text;
}

async function watchAlerts() {
  try {
    const { alerts: active } = page.view === "overview" && page.data ? page.data.overview : await get("/v1/overview");
    const ids = active.map(({ id }) => id);
    const raised = page.alerts && active.filter(({ id }) => !page.alerts.includes(id));
    if (raised?.length) setText("announcer", `Alert: ${raised.map(({ message }) => message).join("; ")}`);
    page.alerts = ids;
    const badge = document.getElementById("alert-count");
    badge.hidden = !ids.length;
    setText("alert-count", ids.length ? ` ${ids.length}` : "");
  } catch {
    // The view says that the monitor does not answer; a second voice would help nobody.
  }
  setTimeout(watchAlerts, document.hidden ? 30_000 : 5000);
}

const THEMES = { auto: ["Auto", "as the system has it"], light: ["Light", "light"], dark: ["Dark", "dark"] };

function setTheme(theme) {
  const button = document.getElementById("theme");
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.textContent = `◐ ${THEMES[theme][0]}`;
  button.setAttribute("aria-label", `Theme: ${THEMES[theme][1]}`);
  try {
    localStorage.setItem("aiaas-theme", theme);
  } catch {
    // Storage is forbidden: the choice lasts as long as the page.
  }
}

const theme = () => document.documentElement.dataset.theme ?? "auto";

async function act(button) {
  const told = await confirmed(button.dataset.action, button.dataset);
  if (!told) return;
  forget();
  page.done = { text: told, until: Date.now() + DONE_MS };
  await refresh();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (!button || button.nodeName === "FORM") return;
  if (button.dataset.action === "retry") { forget(); refresh(); }
  else if (button.dataset.action === "range") { page.where.range = button.dataset.range; refresh(); show(); }
  else act(button);
});
document.addEventListener("submit", (event) => {
  if (event.target.dataset.action !== "find") return;
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  location.hash = id ? `#/requests/${encodeURIComponent(id)}` : "#/requests";
});
document.getElementById("theme").addEventListener("click", () => setTheme({ auto: "light", light: "dark", dark: "auto" }[theme()]));
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
main.addEventListener("toggle", (event) => { if (event.target.nodeName === "DETAILS") show(); }, true);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
window.addEventListener("hashchange", () => { go(); main.focus({ preventScroll: true }); });
window.addEventListener("resize", () => paintAll(main));
setTheme(theme());
go();
watchAlerts();
