// Tokens per second over the last minute, from the count of tokens generated since the start.

import { makeSvg } from "/page/dom.js";

const WINDOW_MS = 60_000;
const MEAN_MS = 2000; // one value is the mean of this long
const WIDTH = 240;
const HEIGHT = 48;

export class SpeedChart {
  constructor(number, chart) {
    this.number = number;
    this.area = makeSvg("path", { class: "area" });
    this.edge = makeSvg("path", { class: "edge" });
    chart.append(this.area, this.edge);
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
    this.number.textContent = speed < 10 ? speed.toFixed(1) : String(Math.round(speed));
    this.draw(now);
  }

  draw(now) {
    const most = Math.max(10, ...this.speeds.map((item) => item.speed)) * 1.1;
    const points = this.speeds.map((item) => {
      const x = WIDTH * (1 - (now - item.now) / WINDOW_MS);
      return `${x.toFixed(1)} ${(HEIGHT * (1 - item.speed / most)).toFixed(1)}`;
    });
    const edge = `M${points.join("L")}`;
    this.edge.setAttribute("d", edge);
    const start = points[0].split(" ")[0];
    this.area.setAttribute("d", `${edge}L${WIDTH} ${HEIGHT}L${start} ${HEIGHT}Z`);
  }
}
