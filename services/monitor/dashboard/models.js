/* What is deployed: every model, its versions and variants with what was measured of them, and which of them answer.
 * The two things that can be done from here, promote and roll back, ask first (`dialog.js`). */

import { get, getAbout, part } from "./api.js";
import { chart } from "./chart.js";
import { h } from "./dom.js";
import { bytes, count, moment, number, percent, rate, seconds } from "./format.js";
import { badge, bar, card, facts, nothing, rangePicker, table } from "./parts.js";

export const title = ({ name }) => (name ? `${name} · Models` : "Models");

export async function load({ name, range }) {
  const [catalogue, actions] = await Promise.all([get("/v1/models"), getAbout("/v1/actions", 30)]);
  const model = catalogue.models.find((each) => each.model === name);
  if (!name || !model) return { catalogue, actions, model };
  const [series, analysis, drift, timeline] = await Promise.all([
    getAbout(`/v1/models/${part(name)}/series?from=${range}`, 5),
    getAbout(`/v1/analysis?from=${range}&model=${part(name)}`, 10),
    getAbout(`/v1/drift?model=${part(name)}`, 10),
    getAbout(`/v1/timeline?from=${range}`, 5),
  ]);
  return { catalogue, actions, model, series, analysis, drift, timeline };
}

export function render(data, { name, range }) {
  if (!name) return list(data);
  if (!data.model) return [h("h1", {}, name), nothing("No such model", "Nothing was ever uploaded under this name."), h("p", {}, h("a", { href: "#/models" }, "All models"))];
  const { model, series, analysis, drift, timeline, actions } = data;
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/models" }, "Models"), " / ", model.model),
    h("div", { class: "head" }, h("div", {}, h("h1", {}, model.model), h("p", { class: "sub" }, routing(model))), rangePicker(range)),
    card("Which version answers", split(model), rollBack(model, actions)),
    h("section", { class: "charts", "aria-label": "Over time" }, charts(series, timeline)),
    card("Analysis", analysis.models.length ? analysis.models.map(analysed) : h("p", { class: "quiet-text" }, "Too little traffic in this time to tell.")),
    card("Drift", drift.models.length ? drift.models.map(drifted) : h("p", { class: "quiet-text" }, "Nothing is compared yet: the reference window fills with the first requests.")),
    [...model.versions].sort((a, b) => b.version - a.version).map((version) => versionCard(model, version, actions)),
  ];
}

function list({ catalogue }) {
  const { models } = catalogue;
  if (!models.length) return [h("h1", {}, "Models"), nothing("No model has been uploaded yet", "An uploaded model is vetted, optimized and measured by itself; its versions then appear here.", "aiaas models upload model.onnx --name my-model --wait")];
  return [h("h1", {}, "Models"), card("All models", table("All models", [
    ["Model", ({ model }) => h("a", { href: `#/models/${part(model)}` }, model)],
    ["State", (model) => badge(stateOf(model))],
    ["Answers", routing],
    ["Serves with", (model) => versionOf(model, model.active)?.chosen ?? "–"],
    ["Versions", ({ versions }) => count(versions.length), "n"],
    ["Newest", ({ versions }) => { const newest = versions.toSorted((a, b) => b.version - a.version)[0]; return newest ? [`v${newest.version} `, badge(newest.state)] : "–"; }],
  ], models, ({ model }) => model))];
}

const versionOf = (model, number) => model.versions.find(({ version }) => version === number);
const stateOf = (model) => (model.retired ? "retired" : model.unloaded ? "unloaded" : model.active || weightsOf(model).length ? "ready" : model.versions.at(-1)?.state ?? "retired");
const weightsOf = ({ weights }) => Object.entries(weights ?? {}).filter(([, weight]) => weight > 0);

function routing(model) {
  if (model.retired) return "Retired: nothing answers.";
  if (model.unloaded) return "Unloaded: nothing answers until it is loaded.";
  const weights = weightsOf(model);
  if (weights.length > 1) return `Split over ${weights.map(([version]) => `v${version}`).join(", ")}`;
  if (weights.length === 1) return `Version ${weights[0][0]}`;
  return model.active ? `Version ${model.active}` : "No version answers yet.";
}

