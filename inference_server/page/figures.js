// The pipeline's figures, in two groups: what is now, and what was counted since the start.

import { make } from "/page/dom.js";
import { percent, whole } from "/page/format.js";

const UNKNOWN = "–";
const NOW = {
  Running: "Requests that are being computed.",
  Waiting: "Requests that wait until the KV cache has room for their worst case.",
  "Micro-batches": "Groups of requests that go through the ranks one behind the other.",
  Bubbles: "The share of its time that a rank waits for work while there is some.",
  "KV cache": "Keys and values of the tokens so far. Each request reserves room for its longest answer.",
};
const SINCE = {
  Restarts: "How often another process took a rank over.",
  Replays: "Requests that went on after a rank was lost, from the tokens they had.",
  Epoch: "The number of the rank group's present life. It rises each time that the group forms again.",
};

export class Figures {
  constructor(now, since) {
    this.now = fill(now, NOW);
    this.since = fill(since, SINCE);
  }

  draw(topology) {
    this.now.Running.textContent = whole(topology.requests_running);
    this.now.Waiting.textContent = whole(topology.requests_waiting);
    this.now["Micro-batches"].textContent = whole(inFlight(topology));
    const alone = oneAtATime(topology);
    this.now.Bubbles.previousSibling.textContent = alone ? "Ranks" : "Bubbles";
    this.now.Bubbles.textContent = alone || bubbles(topology);
    this.now["KV cache"].textContent = cache(topology);
    // A new master learns from the ranks what was before it; until then it counts from nothing.
    if (topology.epoch === null) return;
    this.since.Restarts.textContent = whole(topology.ranks.reduce((sum, rank) => sum + rank.restarts, 0));
    this.since.Replays.textContent = whole(topology.replays);
    this.since.Epoch.textContent = whole(topology.epoch);
  }

  /** The present is not known; what was counted until now stays true. */
  lose() {
    for (const value of Object.values(this.now)) value.textContent = UNKNOWN;
  }
}

/** With one micro-batch in flight a share of time would be 1 - 1 / ranks, whatever is done. */
function oneAtATime(topology) {
  if (topology.ranks.length === 1 || inFlight(topology) !== 1) return "";
  return `one ${topology.requests_running === 1 ? "request" : "micro-batch"} uses one rank at a time`;
}

/** As many as the master keeps on their way, where there are requests for them. */
function inFlight({ micro_batches: micro, requests_running: running }) {
  return Math.min(micro, running);
}

function bubbles({ ranks, requests_running: running }) {
  if (!running) return UNKNOWN;
  const waits = ranks.map((rank) => rank.bubble_ratio).filter((ratio) => ratio !== null);
  return waits.length ? percent(waits.reduce((sum, ratio) => sum + ratio, 0) / waits.length) : UNKNOWN;
}

function cache({ kv_tokens: room, kv_tokens_reserved: reserved, kv_tokens_used: used }) {
  if (!room) return UNKNOWN;
  const held = used === undefined ? "" : `${whole(used)} used, `;
  return `${held}${whole(reserved)} reserved of ${whole(room)} tokens`;
}

function fill(list, meanings) {
  const values = {};
  for (const [name, title] of Object.entries(meanings)) {
    values[name] = make("dd", { textContent: UNKNOWN });
    list.append(make("div", { title }, make("dt", { textContent: name }), values[name]));
  }
  return values;
}
