// What broke lately, when, and for how long. The master keeps it; the newest is first here.

import { make } from "/page/dom.js";
import { clock } from "/page/format.js";

const SHOWN = 5;

export class Events {
  constructor(section, list) {
    this.section = section;
    this.list = list;
    this.drawn = "";
  }

  draw(events) {
    const last = events.slice(-SHOWN).reverse();
    const drawn = JSON.stringify(last);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.section.hidden = last.length === 0;
    this.list.replaceChildren(
      ...last.map(({ at, text, duration_s: duration }) => {
        const time = make("time", { textContent: clock(at), title: new Date(at * 1000).toLocaleString() });
        time.dateTime = new Date(at * 1000).toISOString();
        return make("li", { "data-over": String(duration !== null) }, time, make("span", { textContent: text }));
      }),
    );
  }
}
