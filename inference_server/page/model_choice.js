// Which block is asked, and what is known of the model behind it.

import { getJson } from "/page/api.js";
import { byId, make } from "/page/dom.js";
import { whole } from "/page/format.js";
import { browser } from "/page/storage.js";

const AGAIN_MS = 2000;
const CHOSEN = "splitstack.block";
const DEMO = "demo:";
const QUESTIONS = [
  "What is the capital of France?",
  "Explain pipeline parallelism in three sentences.",
  "Write a short poem about a very long road.",
];
// Right with each of a dozen seeds; asked for the capital of France it errs one time in eight.
const DEMO_QUESTIONS = [
  "What is the largest ocean on Earth?",
  "What is photosynthesis?",
  "Give me three tips for sleeping well.",
];

export class ModelChoice {
  /** `chosen` is called when another block is. */
  constructor(chosen) {
    this.select = byId("block");
    this.models = [];
    this.askedAt = -AGAIN_MS;
    this.select.addEventListener("change", () => {
      browser.set(CHOSEN, this.id);
      this.describe();
      chosen();
    });
    this.describe();
  }

  get known() {
    return this.models.length > 0;
  }

  get id() {
    return this.select.value;
  }

  /** Its entry of /v1/models. */
  get model() {
    return this.models.find(({ id }) => id === this.id) ?? {};
  }

  /** Ask which blocks there are; false while there is none. Raises ApiError. */
  async load() {
    this.askedAt = performance.now();
    const { data } = await getJson("/v1/models");
    if (!data.length) return false;
    const before = this.id && this.known ? this.id : browser.get(CHOSEN);
    this.models = data;
    this.select.replaceChildren(
      ...data.map(({ id, title }) => {
        const shared = data.filter((one) => one.title === title).length > 1;
        const textContent = title ? `${title}${shared ? ` (${id})` : ""}` : id;
        return make("option", { value: id, textContent, selected: id === before });
      }),
    );
    this.select.disabled = false;
    this.describe();
    return true;
  }

  /** What a block did not say while it was starting. */
  async complete() {
    if (!this.known || this.model.title || performance.now() - this.askedAt < AGAIN_MS) return;
    await this.load().catch(() => {}); // asked again with later news of the pipeline
  }

  describe() {
    const { id, title, root, max_model_len: context } = this.model;
    const known = [id, context ? `context ${whole(context)}` : ""].filter(Boolean);
    byId("block-note").textContent = known.join(" · ");
    const demo = String(root ?? "").startsWith(DEMO);
    byId("demo-note").hidden = !demo;
    byId("welcome-title").textContent = title ? `Ask ${title} something` : "Ask the model something";
    const questions = demo ? DEMO_QUESTIONS : QUESTIONS;
    const buttons = questions.map((textContent) => make("button", { type: "button", textContent }));
    byId("suggestions").replaceChildren(...buttons);
  }
}
