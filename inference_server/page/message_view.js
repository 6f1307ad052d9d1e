// One message on the page: what was said, its thinking, how it ended, and what can be done with it.

import { figures } from "/page/answer.js";
import { copyButton, icon, make } from "/page/dom.js";
import { whole } from "/page/format.js";
import { markdown } from "/page/markdown.js";

const SHOWN = 4000; // characters of a question; the rest on demand
const PART = "What had come by then is kept, and the model reads it as part of the conversation.";

export class MessageView {
  /** `act` has again() and edit(). */
  constructor(message, act) {
    this.message = message;
    this.act = act;
    const who = message.role === "user" ? "You" : "Answer";
    this.thinking = make("details", { className: "thinking", hidden: true });
    this.body = make("div", { className: "body" });
    this.end = make("div", { className: "end" });
    this.element = make(
      "li",
      { className: `message ${message.role}` },
      make("p", { className: "who", textContent: who }),
      this.thinking,
      this.body,
      this.end,
    );
    this.drawText();
  }

  drawText() {
    const { role, content, thinking, writing } = this.message;
    this.element.classList.toggle("streaming", Boolean(writing));
    if (role === "user") this.drawQuestion(content);
    else this.body.replaceChildren(...markdown(content));
    this.thinking.hidden = !thinking;
    if (thinking) {
      const summary = this.thinking.firstChild ?? make("summary", { textContent: "Thinking" });
      this.thinking.replaceChildren(summary, make("div", { className: "thought", textContent: thinking }));
    }
  }

  drawQuestion(content) {
    this.body.textContent = content.length > SHOWN ? `${content.slice(0, SHOWN)} …` : content;
    if (content.length <= SHOWN) return;
    const text = `Show all ${whole(content.length)} characters`;
    const all = make("button", { type: "button", className: "quiet", textContent: text });
    all.addEventListener("click", () => (this.body.textContent = content));
    this.body.append(all);
  }

  /** How it ended. `last`: nothing was said after it. `elsewhere`: another tab is writing it. */
  drawEnd({ last, elsewhere }) {
    const { role, content, cut, request_id: id, writing } = this.message;
    this.end.replaceChildren();
    if (elsewhere) this.end.append(make("p", { className: "pause", textContent: "Another tab is writing this answer." }));
    if (role === "user" || writing) return;
    if (cut) this.end.append(fault(content ? `Cut: ${cut}` : cut, content ? PART : "", id));
    const meta = make("div", { className: "meta" });
    if (content) meta.append(copyButton(() => content));
    if (last) {
      meta.append(button("again", cut && !content ? "Try again" : "Again", () => this.act.again()));
      if (cut && !content) meta.append(button("edit", "Edit the question", () => this.act.edit()));
    }
    for (const figure of cut ? [] : figures(this.message)) meta.append(make("span", { textContent: figure }));
    this.end.append(meta);
  }

  /** What the pipeline says while the answer waits for it; "" when it works. */
  pause(reason) {
    const shown = this.end.querySelector(".pause");
    if (!reason) shown?.remove();
    else if (shown) shown.textContent = reason;
    else this.end.append(make("p", { className: "pause", role: "status", textContent: reason }));
  }
}

function fault(text, part, requestId) {
  const element = make("div", { className: "fault", role: "alert" }, make("p", { textContent: text }));
  if (part) element.append(make("p", { textContent: part }));
  if (requestId) element.append(make("span", { className: "id", textContent: `request ${requestId}` }));
  return element;
}

function button(name, text, act) {
  const element = make("button", { type: "button", className: "quiet" }, icon(name), text);
  element.addEventListener("click", act);
  return element;
}
