// Conversations, kept in this browser. The newest is first.

const STORED = "splitstack.sessions";
const MOST = 50;

export class Sessions {
  constructor() {
    this.all = read();
    this.current = this.all[0] ?? this.begin();
  }

  /** A new, empty session; an empty one that is there already is taken again. */
  begin() {
    const empty = this.all.find((session) => session.messages.length === 0);
    if (!empty) this.all.unshift({ id: crypto.randomUUID?.() ?? String(Date.now()), messages: [] });
    this.current = empty ?? this.all[0];
    return this.current;
  }

  open(id) {
    this.current = this.all.find((session) => session.id === id) ?? this.begin();
  }

  delete(id) {
    this.all = this.all.filter((session) => session.id !== id);
    if (this.current.id === id) this.current = this.all[0] ?? this.begin();
    this.save();
  }

  title(session) {
    const first = session.messages.find((message) => message.role === "user");
    return first ? first.content.slice(0, 80) : "New session";
  }

  /** The oldest are dropped where the browser has no room for all of them. */
  save() {
    this.all = this.all.slice(0, MOST);
    let kept = this.all.filter((session) => session.messages.length);
    while (kept.length) {
      try {
        localStorage.setItem(STORED, JSON.stringify(kept));
        return;
      } catch {
        kept = kept.slice(0, -1);
      }
    }
    localStorage.removeItem(STORED);
  }
}

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(STORED) ?? "[]");
    return found.filter((session) => session.id && Array.isArray(session.messages));
  } catch {
    return [];
  }
}
