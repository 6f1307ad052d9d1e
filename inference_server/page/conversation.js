// The conversation on the page: its messages, and the answer that is being written.
// What has come of an answer is kept as it comes, so that neither a reload nor a crash loses it.

import { Answer } from "/page/answer.js";
import { ApiError, chatCompletion } from "/page/api.js";
import { byId } from "/page/dom.js";
import { MessageView } from "/page/message_view.js";
import { TAB } from "/page/storage.js";

const NEAR_END = 80; // pixels
const KEEP_MS = 500;
const SILENT_MS = 5000; // a tab that writes says so at least each second
const LEFT = "the page was closed or loaded anew while the answer came.";

export class Conversation {
  /**
   * `ask()` gives {model, system, sampling}; `changed` is called when the session has changed,
   * `refused` with an ApiError 401, `edit` with a question that is taken back.
   */
  constructor(sessions, { ask, changed, refused, edit }) {
    this.sessions = sessions;
    this.ask = ask;
    this.changed = changed;
    this.refused = refused;
    this.edit = edit;
    this.running = null; // {session, message, said, stop, keptAt}
    this.leaving = false;
    this.views = [];
    this.list = byId("messages");
    this.scroller = byId("scroll");
    setInterval(() => this.everySecond(), 1000);
    // The browser ends what is being loaded before it says that the page goes.
    addEventListener("beforeunload", () => (this.leaving = true));
    addEventListener("pagehide", () => this.leave());
  }

  get busy() {
    return this.running !== null;
  }

  /** Whether another tab is writing an answer in this session. */
  get elsewhere() {
    return this.sessions.current.messages.some(isWrittenElsewhere);
  }

  /** `keepPlace`: who reads further up stays there. */
  show({ keepPlace = false } = {}) {
    this.settle();
    const { messages } = this.sessions.current;
    const { scrollTop } = this.scroller;
    const atEnd = this.atEnd;
    const free = (act) => () => this.busy || this.elsewhere || act();
    const act = { again: free(() => this.again()), edit: free(() => this.takeBack()) };
    this.views = messages.map((message) => new MessageView(message, act));
    this.drawEnds();
    this.list.replaceChildren(...this.views.map((view) => view.element));
    byId("welcome").hidden = messages.length > 0;
    const stays = keepPlace && !atEnd;
    this.scroller.scrollTop = stays ? scrollTop : this.scroller.scrollHeight;
  }

  get atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  drawEnds() {
    this.views.forEach((view, place) => {
      const last = place === this.views.length - 1;
      view.drawEnd({ last, elsewhere: isWrittenElsewhere(view.message) });
    });
  }

  /** What the model reads: everything that was said, cut answers too, with what is said now. */
  context(text = "") {
    const { system } = this.ask();
    const said = this.sessions.current.messages.filter(({ content }) => content);
    const all = said.map(({ role, content }) => ({ role, content }));
    if (text) all.push({ role: "user", content: text });
    return system ? [{ role: "system", content: system }, ...all] : all;
  }

  async send(text) {
    this.sessions.add(this.sessions.current, { role: "user", content: text });
    await this.answer();
  }

  /** Drop the last answer and have another one. */
  async again() {
    this.drop("assistant");
    await this.answer();
  }

  /** Drop the last question too, back into the message box. */
  takeBack() {
    this.drop("assistant");
    const question = this.sessions.current.messages.at(-1);
    this.drop("user");
    this.sessions.save(this.sessions.current);
    if (!this.sessions.current.messages.length) this.sessions.delete(this.sessions.current.id);
    this.show();
    this.changed();
    this.edit(question?.content ?? "");
  }

  drop(role) {
    const session = this.sessions.current;
    while (session.messages.at(-1)?.role === role) this.sessions.take(session, session.messages.at(-1));
  }

  stop() {
    this.running?.stop.abort();
  }

  /** What the pipeline says while an answer waits for it, until more of it comes; "" when it works. */
  pause(reason) {
    if (this.busy) this.view(this.running.message)?.pause(reason);
  }

  async answer() {
    const session = this.sessions.current;
    const { model, sampling } = this.ask();
    const body = { model, messages: this.context(), ...sampling };
    const message = this.sessions.add(session, { role: "assistant", content: "", writing: TAB });
    const running = { session, message, said: new Answer(), stop: new AbortController(), keptAt: 0 };
    this.running = running;
    this.keep();
    this.show();
    this.changed();
    try {
      for await (const chunk of chatCompletion(body, running.stop.signal)) {
        if (running.said.take(chunk)) this.came(running);
      }
    } catch (error) {
      this.broke(running, error);
    }
    this.end(running);
  }

  /** Drawn at most once a frame, kept at most twice a second. */
  came(running) {
    Object.assign(running.message, running.said.fields());
    if (performance.now() - running.keptAt > KEEP_MS) this.keep();
    if (running.due) return;
    running.due = true;
    requestAnimationFrame(() => {
      running.due = false;
      const { atEnd } = this;
      if (running.message.writing) this.view(running.message)?.drawText();
      this.pause("");
      if (atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    });
  }

  broke({ message, said: answer }, error) {
    if (error.name === "AbortError") {
      answer.reason = "stopped";
      return;
    }
    const said = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
    message.cut = this.leaving ? LEFT : said;
    message.request_id = error.requestId || undefined;
    if (error.status === 401) this.refused(error);
  }

  end(running) {
    const { session, message, said } = running;
    Object.assign(message, said.fields(), { writing: undefined, changed: Date.now() });
    this.running = null;
    this.sessions.save(session);
    if (session === this.sessions.current) {
      this.view(message)?.drawText();
      this.drawEnds();
      this.scroller.scrollTop = this.scroller.scrollHeight;
      byId("announcement").textContent = said.text;
    }
    this.changed();
  }

  /** Keep what has come, and say that this tab still writes. */
  keep() {
    const { session, message } = this.running;
    message.changed = Date.now();
    this.running.keptAt = performance.now();
    this.sessions.save(session);
  }

  /** The page goes, with the answer that it writes; should it live on, its next word mends that. */
  leave() {
    if (!this.busy) return;
    const { session, message } = this.running;
    Object.assign(message, { writing: undefined, cut: LEFT, changed: Date.now() });
    this.sessions.save(session);
    Object.assign(message, { writing: TAB, cut: undefined });
  }

  everySecond() {
    this.leaving = false;
    if (this.busy) this.keep();
    if (this.sessions.current.messages.some((message) => message.writing)) {
      if (this.settle()) this.show({ keepPlace: true });
      this.changed();
    }
  }

  /** Answers whose writer is gone were cut; true when there was one. */
  settle() {
    const session = this.sessions.current;
    const left = session.messages.filter(
      (message) => message.writing && message !== this.running?.message && !isWrittenElsewhere(message),
    );
    for (const message of left) Object.assign(message, { writing: undefined, cut: LEFT, changed: Date.now() });
    if (left.length) this.sessions.save(session);
    return left.length > 0;
  }

  view(message) {
    return this.views.find((view) => view.message === message);
  }
}

function isWrittenElsewhere({ writing, changed }) {
  return Boolean(writing) && writing !== TAB && Date.now() - changed < SILENT_MS;
}
