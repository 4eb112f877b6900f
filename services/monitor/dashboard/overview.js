/* One look: are all services there, what is asked of them, how fast and how well do they answer, what waits. */

import { get, getAbout, part } from "./api.js";
import { chart, spark } from "./chart.js";
import { h } from "./dom.js";
import { age, bytes, clock, count, number, ofHundred, percent, rate, seconds } from "./format.js";
import { badge, card, happened, nothing, rangePicker, table } from "./parts.js";

const MOST_LINES = 6;
const SPARKS = 60;
const seen = { at: 0, totals: [] };

export const title = () => "Overview";

export async function load({ range }) {
  const overview = await get("/v1/overview");
  remember(overview);
  const names = busiest(overview.models);
  const [hosts, timeline, ...series] = await Promise.all([
    getAbout(`/v1/hosts/series?from=${range}`, 10),
    getAbout(`/v1/timeline?from=${range}`, 5),
    ...names.map((name) => getAbout(`/v1/models/${part(name)}/series?from=${range}`, 10)),
  ]);
  return { overview, hosts, timeline, series };
}

function remember({ at, totals }) {
  if (at <= seen.at) return;
  seen.at = at;
  seen.totals.push(totals);
  if (seen.totals.length > SPARKS) seen.totals.shift();
}

function busiest(models) {
  const requests = new Map();
  for (const { model, requests: some } of models) requests.set(model, (requests.get(model) ?? 0) + some);
  return [...requests].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, MOST_LINES).map(([name]) => name);
}

export function render({ overview, hosts, timeline, series }, { range }) {
  const { totals, services, models, alerts } = overview;
  return [
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Overview"), h("p", { class: "sub" }, verdict(overview))), rangePicker(range)),
    alerts.length > 0 && activeAlerts(alerts),
    h("div", { class: "tiles" }, tiles(totals, alerts)),
    models.length === 0 && card("Requests", nothing("No request has come yet",
      "Counts, latencies and errors appear here with the first one. Upload a model and ask it something:",
      "aiaas models upload model.onnx --name my-model --wait\naiaas infer my-model --input x=@row.json")),
    models.length > 0 && h("section", { class: "charts", "aria-label": "Over time" }, charts(series, hosts, timeline)),
    models.length > 0 && card("Models", modelTable(models)),
    card("Services", services.length ? serviceTable(services) : nothing("No service was heard of within the hour", "Gateways, workers and optimizers report on the topic metrics. Start them, or look at their logs:", "aiaas status && aiaas doctor")),
    card("What happened", timeline.events.length ? happened(timeline.events.slice(-40), clock) : h("p", { class: "quiet-text" }, "Nothing to tell of this time: no deploy, no restart, no alert.")),
  ];
}

function verdict({ ready, waiting_for: waiting, window_s: window, services, lag }) {
  if (!ready) return `The monitor still reads ${waiting}: the numbers are not complete yet.`;
  const down = services.filter(({ up }) => !up).length;
  const told = down ? `${down} of ${services.length} instances ${down > 1 ? "are" : "is"} not heard of any more` : `All ${services.length} instances are up`;
  return `${told}. Numbers are of the last ${window} seconds${lag ? `; ${count(lag)} outcomes are still to be counted` : ""}.`;
}

const activeAlerts = (alerts) => h("section", { class: "alarm", "aria-label": "Active alerts" },
  h("ul", {}, alerts.map((alert) => h("li", { "data-key": alert.id }, badge(alert.severity), " ", alert.message, " ", h("a", { href: "#/alerts" }, "Alerts")))));

function tiles(totals, alerts) {
  const history = (name) => seen.totals.map((each) => each[name] ?? null);
  const tile = (name, value, more, values, kind) => h("div", { class: `tile ${kind ?? ""}`, "data-key": name }, h("h2", {}, name), h("p", { class: "value" }, value), h("p", { class: "more" }, more), values && spark(values));
  return [
    tile("Traffic", rate(totals.per_s), `${count(totals.requests)} requests`, history("per_s")),
    tile("Latency, p95", seconds(totals.p95_s), `p50 ${seconds(totals.p50_s)}, p99 ${seconds(totals.p99_s)}`, history("p95_s")),
    tile("Errors", percent(totals.error_ratio), `${count(totals.errors)} without a result`, history("error_ratio"), totals.errors ? "bad" : ""),
    tile("Waiting in Kafka", count(totals.consumer_lag), "requests not yet taken", history("consumer_lag")),
    tile("Refused at the door", count(totals.rejected), "HTTP 429 and 503", history("rejected"), totals.rejected ? "warn" : ""),
    tile("Alerts", count(alerts.length), alerts.length ? "active now" : "none active", null, alerts.length ? "bad" : ""),
  ];
}

