/* Charts over time: lines in SVG, with a legend that has the newest values and a table of the same numbers behind.
 *
 * A spec: { id, title, format, from, to, at, series: [{ name, values }], marks: [{ at, text, kind }], clock }. `at` may
 * be of each series its own (`series[i].at`). The table is made only while it is open.
 */

import { h, own, svg } from "./dom.js";
import { bytes, clock, count, hourMinute, NONE } from "./format.js";
import { byteUnit, largest, last, runs, timeTicks, valueTicks, whole } from "./scale.js";

const HEIGHT = 172;
const EDGE = { top: 10, right: 8, bottom: 22, left: 56 };
const MOST_ROWS = 60;
const pointed = new WeakMap();

export function chart(asked) {
  const spec = asked.clock ? asked : settled(asked);
  const tableKey = `table-${spec.id}`;
  const open = document.querySelector(`[data-key="${CSS.escape(tableKey)}"]`)?.open;
  const empty = spec.series.every(({ values }) => last(values) === null);
  return h("figure", { class: "chart card", "data-key": `chart-${spec.id}` },
    h("figcaption", {}, h("h3", {}, spec.title), spec.note && h("p", { class: "note" }, spec.note)),
    own({ class: "plot", role: "img", "aria-label": summary(spec, empty) }, paint, { ...spec, empty }),
    h("ul", { class: "legend" }, spec.series.map(({ name, values }, index) =>
      h("li", {}, h("span", { class: `key c${index % 6}`, "aria-hidden": "true" }), name, " ", h("b", {}, spec.format(last(values)))))),
    h("details", { "data-key": tableKey }, h("summary", {}, "Numbers", h("span", { class: "sr" }, ` of ${spec.title}`)), open && table(spec)));
}

function settled(spec) {
  const step = spec.at.length > 1 ? spec.at[1] - spec.at[0] : 0;
  const count = whole(spec.at, step, Date.now() / 1000);
  return { ...spec, at: spec.at.slice(0, count), series: spec.series.map(({ name, values }) => ({ name, values: values.slice(0, count) })) };
}

function summary(spec, empty) {
  if (empty) return `${spec.title}: nothing in this time.`;
  const told = spec.series.map(({ name, values }) => `${name} ${spec.format(last(values))}, at most ${spec.format(largest(values))}`);
  return `${spec.title}. ${told.join("; ")}. The numbers are in the table below.`;
}

