// The pipeline as it is now: told by the server's events, drawn as one box a rank.

import { ApiError, liveEvents } from "/page/api.js";
import { byId, make } from "/page/dom.js";
import { Motion } from "/page/motion.js";
import { RankBox } from "/page/rank_box.js";
import { SpeedChart } from "/page/speed_chart.js";

const AGAIN_MS = 1500;

export class Pipeline {
  /** `told` is called with each topology, or null while there is none. */
  constructor(told) {
    this.told = told;
    this.boxes = [];
    this.motion = new Motion(byId("ranks"), byId("motion-note"));
    this.speed = new SpeedChart(byId("speed"), byId("speed-chart"));
    this.watching = null;
  }

  /** Watch that block's pipeline, and none before it. */
  async watch(model) {
    this.watching?.abort();
    const watching = (this.watching = new AbortController());
    const path = `/v1/events?model=${encodeURIComponent(model)}`;
    while (!watching.signal.aborted) {
      let reason = "The connection to the server was lost.";
      try {
        for await (const event of liveEvents(path, watching.signal)) {
          if (event.topology) this.draw(event.topology);
          else this.lose(event.reason);
        }
      } catch (error) {
        if (watching.signal.aborted) return;
        if (error instanceof ApiError) reason = error.message;
        if (error.status === 401) return this.lose(reason);
      }
      this.lose(reason);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  draw(topology) {
    this.state(topology.ready ? "ready" : topology.state, topology.ready ? "" : topology.reason);
    this.figures(topology);
    this.speed.add(topology.generated_tokens, performance.now());
    this.match(topology.ranks);
    const most = Math.max(...topology.ranks.map((rank) => (rank.weight_bytes ?? 0) + (rank.kv_bytes ?? 0)));
    topology.ranks.forEach((rank, place) => this.boxes[place].draw(rank, most));
    this.motion.draw(topology, this.boxes);
    this.told(topology);
  }

  lose(reason) {
    this.state("none", reason);
    this.motion.rest();
    this.told(null);
  }

  state(state, reason) {
    const pill = byId("group-state");
    // Its text is announced: only a change is.
    const text = { none: "no connection", ready: "ready" }[state] ?? state;
    if (pill.textContent !== text) pill.textContent = text;
    pill.dataset.state = state;
    byId("group-reason").textContent = reason;
    byId("group-reason").hidden = !reason;
  }

  figures(topology) {
    const { kv_tokens: room, kv_tokens_reserved: reserved } = topology;
    const waits = topology.ranks.map((rank) => rank.bubble_ratio).filter((ratio) => ratio !== null);
    const bubble = waits.length ? waits.reduce((sum, ratio) => sum + ratio, 0) / waits.length : null;
    const shown = {
      Running: topology.requests_running,
      Waiting: topology.requests_waiting,
      "Micro-batches": topology.micro_batches,
      "KV cache": room ? percent(reserved / room) : "–",
      Epoch: topology.epoch,
      Restarts: topology.ranks.reduce((sum, rank) => sum + rank.restarts, 0),
      Replays: topology.replays,
      Bubbles: bubble === null ? "–" : percent(bubble),
    };
    const list = byId("figures");
    if (!list.children.length) {
      for (const name of Object.keys(shown)) {
        list.append(make("div", {}, make("dt", { textContent: name }), make("dd")));
      }
    }
    Object.values(shown).forEach((value, place) => {
      list.children[place].lastElementChild.textContent = value;
    });
  }

  match(ranks) {
    if (this.boxes.length === ranks.length) return;
    for (const box of this.boxes) box.element.remove();
    this.boxes = ranks.map((rank) => new RankBox(rank.rank));
    byId("ranks").append(...this.boxes.map((box) => box.element));
  }
}

const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
