// The conversation on the page: its messages, the answer that is being written, and its end.

import { ApiError, chatCompletion } from "/page/api.js";
import { byId, copyButton, icon, make } from "/page/dom.js";
import { markdown } from "/page/markdown.js";

const NEAR_END = 80; // pixels

export class Conversation {
  /**
   * `ask()` gives {model, system, sampling}; `changed` is called when the session has changed,
   * `refused` with an ApiError 401.
   */
  constructor(sessions, { ask, changed, refused }) {
    this.sessions = sessions;
    this.ask = ask;
    this.changed = changed;
    this.refused = refused;
    this.running = null;
    this.list = byId("messages");
    this.scroller = byId("scroll");
  }

  get busy() {
    return this.running !== null;
  }

  show() {
    this.list.replaceChildren();
    for (const message of this.sessions.current.messages) {
      const element = this.add(message.role);
      this.fill(element, message.content, message.role);
      if (message.role === "assistant") this.finish(element, message);
    }
    byId("welcome").hidden = this.sessions.current.messages.length > 0;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  async send(text) {
    this.sessions.current.messages.push({ role: "user", content: text });
    this.changed();
    this.show();
    await this.answer();
  }

  /** Drop the last answer and have another one. */
  async again() {
    const { messages } = this.sessions.current;
    while (messages.at(-1)?.role === "assistant") messages.pop();
    this.show();
    await this.answer();
  }

  stop() {
    this.running?.abort();
  }

  /** What the pipeline says while an answer waits for it; "" when it works. */
  pause(reason) {
    const last = this.list.lastElementChild;
    if (!this.busy || !last) return;
    const shown = last.querySelector(".pause");
    if (!reason) shown?.remove();
    else if (shown) shown.textContent = reason;
    else last.append(make("p", { className: "pause", role: "status", textContent: reason }));
  }

  async answer() {
    const session = this.sessions.current;
    const { model, system, sampling } = this.ask();
    const before = system ? [{ role: "system", content: system }] : [];
    const messages = [...before, ...session.messages.map(({ role, content }) => ({ role, content }))];
    const element = this.add("assistant");
    element.classList.add("streaming");
    const said = new Answer();
    this.running = new AbortController();
    this.changed();
    let failure = null;
    try {
      for await (const chunk of chatCompletion({ model, messages, ...sampling }, this.running.signal)) {
        if (said.take(chunk)) this.draw(element, said);
      }
    } catch (error) {
      if (error.name === "AbortError") said.reason = "stopped";
      else failure = error;
    }
    this.running = null;
    element.classList.remove("streaming");
    element.querySelector(".pause")?.remove();
    this.fill(element, said.text, "assistant");
    if (said.text || said.reason) {
      const message = { role: "assistant", content: said.text, ...said.figures() };
      session.messages.push(message);
      this.finish(element, message);
      byId("announcement").textContent = said.text;
    }
    if (failure) this.fail(element, failure);
    this.changed();
  }

  add(role) {
    const who = make("p", { className: "who", textContent: role === "user" ? "You" : "Answer" });
    const element = make("li", { className: `message ${role}` }, who, make("div", { className: "body" }));
    this.list.append(element);
    return element;
  }

  fill(element, text, role) {
    const body = element.querySelector(".body");
    if (role === "user") body.textContent = text;
    else body.replaceChildren(...markdown(text));
  }

  /** At most once a frame, and the end stays in view for who is there. */
  draw(element, said) {
    if (said.due) return;
    said.due = true;
    requestAnimationFrame(() => {
      said.due = false;
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
      if (element.classList.contains("streaming")) this.fill(element, said.text, "assistant");
      if (atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    });
  }

  finish(element, message) {
    const meta = make("div", { className: "meta" });
    const again = make("button", { type: "button", className: "quiet" }, icon("again"), "Again");
    again.addEventListener("click", () => this.busy || this.again());
    meta.append(copyButton(() => message.content));
    if (message === this.sessions.current.messages.at(-1)) meta.append(again);
    for (const figure of figures(message)) meta.append(make("span", { textContent: figure }));
    for (const old of this.list.querySelectorAll(".message:not(:last-child) .meta .quiet + .quiet")) old.remove();
    element.append(meta);
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  fail(element, error) {
    const known = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
    const fault = make("div", { className: "fault", role: "alert", textContent: known });
    if (error.requestId) {
      fault.append(make("span", { className: "id", textContent: `request ${error.requestId}` }));
    }
    const again = make("button", { type: "button", className: "quiet" }, icon("again"), "Try again");
    again.addEventListener("click", () => this.busy || this.again());
    element.append(fault, make("div", { className: "meta" }, again));
    this.scroller.scrollTop = this.scroller.scrollHeight;
    if (error.status === 401) this.refused(error);
  }
}

/** An answer on its way: text, tokens and times. */
class Answer {
  constructor() {
    this.text = "";
    this.reason = "";
    this.usage = null;
    this.began = performance.now();
    this.first = this.last = 0;
    this.due = false;
  }

  /** True when the chunk brought text. */
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) return false;
    this.reason = choice.finish_reason ?? this.reason;
    const text = choice.delta?.content ?? "";
    if (!text) return false;
    this.last = performance.now();
    this.first ||= this.last;
    this.text += text;
    return true;
  }

  figures() {
    return {
      reason: this.reason,
      prompt_tokens: this.usage?.prompt_tokens,
      tokens: this.usage?.completion_tokens,
      first_ms: this.first ? Math.round(this.first - this.began) : undefined,
      writing_ms: Math.round(this.last - this.first),
    };
  }
}

function figures({ tokens, prompt_tokens: prompt, first_ms: first, writing_ms: writing, reason }) {
  const shown = [];
  if (tokens !== undefined) shown.push(`${tokens} tokens`);
  if (prompt !== undefined) shown.push(`${prompt} in the prompt`);
  if (tokens > 1 && writing > 0) shown.push(`${(((tokens - 1) * 1000) / writing).toFixed(1)} tokens/s`);
  if (first !== undefined) shown.push(`first after ${first} ms`);
  if (reason === "stopped") shown.push("stopped");
  if (reason === "length") shown.push("cut at the most tokens allowed");
  return shown;
}
