// Micro-batches on their way along the ranks. Real steps take milliseconds: what is drawn is as
// many as are in flight, each rank holding one for its measured share of the round, slowed down.

import { makeSvg } from "/page/dom.js";

const ROUND_MS = 3200; // how long a slowed-down round takes
const GAP_SHARE = 0.25; // of a round, spent between boxes
const QUIET_MS = 900; // dots stay this long after the last request has ended
const X = 12;

export class Motion {
  constructor(list, note) {
    this.list = list;
    this.note = note;
    this.svg = makeSvg("svg", { class: "track", "aria-hidden": "true" });
    this.rail = makeSvg("path", { class: "rail" });
    this.svg.append(this.rail);
    this.dots = [];
    this.boxes = [];
    this.shares = [];
    this.busyUntil = 0;
    this.frame = 0;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
  }

  /** Take what is in flight from a topology. */
  draw(topology, boxes) {
    this.boxes = boxes;
    if (!this.svg.isConnected) this.list.append(this.svg);
    const round = topology.ranks.reduce((sum, rank) => sum + rank.compute_ms, 0);
    this.shares = topology.ranks.map((rank) => (round ? rank.compute_ms / round : 1 / boxes.length));
    const now = performance.now();
    const working = topology.ready && topology.requests_running > 0;
    if (working) {
      // A long step changes nothing for seconds, and so nothing is told: it is still under way.
      this.busyUntil = Infinity;
      this.match(Math.max(1, Math.min(topology.micro_batches, topology.requests_running)));
      const each = Math.ceil(topology.requests_running / this.dots.length);
      for (const dot of this.dots) dot.label.textContent = each > 1 ? String(each) : "";
    }
    if (!working) this.busyUntil = Math.min(this.busyUntil, topology.ready ? now + QUIET_MS : 0);
    this.say(topology, round);
    if (!this.frame) this.frame = requestAnimationFrame((at) => this.step(at));
  }

  rest() {
    this.busyUntil = 0;
  }

  say(topology, round) {
    const slower = Math.max(1, Math.round(ROUND_MS / Math.max(1, round)));
    const text = this.still.matches || !round
      ? "A rank's upper line is the share of its time that it computes while there is work."
      : `Each dot is a micro-batch in flight, drawn ${slower} times slower than it moves. A rank's upper line is the share of its time that it computes while there is work.`;
    if (this.note.textContent !== text) this.note.textContent = text;
  }

  match(count) {
    while (this.dots.length > count) this.dots.pop().group.remove();
    while (this.dots.length < count) {
      const group = makeSvg("g");
      const label = makeSvg("text");
      group.append(makeSvg("circle", { class: "dot", r: 8 }), label);
      this.svg.append(group);
      this.dots.push({ group, label });
    }
  }

  step(now) {
    this.frame = 0;
    const places = this.places();
    if (!places.length) return;
    const top = places[0].from;
    const bottom = places.at(-1).to;
    this.rail.setAttribute("d", `M${X} ${top}V${bottom}`);
    const busy = now < this.busyUntil;
    const working = new Set();
    this.dots.forEach(({ group }, number) => {
      group.style.display = busy ? "" : "none";
      if (!busy) return;
      const phase = (now / ROUND_MS + number / this.dots.length) % 1;
      const { y, rank } = this.at(phase, places);
      group.setAttribute("transform", `translate(${X} ${y})`);
      if (rank !== null) working.add(rank);
    });
    this.boxes.forEach((box, rank) => box.element.toggleAttribute("data-working", working.has(rank)));
    if (busy && !this.still.matches) this.frame = requestAnimationFrame((at) => this.step(at));
    else if (busy) setTimeout(() => this.step(performance.now()), QUIET_MS);
  }

  /** Where each rank's box begins and ends on the rail. */
  places() {
    return this.boxes.map(({ element }) => ({
      from: element.offsetTop + 10,
      to: element.offsetTop + element.offsetHeight - 10,
    }));
  }

  /** The place of a micro-batch in a phase of its round, 0 to 1, and the rank that has it. */
  at(phase, places) {
    const gap = places.length > 1 ? GAP_SHARE / (places.length - 1) : 0;
    const inBoxes = 1 - gap * (places.length - 1);
    let left = phase;
    for (let rank = 0; rank < places.length; rank += 1) {
      const { from, to } = places[rank];
      const span = inBoxes * this.shares[rank];
      if (left <= span || rank === places.length - 1) {
        return { y: from + (to - from) * Math.min(1, span ? left / span : 1), rank };
      }
      left -= span;
      if (left <= gap) return { y: to + (places[rank + 1].from - to) * (left / gap), rank: null };
      left -= gap;
    }
    return { y: 0, rank: null };
  }
}
