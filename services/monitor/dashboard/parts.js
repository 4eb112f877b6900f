/* Pieces that several views are made of. */

import { h, svg } from "./dom.js";
import { NONE } from "./format.js";

const WORDS = {
  ready: "good", succeeded: "good", up: "good", watching: "good", within: "good", cleared: "good",
  optimizing: "busy", uploaded: "busy", collecting: "busy",
  failed: "bad", rejected: "bad", down: "bad", drifted: "bad", critical: "bad", raised: "warn",
  expired: "warn", cancelled: "warn", warning: "warn", retired: "off", unloaded: "off", info: "busy",
};

/** A state as a word with a colour; the word alone says it. */
export const badge = (word, kind) => h("span", { class: `badge ${kind ?? WORDS[word] ?? "off"}` }, word ?? NONE);

export const card = (title, ...content) => h("section", { class: "card", "data-key": `card-${title}` }, h("h2", {}, title), content);

/** Where there is nothing: what that means, and what to do about it. */
export const nothing = (title, text, command) =>
  h("div", { class: "nothing-here" }, h("p", { class: "lead" }, title), h("p", {}, text), command && h("pre", {}, h("code", {}, command)));

/** A table. `columns` are [heading, row → content, "n" for numbers, "wide" for prose]; on a phone each row becomes a card of its own. */
export function table(caption, columns, rows, keyOf) {
  return h("div", { class: "scroll" },
    h("table", { class: "stack" }, h("caption", { class: "sr" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([heading, , kind]) => h("th", { scope: "col", class: kind }, heading)))),
      h("tbody", {}, rows.map((row) => h("tr", { "data-key": keyOf(row) }, columns.map(([heading, content, kind], index) =>
        index ? h("td", { class: kind, "data-label": heading }, content(row)) : h("th", { scope: "row", "data-label": heading }, content(row))))))));
}

export const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

/** A share as a bar, for the eye: its number stands beside it. */
export const bar = (share, kind = "") => svg("svg", { class: `bar ${kind}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
  svg("rect", { width: Number.isFinite(share) ? (Math.min(Math.max(share, 0), 1) * 100).toFixed(2) : 0, height: 8 }));

export const loading = (what) => h("div", { class: "loading", role: "status" }, h("p", {}, `Loading ${what}…`), h("div", { class: "bones", "aria-hidden": "true" }, h("i"), h("i"), h("i"), h("i")));

export const failed = (error) => h("div", { class: "nothing-here bad" },
  h("p", { class: "lead" }, error.away ? "The monitor does not answer" : "That did not work"), h("p", {}, error.message),
  h("p", {}, h("button", { type: "button", "data-action": "retry" }, "Try again")));

export const ranges = [["-15m", "15 min"], ["-1h", "1 hour"], ["-6h", "6 hours"], ["-1d", "1 day"], ["-7d", "7 days"]];
export const rangePicker = (chosen) => h("div", { class: "ranges", role: "group", "aria-label": "Time shown" },
  ranges.map(([value, text]) => h("button", { type: "button", "data-action": "range", "data-range": value, "aria-pressed": String(value === chosen) }, text)));

/** What happened, newest first. */
export const happened = (events, clock) => h("ol", { class: "happened" }, [...events].reverse().map((event) =>
  h("li", { class: event.kind, "data-key": `${event.at}-${event.text}` }, h("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)), " ", h("span", { class: "what" }, event.kind), " ", event.text)));
