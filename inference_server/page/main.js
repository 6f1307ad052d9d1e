// The page put together.

import { Conversation } from "/page/conversation.js";
import { byId } from "/page/dom.js";
import { KeyDialog } from "/page/key_dialog.js";
import { ModelChoice } from "/page/model_choice.js";
import { Pipeline } from "/page/pipeline.js";
import { asCurl, asPython } from "/page/request_code.js";
import { RequestLog } from "/page/request_log.js";
import { SessionList } from "/page/session_list.js";
import { Sessions } from "/page/sessions.js";
import { Settings } from "/page/settings.js";
import { VERSION } from "/page/version.js";

const AGAIN_MS = 2000;
const NO_MODEL = "No model answers yet. Your message goes out as soon as one does.";
const FORMING = "The pipeline is forming again. The answer goes on by itself.";
const UNSEEN = "No news of the pipeline. The answer goes on by itself once it is back.";
const ELSEWHERE = "Another tab is answering in this session. Wait for it, or begin a new session.";

const question = byId("question");
let waiting = false; // a question that goes out as soon as there is a block

const keyDialog = new KeyDialog(() => connect());
const pipeline = new Pipeline((topology) => {
  conversation.pause(topology?.ready ? "" : topology ? FORMING : UNSEEN);
  if (topology?.ready) choice.complete();
});
const choice = new ModelChoice(() => pipeline.watch(choice.id));
const settings = new Settings(() => choice.model);
const sessions = new Sessions((id) => {
  if (id === sessions.current.id || !sessions.current.messages.length) conversation.show({ keepPlace: true });
  drawAll();
});
const conversation = new Conversation(sessions, {
  ask: () => ({ model: choice.id, system: settings.system, sampling: settings.sampling() }),
  changed: drawAll,
  refused: (error) => keyDialog.open(error.message),
  edit: (text) => {
    question.value = text;
    fit();
    question.focus();
  },
});
const list = new SessionList(sessions, {
  leave: leaveFor,
  changed: drawAll,
  curl: () => asCurl(present()),
  python: () => asPython(present()),
});
new RequestLog(() => choice.id);

/** What would go out now: with the text in the message box, else with the last question. */
function present() {
  const messages = conversation.context(question.value.trim());
  while (messages.at(-1)?.role === "assistant") messages.pop();
  return { model: choice.id, messages, ...settings.sampling() };
}

/** Find the blocks, choose one, watch it. Asked again until there is one. */
async function connect() {
  let reason = "No model is served here yet.";
  try {
    if (await choice.load()) return begin();
  } catch (error) {
    reason = error.message;
    if (error.status === 401) {
      pipeline.lose("This server asks for an API key.");
      return keyDialog.open(error.message);
    }
  }
  pipeline.lose(reason);
  setTimeout(connect, AGAIN_MS);
}

function begin() {
  pipeline.watch(choice.id);
  if (!waiting) return drawComposer();
  waiting = false;
  submit(question.value);
}

function drawAll() {
  list.draw();
  drawComposer();
}

/** Go to another session: an answer that is being written ends first. */
function leaveFor(change) {
  stop();
  change();
  conversation.show();
  drawAll();
  showSessions(false);
  question.focus();
}

function drawComposer() {
  const busy = conversation.busy || waiting;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("send").disabled = !question.value.trim() || conversation.elsewhere;
  byId("waiting").hidden = !waiting && !conversation.elsewhere;
  byId("waiting").textContent = waiting ? NO_MODEL : conversation.elsewhere ? ELSEWHERE : "";
}

function submit(text) {
  if (!text.trim() || conversation.busy || conversation.elsewhere) return drawComposer();
  waiting = !choice.known;
  question.value = waiting ? text : "";
  fit();
  if (!waiting) conversation.send(text.trim());
}

function stop() {
  waiting = false;
  conversation.stop();
  drawComposer();
}

/** The message box grows with its text. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  drawComposer();
}

function showSessions(shown) {
  document.body.toggleAttribute("data-sessions", shown);
  byId("open-sessions").ariaExpanded = String(shown);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(question.value);
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit(question.value);
  }
});
byId("stop").addEventListener("click", () => {
  stop();
  question.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open], details.menu[open]")) return;
  if (document.body.hasAttribute("data-sessions")) showSessions(false);
  else stop();
});
byId("new-session").addEventListener("click", () => leaveFor(() => sessions.begin()));
byId("open-sessions").addEventListener("click", () => {
  showSessions(!document.body.hasAttribute("data-sessions"));
});
byId("dim").addEventListener("click", () => showSessions(false));
byId("suggestions").addEventListener("click", (event) => {
  if (event.target.matches("button")) submit(event.target.textContent);
});
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.show;
    for (const other of document.querySelectorAll("[data-show]")) {
      other.ariaPressed = String(other === button);
    }
  });
}

byId("version").textContent = `Splitstack ${VERSION}`;
conversation.show();
drawAll();
connect();
question.focus();