function charts(series, hosts, timeline) {
  const about = series[0] ?? { at: [], from: 0, to: 1 };
  const lines = (pick) => series.map((each) => ({ name: each.model, values: pick(each) ?? [] }));
  const spec = (id, text, format, pick) => chart({ id, title: text, format, at: about.at ?? [], from: about.from, to: about.to, series: lines(pick), marks: timeline.events });
  const failures = (each) => each.requests && each.at.map((_, index) => sum(["failed", "expired", "cancelled"].map((status) => each.requests[status][index])));
  return [
    spec("traffic", "Requests a second", number, (each) => each.throughput_per_s),
    spec("latency", "Latency, 95th percentile", seconds, (each) => each.latency_s?.total?.p95),
    spec("failures", "Requests without a result", count, failures),
    spec("lag", "Requests waiting", count, (each) => each.lag),
    hostChart(hosts, timeline, "cpu", "CPU of each process, 100% is one core", ofHundred, (host) => host.cpu_percent?.mean),
    hostChart(hosts, timeline, "memory", "Memory of each process", bytes, (host) => host.rss_bytes?.mean),
  ];
}

const sum = (values) => (values.every((value) => value === null) ? null : values.reduce((all, value) => all + (value ?? 0), 0));

function hostChart(hosts, timeline, id, text, format, pick) {
  const at = hosts.hosts[0]?.at ?? [];
  const lines = hosts.hosts.map((host) => ({ name: host.instance, values: aligned(at, host.at, pick(host) ?? []) }));
  return chart({ id, title: text, format, at, from: hosts.from, to: hosts.to, series: lines, marks: timeline.events });
}

/** The values at the moments of another series. */
function aligned(at, own, values) {
  if (own.length === at.length && own[0] === at[0]) return values;
  const byTime = new Map(own.map((moment, index) => [moment, values[index]]));
  return at.map((moment) => byTime.get(moment) ?? null);
}

const modelTable = (models) => table("Models of the last minute", [
  ["Model", ({ model, version }) => [h("a", { href: `#/models/${part(model)}` }, model), version === null ? h("span", { class: "quiet-text" }, " no version") : ` v${version}`]],
  ["Traffic", ({ per_s: perS }) => rate(perS), "n"],
  ["p50", ({ p50_s: p50 }) => seconds(p50), "n"],
  ["p95", ({ p95_s: p95 }) => seconds(p95), "n"],
  ["p99", ({ p99_s: p99 }) => seconds(p99), "n"],
  ["Errors", ({ error_ratio: ratio }) => percent(ratio), "n"],
  ["Batch", ({ mean_batch_size: size }) => number(size), "n"],
  ["Bottleneck", ({ bottleneck }) => bottleneck ?? "–"],
  ["Last success", ({ last_success_age_s: old }) => (old === null ? "–" : `${age(old)} ago`), "n"],
], models, ({ model, version }) => `${model}/${version}`);

const total = (byModel) => Object.values(byModel ?? {}).reduce((all, some) => all + some, 0);

const serviceTable = (services) => table("Services", [
  ["Instance", ({ instance }) => instance],
  ["Service", ({ service }) => service],
  ["State", ({ up }) => badge(up ? "up" : "down")],
  ["CPU", ({ cpu_percent: cpu }) => ofHundred(cpu), "n"],
  ["Memory", ({ rss_bytes: size }) => bytes(size), "n"],
  ["Loop delay", ({ loop_delay_s: delay }) => seconds(delay), "n"],
  ["Waiting", ({ lag, queued }) => count(total(lag) + total(queued)), "n"],
  ["Loaded", ({ loaded }) => (loaded?.length ? loaded.map(({ model, version, variant }) => `${model} v${version} ${variant}`).join(", ") : "–"), "wide"],
  ["Heard of", ({ sample_age_s: old }) => (old === null ? "–" : `${age(old)} ago`), "n"],
], services, ({ instance }) => instance);
