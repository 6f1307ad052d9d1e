// The server's log of the last requests to this block.

import { getJson } from "/page/api.js";
import { byId, make } from "/page/dom.js";
import { clock, whole } from "/page/format.js";

const SHOWN = 50;

export class RequestLog {
  /** `block()` is the id of the block that is asked. */
  constructor(block) {
    this.block = block;
    this.dialog = byId("log");
    byId("open-log").addEventListener("click", () => this.open());
  }

  async open() {
    const rows = byId("log-rows");
    const note = byId("log-note");
    rows.replaceChildren();
    note.textContent = "Asking the server.";
    this.dialog.showModal();
    try {
      const { data } = await getJson(`/logs/block/${encodeURIComponent(this.block())}`);
      const last = data.toSorted((one, other) => other.started - one.started).slice(0, SHOWN);
      rows.replaceChildren(...last.map(row));
      note.textContent = last.length ? `The last ${last.length} requests to ${this.block()}.` : "No request yet.";
    } catch (error) {
      note.textContent = error.message;
    }
  }
}

function row(entry) {
  const tokens = [entry.prompt_tokens, entry.completion_tokens].map((count) => (count === null ? "–" : whole(count)));
  const cells = [
    clock(entry.started),
    entry.outcome === "ok" ? "ok" : [entry.outcome, entry.code].filter(Boolean).join(": "),
    tokens.join(" + "),
    `${entry.duration_s.toFixed(1)} s`,
    entry.request_id,
  ];
  return make("tr", {}, ...cells.map((textContent) => make("td", { textContent })));
}
