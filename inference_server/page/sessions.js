// Conversations, kept in this browser, each under a key of its own. The newest is first.
// A session: {id, at, title?, messages: [{id, at, changed, role, content, ...}]}, times in ms.

import { browser, newId, TAB } from "/page/storage.js";

const PREFIX = "splitstack.session.";
const FORMERLY = "splitstack.sessions"; // all in one list, of which one tab's replaced another's
const TITLE_LENGTH = 200;

export class Sessions {
  /** `changed(session)`: another tab has changed it, or deleted it. */
  constructor(changed) {
    this.changed = changed;
    this.unkept = new Set(); // ids of those for which the browser has no room
    this.removed = new Set(); // ids of messages that this tab took out
    takeOver();
    this.all = browser.keys(PREFIX).map(read).filter(Boolean);
    this.current = this.sorted()[0] ?? this.begin();
    addEventListener("storage", ({ key, newValue }) => {
      if (key?.startsWith(PREFIX)) this.told(key.slice(PREFIX.length), parsed(newValue));
    });
  }

  sorted() {
    return this.all.sort((one, other) => other.at - one.at);
  }

  /** Those with `text` in their title or in what was said. */
  found(text) {
    const wanted = text.trim().toLowerCase();
    const has = (said) => said.toLowerCase().includes(wanted);
    return this.sorted().filter(
      (one) => !wanted || has(this.title(one)) || one.messages.some(({ content }) => has(content)),
    );
  }

  /** A new, empty session; an empty one that is there already is taken again. */
  begin() {
    const empty = this.all.find((session) => session.messages.length === 0);
    if (!empty) this.all.unshift({ id: newId(), at: Date.now(), messages: [] });
    this.current = empty ?? this.all[0];
    return this.current;
  }

  open(id) {
    this.current = this.all.find((session) => session.id === id) ?? this.begin();
  }

  delete(id) {
    this.forget(id);
    browser.remove(PREFIX + id);
    for (const unkept of [...this.unkept]) this.save(this.all.find(({ id: one }) => one === unkept));
  }

  forget(id) {
    this.all = this.all.filter((session) => session.id !== id);
    this.unkept.delete(id);
    if (this.current.id === id) this.current = this.sorted()[0] ?? this.begin();
  }

  title(session) {
    const first = session.messages.find((message) => message.role === "user");
    return session.title || first?.content.trim().slice(0, TITLE_LENGTH) || "New session";
  }

  rename(session, title) {
    session.title = title.trim().slice(0, TITLE_LENGTH);
    this.save(session);
  }

  /** A message at the session's end. */
  add(session, message) {
    const at = Math.max(Date.now(), (session.messages.at(-1)?.at ?? 0) + 1);
    const added = { id: newId(), at, changed: at, ...message };
    session.messages.push(added);
    session.at = at;
    return added;
  }

  take(session, message) {
    this.removed.add(message.id);
    session.messages = session.messages.filter((one) => one !== message);
  }

  /** Keep it, with what another tab has said in it meanwhile. */
  save(session) {
    if (!session?.messages.length) return;
    const kept = read(PREFIX + session.id);
    if (kept) session.messages = this.merged(session.messages, kept.messages);
    const { id, at, title, messages } = session;
    if (browser.set(PREFIX + id, JSON.stringify({ id, at, title, messages }))) this.unkept.delete(id);
    else this.unkept.add(id);
  }

  /** Of two tabs' messages each one as it was changed last, or as this tab is writing it. */
  merged(ours, theirs) {
    const all = new Map(theirs.map((message) => [message.id, message]));
    for (const message of ours) {
      const older = all.get(message.id)?.changed > message.changed;
      if (!older || message.writing === TAB) all.set(message.id, message);
    }
    const left = [...all.values()].filter(({ id }) => !this.removed.has(id));
    return left.sort((one, other) => one.at - other.at);
  }

  /** Another tab has changed the session, or deleted it: null. */
  told(id, theirs) {
    const ours = this.all.find((session) => session.id === id);
    if (!theirs) {
      if (ours) this.forget(id);
    } else if (!ours) this.all.push(theirs);
    else {
      const written = ours.messages.some((message) => message.writing);
      theirs.messages = written ? this.merged(ours.messages, theirs.messages) : theirs.messages;
      Object.assign(ours, theirs);
    }
    this.changed(id);
  }
}

const read = (key) => parsed(browser.get(key));

function parsed(text) {
  try {
    const session = JSON.parse(text);
    if (!session.id || !Array.isArray(session.messages)) return null;
    session.messages = session.messages.filter(({ content }) => typeof content === "string");
    session.messages.forEach((message, place) => {
      message.at ??= place;
      message.changed ??= place;
      message.id ??= `${session.id}-${place}`;
    });
    return { ...session, at: session.at ?? 0, title: String(session.title ?? "") };
  } catch {
    return null;
  }
}

/** Sessions as an earlier version kept them; that list stays until each has found its room. */
function takeOver() {
  try {
    const list = JSON.parse(browser.get(FORMERLY) ?? "[]");
    const old = list.map((session, place) => parsed(JSON.stringify({ at: -place, ...session })));
    const found = old.filter(Boolean);
    const kept = found.map((session) => browser.set(PREFIX + session.id, JSON.stringify(session)));
    if (kept.every(Boolean)) browser.remove(FORMERLY);
  } catch {
    // It was no list of ours.
  }
}
