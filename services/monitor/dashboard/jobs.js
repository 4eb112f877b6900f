/* The optimizer's jobs: how far each is, and the curves of those that train. */

import { get } from "./api.js";
import { chart } from "./chart.js";
import { h } from "./dom.js";
import { age, clock, count, number, percent } from "./format.js";
import { badge, bar, facts, nothing } from "./parts.js";

export const title = () => "Jobs";
export const load = () => get("/v1/jobs");

export function render({ jobs }) {
  const sorted = [...jobs].sort((a, b) => b.at - a.at);
  return [
    h("h1", {}, "Optimizer jobs"), h("p", { class: "sub" }, "Uploads and updates on their way to a version that serves; those that told of themselves within the hour."),
    sorted.length ? sorted.map(job) : nothing("No job within the hour", "An upload or an update starts one; what it does, and its curves where it trains, appear here.", "aiaas models update my-model --from-log feedback --wait"),
  ];
}

const job = (each) => h("section", { class: "card", "data-key": `${each.model}-${each.version}-${each.attempt}` },
  h("div", { class: "head" }, h("h2", {}, `${each.model} v${each.version} `, badge(each.fraction >= 1 ? "done" : each.step, each.fraction >= 1 ? "good" : "busy")), h("b", { class: "big" }, percent(each.fraction))),
  bar(each.fraction, "wide"),
  facts([
    ["Step", each.step], ["Attempt", count(each.attempt)], ["By", each.instance],
    ["Remaining", each.fraction >= 1 ? "–" : each.remaining_s == null ? "not known" : `about ${age(each.remaining_s)}`], ["Last heard of", clock(each.at)],
  ]),
  h("div", { class: "charts" }, families(each.curves ?? {}).map(([family, curves]) => curve(each, family, curves))));

/** Curves that belong on one chart: `loss/train` and `loss/validation` are two lines of `loss`. */
function families(curves) {
  const found = new Map();
  for (const [name, points] of Object.entries(curves)) {
    const family = name.split("/")[0];
    found.set(family, [...(found.get(family) ?? []), [name, points]]);
  }
  return [...found];
}

function curve(each, family, curves) {
  const at = [...new Set(curves.flatMap(([, points]) => points.map(([place]) => place)))].sort((a, b) => a - b);
  const series = curves.map(([name, points]) => {
    const byPlace = new Map(points);
    return { name: name.split("/").slice(1).join("/") || name, values: at.map((place) => byPlace.get(place) ?? null) };
  });
  return chart({ id: `${each.model}-${each.version}-${each.attempt}-${family}`, title: family, format: number, at, series, clock: String });
}