function split(model) {
  const weights = weightsOf(model).length ? weightsOf(model) : model.active ? [[String(model.active), 1]] : [];
  const all = weights.reduce((sum, [, weight]) => sum + weight, 0);
  if (!all || model.unloaded || model.retired) return h("p", {}, routing(model));
  return h("ul", { class: "split" }, weights.map(([version, weight], index) => h("li", { "data-key": version },
    h("span", { class: `key c${index % 6}`, "aria-hidden": "true" }), h("b", {}, `v${version}`), ` ${versionOf(model, Number(version))?.chosen ?? ""} `, bar(weight / all), ` ${percent(weight / all)}`)));
}

function rollBack(model, actions) {
  if (!actions.offered) return h("p", { class: "quiet-text" }, "Promoting and rolling back from here takes API keys (AIAAS_API_KEYS), since the monitor listens beyond this machine.");
  const ready = model.versions.filter(({ state }) => state === "ready").length > 1 || weightsOf(model).length > 1;
  return h("p", { class: "do" }, h("button", { type: "button", "data-action": "rollback", "data-model": model.model, "data-key-needed": String(actions.needs_key), disabled: !ready }, "Roll back"),
    h("span", { class: "quiet-text" }, ready ? " to what answered before" : " needs an earlier version that is ready"));
}

function versionCard(model, version, actions) {
  const active = model.active === version.version && !weightsOf(model).length;
  const open = version.state === "ready" && !active && !model.retired && actions.offered;
  return h("section", { class: "card version", "data-key": `version-${version.version}` },
    h("div", { class: "head" }, h("h2", {}, `Version ${version.version} `, badge(version.state), " ", active && badge("answers", "good")),
      open && h("button", { type: "button", class: "primary", "data-action": "promote", "data-model": model.model, "data-version": version.version, "data-key-needed": String(actions.needs_key) }, "Promote", h("span", { class: "sr" }, ` version ${version.version}`))),
    h("p", { class: "sub" }, `Uploaded ${moment(version.created_at)}. `, version.reason ?? ""),
    version.variants.length ? variants(version) : h("p", { class: "quiet-text" }, version.state === "rejected" ? "It has no variant." : "Its variants appear here as they are measured."));
}

const speed = ({ measurements }) => measurements?.speedup;
const quality = ({ measurements }) => { const [name, value] = Object.entries(measurements?.quality ?? {})[0] ?? []; return name ? `${name} ${number(value.value)}` : measurements?.top1_agreement != null ? `top-1 same ${percent(measurements.top1_agreement)}` : "–"; };
const alone = ({ measurements }) => { const first = [...(measurements?.latencies ?? [])].sort((a, b) => a.batch_size - b.batch_size)[0]; return first ? `${seconds(first.p50_s)} at ${first.batch_size}` : "–"; };

const error = (value) => (value && value < 0.01 ? value.toExponential(1) : number(value));

const variants = (version) => table(`Variants of version ${version.version}`, [
  ["Variant", ({ variant }) => [variant, " ", version.chosen === variant && badge("serves", "good")]],
  ["Gate", ({ state }) => badge(state)],
  ["Speed", (each) => (speed(each) ? `${number(speed(each))}×` : "–"), "n"],
  ["Median run", alone, "n"],
  ["Rows/s", ({ measurements }) => count(measurements?.throughput_rows_s), "n"],
  ["Largest error", ({ measurements }) => (measurements?.max_abs_error != null ? error(measurements.max_abs_error) : "–"), "n"],
  ["Quality", quality],
  ["Size", ({ byte_size: size, measurements }) => bytes(size ?? measurements?.byte_size), "n"],
  ["Batch cap", ({ batch_cap: cap }) => count(cap), "n"],
  ["Why", ({ reason }) => h("span", { class: "why" }, reason || "–"), "wide"],
], version.variants, ({ variant, state }) => `${variant}-${state}`);

