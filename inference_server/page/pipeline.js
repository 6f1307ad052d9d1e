// The pipeline as it is now: told by the server's events, drawn as one box a rank.

import { ApiError, liveEvents } from "/page/api.js";
import { byId } from "/page/dom.js";
import { Events } from "/page/events.js";
import { Figures } from "/page/figures.js";
import { Motion } from "/page/motion.js";
import { RankBox } from "/page/rank_box.js";
import { SpeedChart } from "/page/speed_chart.js";

const AGAIN_MS = 1500;
// The master tells at least every 3 s, changed or not.
const SILENT_MS = 6000;

export class Pipeline {
  /** `told` is called with each topology, or null while there is none. */
  constructor(told) {
    this.told = told;
    this.boxes = [];
    this.motion = new Motion(byId("ranks"), byId("motion-note"));
    this.speed = new SpeedChart(byId("speed"), byId("speed-chart"), byId("speed-most"));
    this.figures = new Figures(byId("figures-now"), byId("figures-since"));
    this.events = new Events(byId("events"), byId("event-list"));
    this.watching = null;
    this.silence = 0;
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
    clearTimeout(this.silence);
    const silent = `The pipeline has told nothing for ${SILENT_MS / 1000} s.`;
    this.silence = setTimeout(() => this.lose(silent), SILENT_MS);
    this.state(topology.ready ? "ready" : topology.state, topology.ready ? "" : topology.reason);
    this.figures.draw(topology);
    this.speed.add(topology.generated_tokens, performance.now());
    this.events.draw(topology.events ?? []);
    this.match(topology.ranks);
    const most = Math.max(...topology.ranks.map((rank) => (rank.weight_bytes ?? 0) + (rank.kv_bytes ?? 0)));
    topology.ranks.forEach((rank, place) => this.boxes[place].draw(rank, most));
    this.motion.draw(topology, this.boxes);
    this.told(topology);
  }

  /** Nothing is known of the present any more, and nothing old is shown for it. */
  lose(reason) {
    clearTimeout(this.silence);
    this.state("none", reason);
    this.motion.rest();
    this.speed.lose();
    this.figures.lose();
    for (const box of this.boxes) box.lose();
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

  match(ranks) {
    if (this.boxes.length === ranks.length) return;
    for (const box of this.boxes) box.element.remove();
    this.boxes = ranks.map((rank) => new RankBox(rank.rank));
    byId("ranks").append(...this.boxes.map((box) => box.element));
  }
}
