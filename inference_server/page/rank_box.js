// One rank: where it runs, what it holds, how its time is spent.

import { make } from "/page/dom.js";
import { bytes, milliseconds, percent } from "/page/format.js";

const WAITING = "The share of its time that the rank waits for work while there is some.";

export class RankBox {
  constructor(rank) {
    this.title = make("h3", { textContent: `Rank ${rank}` });
    this.layers = make("span", { className: "layers" });
    this.place = make("p", { className: "place" });
    this.compute = make("i", { className: "compute" });
    this.times = make("p", { className: "legend" });
    this.weights = make("i", { className: "weights" });
    this.cache = make("i", { className: "cache" });
    this.memory = make("p", { className: "legend" });
    this.element = make(
      "li",
      { className: "rank" },
      make("div", { className: "top" }, this.title, this.layers),
      this.place,
      make("div", { className: "bars" }, line(this.compute), this.times),
      make("div", { className: "memory" }, line(this.weights, this.cache), this.memory),
    );
  }

  /** `most`: bytes of the rank with the most, whose memory fills the line. */
  draw(rank, most) {
    const [first, end] = rank.layers;
    this.layers.textContent = end - first === 1 ? `layer ${first}` : `layers ${first} to ${end - 1}`;
    this.element.dataset.state = rank.loaded ? "loaded" : "absent";
    this.drawPlace(rank);
    if (!rank.loaded) return this.empty();
    this.compute.style.width = percent(1 - (rank.bubble_ratio ?? 1)).replace(" ", "");
    const step = rank.compute_ms ? `${milliseconds(rank.compute_ms)} a step` : "no step yet";
    legend(this.times, step, rank.bubble_ratio === null ? "" : `${percent(rank.bubble_ratio)} waiting`);
    this.times.lastChild.title = WAITING;
    const scale = most ? 100 / most : 0;
    this.weights.style.width = `${rank.weight_bytes * scale}%`;
    this.cache.style.width = `${rank.kv_bytes * scale}%`;
    legend(this.memory, `${bytes(rank.weight_bytes)} weights`, `${bytes(rank.kv_bytes)} KV cache`);
  }

  /** Nobody tells of it any more. */
  lose() {
    this.element.dataset.state = "unknown";
    this.empty();
  }

  /** No figure of another time. */
  empty() {
    for (const bar of [this.compute, this.weights, this.cache]) bar.style.width = "0";
    legend(this.times, "–", "");
    legend(this.memory, "–", "");
  }

  drawPlace(rank) {
    const place = [rank.node || "this machine", device(rank.devices), rank.dtype].filter(Boolean);
    this.place.replaceChildren(place.join(" · "));
    if (!rank.loaded) this.add("state", rank.joined ? "loading" : "gone");
    if (rank.restarts) {
      this.add("restarts", rank.restarts === 1 ? "restarted once" : `restarted ${rank.restarts} times`);
    }
  }

  add(className, textContent) {
    this.place.append(" · ", make("span", { className, textContent }));
  }
}

const line = (...parts) => make("div", { className: "bar-line", "aria-hidden": "true" }, ...parts);

function legend(element, left, right) {
  element.replaceChildren(make("b", { textContent: left }), make("span", { textContent: right }));
}

const device = (name) => (/^[0-9,]+$/.test(name) ? `GPU ${name}` : name.toUpperCase());
