// Sampling and system message: what the user has set, and its dialog.

import { byId } from "/page/dom.js";

const STORED = "splitstack.settings";
const WHOLE = new Set(["top_k", "max_completion_tokens", "seed"]);

export class Settings {
  constructor() {
    this.values = read();
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
    for (const field of this.form.elements) {
      if (field.name) field.value = this.values[field.name] ?? "";
    }
    this.dialog.showModal();
  }

  save() {
    this.values = {};
    for (const { name, value } of this.form.elements) {
      if (!name || value.trim() === "") continue;
      if (name === "system") this.values.system = value;
      else this.values[name] = WHOLE.has(name) ? Math.round(Number(value)) : Number(value);
    }
    localStorage.setItem(STORED, JSON.stringify(this.values));
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(STORED) ?? "{}");
  } catch {
    return {};
  }
}
