// What the browser keeps for this page. It may be full or forbidden: then this page's memory has it.

const TAB_KEY = "splitstack.tab";

export class Storage {
  /** `area`: "localStorage" or "sessionStorage". */
  constructor(area) {
    this.memory = new Map();
    try {
      this.kept = window[area];
    } catch {
      this.kept = null;
    }
  }

  get forbidden() {
    return !this.kept;
  }

  get(key) {
    return this.memory.get(key) ?? this.kept?.getItem(key) ?? null;
  }

  /** False when it is in this page's memory alone. */
  set(key, value) {
    try {
      this.kept.setItem(key, value);
      this.memory.delete(key);
      return true;
    } catch {
      this.memory.set(key, value);
      return false;
    }
  }

  remove(key) {
    this.memory.delete(key);
    this.kept?.removeItem(key);
  }

  keys(prefix) {
    const all = new Set([...this.memory.keys(), ...(this.kept ? Object.keys(this.kept) : [])]);
    return [...all].filter((key) => key.startsWith(prefix));
  }

  /** An object that was kept as JSON; {} where none was, or something else. */
  getObject(key) {
    try {
      return Object(JSON.parse(this.get(key) ?? "{}"));
    } catch {
      return {};
    }
  }
}

export const browser = new Storage("localStorage");
export const tab = new Storage("sessionStorage");

/** Unlike crypto.randomUUID it is there where the page came over plain HTTP too. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** This tab, also after it is loaded anew. */
export const TAB = tab.get(TAB_KEY) ?? newId();
// A duplicate of the tab begins with a copy of what this one keeps, and is not this tab.
tab.remove(TAB_KEY);
addEventListener("pagehide", () => tab.set(TAB_KEY, TAB));
addEventListener("pageshow", () => tab.remove(TAB_KEY));
