// The sessions beside the conversation: find, open, rename, delete, take away; and what is not kept.

import { byId, copies, download, icon, make } from "/page/dom.js";
import { browser } from "/page/storage.js";

const KEPT = "Kept in this browser only.";
const FORBIDDEN =
  "This browser lets the page keep nothing: every session is gone when the page closes. Export what you need.";
const FULL =
  "This browser has no room left: what is said now is gone when the page closes. Export sessions, then delete some.";

export class SessionList {
  /** `leave(change)` goes to another session; `changed` is called when one has another title. */
  constructor(sessions, { leave, changed, curl, python }) {
    this.sessions = sessions;
    this.leave = leave;
    this.changed = changed;
    this.menu = byId("session-menu");
    this.dialog = byId("rename");
    byId("find-session").addEventListener("input", () => this.draw());
    byId("export-all").addEventListener("click", () => this.take(sessions.sorted(), "splitstack-sessions"));
    byId("export-session").addEventListener("click", () => this.take([sessions.current], "splitstack-session"));
    byId("rename-session").addEventListener("click", () => this.openRename());
    this.dialog.querySelector("form").addEventListener("submit", () => {
      sessions.rename(sessions.current, byId("new-title").value);
      this.changed();
    });
    copies(byId("copy-curl"), curl);
    copies(byId("copy-python"), python);
    document.addEventListener("click", ({ target }) => {
      if (!this.menu.contains(target) || target.closest("[data-closes]")) this.menu.open = false;
    });
    this.menu.addEventListener("keydown", ({ key }) => {
      if (key === "Escape") this.close();
    });
  }

  close() {
    this.menu.open = false;
    this.menu.querySelector("summary").focus();
  }

  draw() {
    const { sessions } = this;
    const found = sessions.found(byId("find-session").value);
    byId("session-list").replaceChildren(...found.map((session) => this.item(session)));
    byId("none-found").hidden = found.length > 0;
    const title = sessions.title(sessions.current);
    byId("session-title").textContent = title;
    byId("session-title").title = title;
    const note = byId("kept-note");
    const text = browser.forbidden ? FORBIDDEN : sessions.unkept.size ? FULL : KEPT;
    if (note.textContent !== text) note.textContent = text;
    byId("unkept").textContent = text === KEPT ? "" : text;
    byId("unkept").hidden = text === KEPT;
  }

  item(session) {
    const { sessions } = this;
    const title = sessions.title(session);
    const open = make("button", { type: "button", className: "open", title });
    open.append(make("span", { textContent: title }));
    open.addEventListener("click", () => this.leave(() => sessions.open(session.id)));
    const remove = make("button", { type: "button", className: "delete" }, icon("cross"));
    remove.ariaLabel = `Delete ${title}`;
    remove.addEventListener("click", () => this.delete(session));
    const item = make("li", {}, open, remove);
    if (session === sessions.current) {
      item.dataset.current = "";
      open.ariaCurrent = "true";
    }
    return item;
  }

  delete(session) {
    const change = () => this.sessions.delete(session.id);
    if (session === this.sessions.current) return this.leave(change);
    change();
    this.changed();
  }

  openRename() {
    const { sessions } = this;
    byId("new-title").value = sessions.title(sessions.current);
    this.dialog.showModal();
    byId("new-title").select();
  }

  take(some, name) {
    const said = some.filter(({ messages }) => messages.length);
    const titled = said.map((session) => ({ ...session, title: this.sessions.title(session) }));
    download(`${name}.json`, `${JSON.stringify(titled, null, 2)}\n`);
  }
}
