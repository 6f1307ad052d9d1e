// The page put together.

import { getJson } from "/page/api.js";
import { Conversation } from "/page/conversation.js";
import { byId, icon, make } from "/page/dom.js";
import { KeyDialog } from "/page/key_dialog.js";
import { Pipeline } from "/page/pipeline.js";
import { Sessions } from "/page/sessions.js";
import { Settings } from "/page/settings.js";

const AGAIN_MS = 2000;
const CHOSEN = "splitstack.block";

const sessions = new Sessions();
const settings = new Settings();
const keyDialog = new KeyDialog(() => connect());
const block = byId("block");
const question = byId("question");
let waiting = false; // a question that goes out as soon as there is a block

const conversation = new Conversation(sessions, {
  ask: () => ({ model: block.value, system: settings.system, sampling: settings.sampling() }),
  changed: () => {
    sessions.save();
    drawSessions();
    drawComposer();
  },
  refused: (error) => keyDialog.open(error.message),
});

const pipeline = new Pipeline((topology) => {
  const waits = topology !== null && !topology.ready;
  conversation.pause(waits ? "The pipeline is forming again. The answer goes on by itself." : "");
});

/** Find the blocks, choose one, watch it. Asked again until there is one. */
async function connect() {
  let reason = "No model is served here yet.";
  try {
    const { data } = await getJson("/v1/models");
    if (data.length) return choose(data);
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

function choose(blocks) {
  const before = localStorage.getItem(CHOSEN);
  block.replaceChildren(
    ...blocks.map(({ id, names }) => {
      const title = names?.length ? names.join(", ") : id;
      return make("option", { value: id, textContent: id, title, selected: id === before });
    }),
  );
  block.disabled = false;
  pipeline.watch(block.value);
  if (!waiting) return drawComposer();
  waiting = false;
  submit(question.value);
}

function drawSessions() {
  byId("session-list").replaceChildren(
    ...sessions.all.map((session) => {
      const title = sessions.title(session);
      const open = make("button", { type: "button", className: "open", textContent: title });
      open.addEventListener("click", () => leaveFor(() => sessions.open(session.id)));
      const remove = make("button", { type: "button", className: "delete" }, icon("cross"));
      remove.ariaLabel = `Delete ${title}`;
      remove.addEventListener("click", () => leaveFor(() => sessions.delete(session.id)));
      const item = make("li", {}, open, remove);
      if (session === sessions.current) {
        item.dataset.current = "";
        open.ariaCurrent = "true";
      }
      return item;
    }),
  );
}

/** Go to another session: an answer that is being written ends first. */
function leaveFor(change) {
  stop();
  change();
  conversation.show();
  drawSessions();
  showSessions(false);
  question.focus();
}

function drawComposer() {
  const busy = conversation.busy || waiting;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("send").disabled = !question.value.trim();
  byId("waiting").hidden = !waiting;
}

function submit(text) {
  if (!text.trim() || conversation.busy) return;
  waiting = block.disabled;
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
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.hasAttribute("data-sessions")) showSessions(false);
  else stop();
});
byId("new-session").addEventListener("click", () => leaveFor(() => sessions.begin()));
byId("open-sessions").addEventListener("click", () => {
  showSessions(!document.body.hasAttribute("data-sessions"));
});
byId("chat").addEventListener("pointerdown", () => showSessions(false));
byId("suggestions").addEventListener("click", (event) => {
  if (event.target.matches("button")) submit(event.target.textContent);
});
block.addEventListener("change", () => {
  localStorage.setItem(CHOSEN, block.value);
  pipeline.watch(block.value);
});
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.show;
    for (const other of document.querySelectorAll("[data-show]")) {
      other.ariaPressed = String(other === button);
    }
  });
}

conversation.show();
drawSessions();
connect();
question.focus();