function table(spec) {
  const at = spec.at;
  const every = Math.max(1, Math.ceil(at.length / MOST_ROWS));
  const rows = at.map((_, index) => index).filter((index) => (at.length - 1 - index) % every === 0).reverse();
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Numbers of ${spec.title}` },
    h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "From"), spec.series.map(({ name }) => h("th", { scope: "col", class: "n" }, name)))),
      h("tbody", {}, rows.map((index) => h("tr", {}, h("th", { scope: "row" }, spec.clock ? at[index] : clock(at[index])),
        spec.series.map(({ values }) => h("td", { class: "n" }, spec.format(values[index] ?? null))))))));
}

function paint(node, spec) {
  const width = node.clientWidth;
  if (!width) return;
  const xs = spec.series.length && spec.at.length ? [spec.from ?? spec.at[0], spec.to ?? spec.at.at(-1)] : [0, 1];
  const most = Math.max(...spec.series.map(({ values }) => largest(values)), spec.format === count ? 1 : 0);
  const ticks = valueTicks(most, spec.format === count ? 1 : spec.format === bytes ? byteUnit(most) : 0);
  const x = (at) => EDGE.left + ((at - xs[0]) / (xs[1] - xs[0] || 1)) * (width - EDGE.left - EDGE.right);
  const y = (value) => HEIGHT - EDGE.bottom - (value / ticks.at(-1)) * (HEIGHT - EDGE.top - EDGE.bottom);
  const label = spec.clock ?? hourMinute;
  const times = spec.clock ? spec.at.filter((_, index, all) => index % Math.ceil(all.length / 6) === 0) : timeTicks(...xs, Math.max(2, Math.floor(width / 80)));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" },
    ticks.map((value) => [
      svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" }, spec.format(value))]),
    times.map((at) => svg("text", { class: "tick", x: Math.min(x(at), width - 17), y: HEIGHT - 5, "text-anchor": "middle" }, label(at))),
    (spec.marks ?? []).filter(({ at }) => at >= xs[0] && at <= xs[1]).map((mark) => drawMark(mark, x(mark.at))),
    spec.series.map((series, index) => drawSeries(runs(spec.at, series.values, x, y), index, spec.series.length === 1 && y(0))),
    spec.empty && svg("text", { class: "nothing", x: (EDGE.left + width) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "Nothing in this time"));
  node.replaceChildren(picture);
  const look = () => point(node, spec, picture, { x, y, xs, width }, pointed.get(node) ?? null);
  node.onpointermove = (event) => { pointed.set(node, event.clientX - node.getBoundingClientRect().left); look(); };
  node.onpointerleave = () => { pointed.delete(node); look(); };
  look(); // a refresh under the pointer leaves the numbers there
}

function drawMark(mark, x) {
  const kind = ["deploy", "start", "restart", "lost", "overload", "alert"].includes(mark.kind) ? mark.kind : "other";
  return svg("g", { class: `mark ${kind}` }, svg("title", {}, mark.text),
    svg("line", { x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }),
    svg("circle", { cx: x, cy: EDGE.top, r: 4 }));
}

function drawSeries(pieces, index, floor) {
  const path = (run) => run.map(([px, py], place) => `${place ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  return svg("g", { class: `series c${index % 6}` }, pieces.map((run) => [
    floor !== false && run.length > 1 && svg("path", { class: "area", d: `${path(run)}L${run.at(-1)[0]} ${floor}L${run[0][0]} ${floor}Z` }),
    run.length > 1 ? svg("path", { class: "line", d: path(run) }) : svg("circle", { class: "dot", cx: run[0][0], cy: run[0][1], r: 2.5 })]));
}

function point(node, spec, picture, { x, y, xs, width }, offsetX) {
  picture.querySelector(".cursor")?.remove();
  node.querySelector(".tip")?.remove();
  if (offsetX === null || spec.empty || !spec.at.length) return;
  const wanted = xs[0] + ((offsetX - EDGE.left) / (width - EDGE.left - EDGE.right)) * (xs[1] - xs[0]);
  const index = spec.at.reduce((best, at, place) => (Math.abs(at - wanted) < Math.abs(spec.at[best] - wanted) ? place : best), 0);
  const here = spec.series.map(({ name, values }, place) => ({ name, place, value: values[index] ?? null }));
  const at = x(spec.at[index]);
  picture.append(svg("g", { class: "cursor" },
    svg("line", { x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }),
    here.filter(({ value }) => value !== null).map(({ place, value }) => svg("circle", { class: `c${place % 6}`, cx: at, cy: y(value), r: 3.5 }))));
  node.append(h("div", { class: `tip ${at > width / 2 ? "left" : "right"}`, "aria-hidden": "true" },
    h("b", {}, (spec.clock ?? clock)(spec.at[index])),
    here.map(({ name, place, value }) => h("div", {}, h("span", { class: `key c${place % 6}` }), `${name} ${value === null ? NONE : spec.format(value)}`))));
  node.style.setProperty("--cursor", `${at}px`);
}

/** A line without axes, for a number that moves. */
export const spark = (values) => own({ class: "spark", "aria-hidden": "true" }, paintSpark, values);

function paintSpark(node, values) {
  const width = node.clientWidth, height = 32, most = largest(values) || 1;
  const at = values.map((_, index) => index);
  const x = (index) => (index / Math.max(values.length - 1, 1)) * width;
  const pieces = runs(at, values, x, (value) => height - 2 - (value / most) * (height - 5));
  node.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, drawSeries(pieces, 0, height)));
}
