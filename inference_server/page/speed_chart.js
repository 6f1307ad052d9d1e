// Tokens per second over the last minute, from the count of tokens generated since the start.

import { makeSvg } from "/page/dom.js";
import { speed as written } from "/page/format.js";

const WINDOW_MS = 60_000;
const MEAN_MS = 2000; // one value is the mean of this long
const WIDTH = 240;
const HEIGHT = 48;

export class SpeedChart {
  /** `most` says what the chart's upper edge stands for. */
  constructor(number, chart, most) {
    this.number = number;
    this.most = most;
    this.area = makeSvg("path", { class: "area" });
    this.edge = makeSvg("path", { class: "edge" });
    const grid = [0, 0.5, 1].map((part) => `M0 ${HEIGHT * part}H${WIDTH}`);
    const times = [0.25, 0.5, 0.75].map((part) => `M${WIDTH * part} 0V${HEIGHT}`);
    chart.append(makeSvg("path", { class: "grid", d: [...grid, ...times].join("") }), this.area, this.edge);
    this.counts = [];
    this.speeds = [];
  }

  /** `tokens` counted at `now`, in milliseconds. */
  add(tokens, now) {
    const last = this.counts.at(-1);
    if (last && tokens < last.tokens) this.counts = []; // a new master counts from 0
    this.counts.push({ tokens, now });
    while (this.counts.length > 2 && this.counts[1].now <= now - MEAN_MS) this.counts.shift();
    const first = this.counts[0];
    const speed = now > first.now ? ((tokens - first.tokens) * 1000) / (now - first.now) : 0;
    this.speeds.push({ speed, now });
    this.speeds = this.speeds.filter((item) => item.now > now - WINDOW_MS);
    this.number.textContent = written(speed);
    this.draw(now);
  }

  /** Nothing is known from now on: a gap, until something is again. */
  lose() {
    this.number.textContent = "–";
    this.counts = [];
    if (this.speeds.length && this.speeds.at(-1).speed !== null) {
      this.speeds.push({ speed: null, now: performance.now() });
    }
  }

  draw(now) {
    const most = above(Math.max(10, ...this.speeds.map((item) => item.speed ?? 0)));
    this.most.textContent = `${most} tokens/s`;
    const runs = [[]];
    for (const { speed, now: at } of this.speeds) {
      const x = (WIDTH * (1 - (now - at) / WINDOW_MS)).toFixed(1);
      if (speed === null) runs.push([]);
      else runs.at(-1).push(`${x} ${(HEIGHT * (1 - speed / most)).toFixed(1)}`);
    }
    const drawn = runs.filter((points) => points.length);
    this.edge.setAttribute("d", drawn.map((points) => `M${points.join("L")}`).join(""));
    this.area.setAttribute("d", drawn.map(under).join(""));
  }
}

/** The area under a run of points. */
function under(points) {
  const [start, end] = [points[0], points.at(-1)].map((point) => point.split(" ")[0]);
  return `M${points.join("L")}L${end} ${HEIGHT}L${start} ${HEIGHT}Z`;
}

/** The next 1, 2 or 5 with zeros. */
function above(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 5, 10].find((times) => times * unit >= value);
}
