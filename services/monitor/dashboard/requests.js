/* One request by its id: what became of it, and where its time went. */

import { get, part } from "./api.js";
import { h, own, svg } from "./dom.js";
import { clock, count, NONE, seconds, short } from "./format.js";
import { badge, card, facts, nothing } from "./parts.js";

export const title = ({ name }) => (name ? "One request" : "Requests");

export async function load({ name }) {
  if (!name) return { request: null };
  try {
    return { request: await get(`/v1/requests/${part(name)}`) };
  } catch (error) {
    if (error.status === 404) return { request: null, missing: true };
    throw error;
  }
}

export function render({ request, missing }, { name }) {
  return [
    h("h1", {}, "One request"),
    h("form", { class: "find", "data-action": "find" },
      h("label", { for: "request-id" }, "Request id"), h("input", { id: "request-id", name: "id", value: name ?? "", autocomplete: "off", spellcheck: "false", maxlength: "400", placeholder: "the answer's x-request-id, or the record's ce_id" }),
      h("button", { class: "primary" }, "Show")),
    !name && nothing("What became of a request", "Every answer carries its id in the header x-request-id; log lines, receipts and dead letters carry it too."),
    missing && nothing("No outcome by this id is known", "It may still wait in the log, be older than what the monitor keeps, or never have been accepted."),
    request?.outcomes.map((outcome, index) => story(outcome, index, request.request_id)),
  ];
}

function story(outcome, index, id) {
  const { request, timings_s: timings, batch } = outcome;
  return card(`${outcome.model}${outcome.version === null ? "" : ` v${outcome.version}`}${index ? ` (${index + 1})` : ""}`,
    h("p", { class: "verdict" }, badge(outcome.status), " ", sentence(outcome), " ", h("code", { class: "id" }, id)),
    timeline(outcome),
    h("ol", { class: "happened story" }, outcome.story.map((event) => h("li", { "data-key": `${event.at}-${event.what}` }, h("time", {}, precisely(event.at)), " ", h("span", { class: "what" }, event.what), " ", event.text))),
    facts([
      ["Served with", `${outcome.variant ?? NONE}`], ["Worker", outcome.worker], ["Tenant", outcome.tenant ?? NONE],
      ["Record", `${request.topic}/${request.partition} offset ${request.offset}`],
      outcome.outcome && ["Receipt", `outcomes/${outcome.outcome.partition} offset ${outcome.outcome.offset}`],
      ["Batch", batch ? `${batch.index + 1} of ${batch.size} in ${short(batch.id)}` : NONE],
      ["Registry offset", count(outcome.registry_offset)], ["Model bytes", h("code", {}, short(outcome.artifact_sha256))],
      ["Input", h("code", {}, short(outcome.input_sha256))], ["Output", h("code", {}, short(outcome.output_sha256))],
      ["Total", seconds(timings.total)],
    ]));
}

function sentence(outcome) {
  if (outcome.duplicate_of) return `A repeat of ${outcome.duplicate_of.topic}/${outcome.duplicate_of.partition} offset ${outcome.duplicate_of.offset}: it got that one's answer.`;
  const again = outcome.reexecuted ? " It was run again after a worker had died." : "";
  if (outcome.status === "succeeded") return `Answered in ${seconds(outcome.timings_s.total)}.${again}`;
  return `Ended with ${outcome.error_code ?? outcome.status} after ${seconds(outcome.timings_s.total)}.${again}`;
}

const precisely = (at) => `${clock(at)}.${String(Math.floor((at % 1) * 1000)).padStart(3, "0")}`;
const PHASES = [["queue", "Queue"], ["compute_input", "Input"], ["compute_infer", "Model"], ["compute_output", "Output"]];

function timeline({ timings_s: timings }) {
  const told = PHASES.filter(([name]) => typeof timings[name] === "number").map(([name, text], index) => ({ text, index, spent: timings[name] }));
  const all = told.reduce((sum, { spent }) => sum + spent, 0) || 1;
  const label = told.map(({ text, spent }) => `${text} ${seconds(spent)}`).join(", ");
  return h("figure", { class: "phases" }, own({ class: "phase-bar", role: "img", "aria-label": `Where the time went: ${label}` }, paintPhases, { told, all }),
    h("ul", { class: "legend" }, told.map(({ text, index, spent }) => h("li", {}, h("span", { class: `key c${index}`, "aria-hidden": "true" }), text, " ", h("b", {}, seconds(spent))))));
}

function paintPhases(node, { told, all }) {
  const width = node.clientWidth, height = 28;
  let from = 0;
  const pieces = told.map(({ index, spent, text }) => {
    const piece = svg("rect", { class: `c${index}`, x: from, y: 0, width: Math.max((spent / all) * width, spent ? 1.5 : 0), height }, svg("title", {}, `${text} ${seconds(spent)}`));
    from += (spent / all) * width;
    return piece;
  });
  node.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, pieces));
}
