// One rank: where it runs, what it holds, how its time is spent.

import { make } from "/page/dom.js";

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
    this.element.dataset.loaded = String(rank.loaded);
    this.drawPlace(rank);
    this.compute.style.width = `${100 * (1 - (rank.bubble_ratio ?? 1))}%`;
    const step = rank.compute_ms ? `${milliseconds(rank.compute_ms)} a step` : "no step yet";
    const bubble = rank.bubble_ratio === null ? "" : `${Math.round(rank.bubble_ratio * 100)} % waiting`;
    legend(this.times, step, bubble);
    const scale = most ? 100 / most : 0;
    this.weights.style.width = `${(rank.weight_bytes ?? 0) * scale}%`;
    this.cache.style.width = `${(rank.kv_bytes ?? 0) * scale}%`;
    const held = rank.loaded ? `${bytes(rank.weight_bytes)} weights` : "no weights loaded";
    legend(this.memory, held, rank.loaded ? `${bytes(rank.kv_bytes)} KV cache` : "");
  }

  drawPlace(rank) {
    const place = [rank.node || "this machine", device(rank.devices), rank.dtype].filter(Boolean);
    this.place.replaceChildren(place.join(" · "));
    if (!rank.loaded) this.place.replaceChildren(`${place.join(" · ")} · loading or gone`);
    if (rank.restarts) {
      const times = rank.restarts === 1 ? "restarted once" : `restarted ${rank.restarts} times`;
      this.place.append(" · ", make("span", { className: "restarts", textContent: times }));
    }
  }
}

const line = (...parts) => make("div", { className: "bar-line", "aria-hidden": "true" }, ...parts);

function legend(element, left, right) {
  element.replaceChildren(make("b", { textContent: left }), make("span", { textContent: right }));
}

const device = (name) => (/^[0-9,]+$/.test(name) ? `GPU ${name}` : name.toUpperCase());

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function bytes(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} GB`;
  return `${Math.round((count ?? 0) / 1e6)} MB`;
}
