// The little of Markdown that models write, as DOM nodes: paragraphs, headings, lists, code, emphasis.

import { copyButton, make } from "/page/dom.js";

const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*\d+[.)]\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.*)$/;
const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)/g;

/** The nodes of `text`; a code block that is not closed yet reaches to the end. */
export function markdown(text) {
  const nodes = [];
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  while (lines.length) {
    const line = lines[0];
    if (line.trim() === "") lines.shift();
    else if (line.trimStart().startsWith("```")) nodes.push(codeBlock(lines));
    else if (BULLET.test(line)) nodes.push(list("ul", BULLET, lines));
    else if (NUMBER.test(line)) nodes.push(list("ol", NUMBER, lines));
    else if (HEADING.test(line)) nodes.push(heading(lines.shift()));
    else nodes.push(paragraph(lines));
  }
  return nodes;
}

function codeBlock(lines) {
  const language = lines.shift().trim().slice(3).trim();
  const code = [];
  while (lines.length && lines[0].trim() !== "```") code.push(lines.shift());
  lines.shift();
  const text = code.join("\n");
  const head = make("div", { className: "head" }, language || "code", copyButton(() => text));
  const body = make("pre", { tabIndex: 0 }, make("code", { textContent: text }));
  return make("div", { className: "code" }, head, body);
}

function list(name, pattern, lines) {
  const element = make(name);
  if (name === "ol") element.start = Number.parseInt(lines[0], 10) || 1;
  while (lines.length && pattern.test(lines[0])) {
    element.append(make("li", {}, ...inline(lines.shift().match(pattern)[1])));
  }
  return element;
}

function heading(line) {
  return make("h3", {}, ...inline(line.match(HEADING)[1]));
}

function paragraph(lines) {
  const element = make("p");
  do {
    if (element.childNodes.length) element.append(make("br"));
    element.append(...inline(lines.shift()));
  } while (lines.length && lines[0].trim() && !startsBlock(lines[0]));
  return element;
}

function startsBlock(line) {
  const fence = line.trimStart().startsWith("```");
  return fence || [BULLET, NUMBER, HEADING].some((pattern) => pattern.test(line));
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    const [whole, code, strong] = match;
    if (code) nodes.push(make("code", { textContent: whole.slice(1, -1) }));
    else if (strong) nodes.push(make("strong", { textContent: whole.slice(2, -2) }));
    else nodes.push(make("em", { textContent: whole.slice(1, -1) }));
    from = match.index + whole.length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}