function charts(series, timeline) {
  const at = series.at ?? [];
  const make = (id, text, format, lines) => chart({ id, title: text, format, at, from: series.from, to: series.to, marks: timeline.events, series: lines.map(([name, values]) => ({ name, values: values ?? [] })) });
  const phase = (name, quantile) => series.latency_s?.[name]?.[quantile];
  return [
    make("m-traffic", "Requests a second", number, [["answered", series.throughput_per_s]]),
    make("m-latency", "Latency", seconds, [["p50", phase("total", "p50")], ["p95", phase("total", "p95")], ["p99", phase("total", "p99")]]),
    make("m-phases", "Where the time goes, mean", seconds, [["queue", phase("queue", "mean")], ["input", phase("compute_input", "mean")], ["model", phase("compute_infer", "mean")], ["output", phase("compute_output", "mean")]]),
    make("m-outcomes", "Requests without a result", count, ["failed", "expired", "cancelled"].map((status) => [status, series.requests?.[status]])),
    make("m-batch", "Requests in a batch, mean", number, [["batch", series.batch_size?.mean]]),
    sizes(series.batch_size?.histogram ?? {}),
  ];
}

function sizes(histogram) {
  const rows = Object.entries(histogram).map(([size, some]) => [Number(size), some]).sort((a, b) => a[0] - b[0]);
  const all = rows.reduce((sum, [, some]) => sum + some, 0);
  return h("div", { class: "card chart", "data-key": "sizes" }, h("h3", {}, "Requests by batch size"), rows.length ? h("div", { class: "scroll sizes", tabindex: "0", role: "region", "aria-label": "Requests by batch size" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "n" }, "In a batch of"), h("th", { scope: "col", class: "n" }, "Requests"), h("th", { scope: "col" }, h("span", { class: "sr" }, "Share")))),
    h("tbody", {}, rows.map(([size, some]) => h("tr", { "data-key": size }, h("th", { scope: "row", class: "n" }, size), h("td", { class: "n" }, count(some)), h("td", {}, bar(some / all), ` ${percent(some / all)}`)))))) : h("p", { class: "quiet-text" }, "Nothing in this time"));
}

const analysed = (each) => h("div", { class: "analysed", "data-key": `a-${each.version}` }, h("h3", {}, each.version === null ? "Without a version" : `Version ${each.version}`), facts([
  ["Bottleneck", each.bottleneck ? `${each.bottleneck.phase}, ${percent(each.bottleneck.share)} of the time` : "–"],
  ["Saturation", each.saturation == null ? "–" : [bar(each.saturation, each.saturation > 0.8 ? "bad" : ""), ` ${percent(each.saturation)}`]],
  ["Capacity", each.capacity_per_s == null ? "–" : `about ${rate(each.capacity_per_s)} within the objective`],
  ["Cost of 1,000 requests", each.cost_per_1000 == null ? "–" : `${number(each.cost_per_1000)} ${each.currency ?? ""}`],
  ["Latency objective", each.slo ? `${percent(each.slo.latency_met)} within ${seconds(each.slo.latency_s)}, wanted ${percent(each.slo.latency_target)}` : "–"],
  ["Availability", each.slo ? `${percent(each.slo.availability)}, wanted ${percent(each.slo.availability_target)}` : "–"],
  ["Error budget spent", each.slo?.error_budget_spent == null ? "–" : [bar(each.slo.error_budget_spent, each.slo.error_budget_spent > 1 ? "bad" : ""), ` ${percent(each.slo.error_budget_spent)}`]],
]));

const drifted = (each) => h("div", { class: "drifted", "data-key": `d-${each.version}` },
  h("h3", {}, `Version ${each.version} `, badge(each.alarm ? "drifted" : each.state)),
  h("p", { class: "sub" }, each.state === "collecting" ? `${count(each.rows)} of ${count(each.reference_rows)} rows of the reference are there.` : `${count(each.windows_compared)} windows compared with a reference of ${count(each.reference_rows)} rows; at most ${percent(each.false_alarm_rate)} false alarms.`),
  each.features.length > 0 && table(`Features of version ${each.version}`, [
    ["Feature", ({ feature }) => feature], ["Kind", ({ kind }) => kind],
    ["Distance", ({ statistic }) => number(statistic), "n"], ["Threshold", ({ threshold }) => number(threshold), "n"],
    ["State", ({ drifted: far }) => badge(far ? "drifted" : "within")],
  ], each.features, ({ feature, kind }) => `${feature}-${kind}`));
