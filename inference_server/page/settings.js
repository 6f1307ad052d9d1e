// Sampling and system message: what the user has set, and its dialog.

import { byId } from "/page/dom.js";
import { whole } from "/page/format.js";
import { browser } from "/page/storage.js";

const STORED = "splitstack.settings";
const WHOLE = new Set(["top_k", "max_completion_tokens", "seed"]);
// In force where neither request nor block nor model says anything.
const USUAL = { temperature: 1, top_p: 1, top_k: "all", repetition_penalty: 1, seed: "drawn" };

export class Settings {
  /** `model()` is an entry of /v1/models. */
  constructor(model) {
    this.values = browser.getObject(STORED);
    this.model = model;
    this.dialog = byId("settings");
    this.form = this.dialog.querySelector("form");
    byId("open-settings").addEventListener("click", () => this.open());
    byId("reset-settings").addEventListener("click", () => this.form.reset());
    this.form.addEventListener("submit", () => this.save());
  }

  /** The fields of a request's body that the user has set. */
  sampling() {
    const { system, ...sampling } = this.values;
    return sampling;
  }

  get system() {
    return this.values.system ?? "";
  }

  open() {
    const { generation_config: config = {}, max_model_len: context } = this.model();
    const most = config.max_new_tokens ?? config.max_tokens ?? (context ? `up to ${whole(context)}` : "");
    const greedy = config.do_sample === false ? { temperature: 0 } : {};
    const usual = { ...USUAL, max_completion_tokens: most, ...config, ...greedy };
    for (const field of this.form.elements) {
      if (!field.name) continue;
      field.value = this.values[field.name] ?? "";
      if (field.name !== "system") field.placeholder = String(usual[field.name]);
    }
    this.form.elements.max_completion_tokens.max = context ?? "";
    this.dialog.showModal();
  }

  save() {
    this.values = {};
    for (const { name, value } of this.form.elements) {
      if (!name || value.trim() === "") continue;
      if (name === "system") this.values.system = value;
      else this.values[name] = WHOLE.has(name) ? Math.round(Number(value)) : Number(value);
    }
    browser.set(STORED, JSON.stringify(this.values));
  }
}
