// Entering the API key: by the user's own wish, or because the server has asked for one.

import { key } from "/page/api.js";
import { byId } from "/page/dom.js";

export class KeyDialog {
  /** `changed` is called when another key is in force. */
  constructor(changed) {
    this.dialog = byId("key");
    this.input = byId("key-input");
    this.changed = changed;
    byId("open-key").addEventListener("click", () => this.open("Needed only where the server asks for one."));
    byId("forget-key").addEventListener("click", () => this.use(""));
    this.dialog.querySelector("form").addEventListener("submit", () => {
      this.use(this.input.value.trim());
    });
    this.label();
  }

  open(reason) {
    if (this.dialog.open) return;
    byId("key-reason").textContent = reason;
    byId("key-remember").checked = key.remembered();
    this.input.value = key.get();
    this.dialog.showModal();
    this.input.focus();
  }

  use(value) {
    key.set(value, byId("key-remember").checked);
    this.dialog.close();
    this.label();
    this.changed();
  }

  label() {
    byId("key-label").textContent = key.get() ? "API key set" : "API key";
  }
}
