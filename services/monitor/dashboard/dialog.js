/* Asking before something changes, and for an API key where one is needed. */

import { act, part, setApiKey } from "./api.js";
import { h } from "./dom.js";

const QUESTIONS = {
  promote: ({ model, version }) => ({
    title: `Promote version ${version} of ${model}?`,
    text: "From now on it answers every request that names no version. A traffic split ends. Workers load it first; no request fails.",
    verb: "Promote", path: `/v1/models/${part(model)}/versions/${part(version)}/promote`,
    done: (after) => `Version ${after.active} of ${after.model} answers now.`,
  }),
  rollback: ({ model }) => ({
    title: `Roll ${model} back?`,
    text: "The version that answered before answers again; a traffic split just ends.",
    verb: "Roll back", path: `/v1/models/${part(model)}/rollback`,
    done: (after) => `Version ${after.active} of ${after.model} answers again.`,
  }),
};

/** Ask, and do it if the answer is yes; resolves to a sentence about what was done, or null. */
export function confirmed(action, { model, version, keyNeeded }) {
  const question = QUESTIONS[action]({ model, version });
  const dialog = document.getElementById("dialog");
  const problem = h("p", { class: "problem", role: "alert" });
  const yes = h("button", { class: "primary", value: "yes" }, question.verb);
  const key = keyNeeded === "true" && h("p", {}, h("label", { for: "api-key" }, "API key"), h("input", { id: "api-key", type: "password", autocomplete: "off", required: true }));
  const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, question.title), h("p", {}, question.text), key, problem,
    h("p", { class: "do" }, h("button", { type: "button", value: "no" }, "Cancel"), yes));
  dialog.replaceChildren(form);
  return new Promise((resolve) => {
    let told = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (key) setApiKey(document.getElementById("api-key").value);
      yes.disabled = true;
      problem.textContent = "";
      try {
        told = question.done(await act(question.path));
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
        yes.disabled = false;
      }
    });
    form.querySelector("[value=no]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => resolve(told), { once: true });
    dialog.showModal();
  });
}
