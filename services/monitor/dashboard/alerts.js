/* What is wrong now, what was, and what would be: active alerts, their history, and the rules. */

import { get } from "./api.js";
import { h } from "./dom.js";
import { age, moment, number } from "./format.js";
import { badge, card, nothing, rangePicker, table } from "./parts.js";

export const title = () => "Alerts";
export const load = ({ range }) => get(`/v1/alerts?from=${range}`);

const subject = ({ model, version, instance }) => [model && `${model}${version == null ? "" : ` v${version}`}`, instance].filter(Boolean).join(", ") || "the platform";

export function render({ active, history, rules }, { range }) {
  return [
    h("div", { class: "head" }, h("h1", {}, "Alerts"), rangePicker(range)),
    card("Active", active.length ? h("ul", { class: "actives" }, active.map(one)) : nothing("Nothing is wrong", "No rule below is broken at the moment.")),
    card("History", history.length ? table("What was raised and cleared", [
      ["When", ({ at }) => moment(at)], ["Change", ({ change }) => badge(change)], ["Severity", ({ severity }) => badge(severity)], ["Of", subject], ["What", ({ message }) => message, "wide"],
    ], history.toSorted((a, b) => b.at - a.at), ({ at, id, change }) => `${at}-${id}-${change}`) : h("p", { class: "quiet-text" }, "Nothing was raised in this time.")),
    card("Rules", rules.length ? table("Rules", [
      ["Rule", ({ rule }) => rule], ["Severity", ({ severity }) => badge(severity)], ["Raised above", ({ raises_above: above }) => number(above), "n"],
      ["Cleared below", ({ clears_below: below }) => number(below), "n"], ["For", ({ for_s: long }) => (long ? age(long) : "at once"), "n"], ["Means", ({ text }) => text, "wide"],
    ], rules, ({ rule, severity }) => `${rule}-${severity}`) : h("p", { class: "quiet-text" }, "This monitor has no rules.")),
  ];
}

const one = (alert) => h("li", { class: alert.severity, "data-key": alert.id },
  h("p", {}, badge(alert.severity), " ", h("b", {}, alert.rule), ` on ${subject(alert)}`), h("p", {}, alert.message),
  h("p", { class: "quiet-text" }, `Since ${moment(alert.since)}; ${number(alert.value)} where ${number(alert.threshold)} is the threshold.`));
