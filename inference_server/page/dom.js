// Making elements. Text is always text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class`, `aria-*` and `data-*` as attributes) and children. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export function makeSvg(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const ICONS = {
  copy: ["M7 7h9v9H7z", "M13 7V4H4v9h3"],
  again: ["M15.5 8A6 6 0 1 0 16 11.5", "M16 4v4h-4"],
  cross: ["m5 5 10 10M15 5 5 15"],
  edit: ["M4 16h3l9-9-3-3-9 9z"],
};

export function icon(name) {
  const svg = makeSvg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" });
  svg.append(...ICONS[name].map((d) => makeSvg("path", { d })));
  return svg;
}

/** A button that copies `text()` and says so for a moment. */
export function copyButton(text) {
  const button = make("button", { type: "button", className: "quiet" }, icon("copy"), make("span", { textContent: "Copy" }));
  return copies(button, text);
}

/** Have the button copy `text()` and say so in its label for a moment. */
export function copies(button, text) {
  const label = button.querySelector("span");
  const name = label.textContent;
  button.addEventListener("click", async () => {
    label.textContent = (await copy(text())) ? "Copied" : "Copying is not allowed here";
    setTimeout(() => (label.textContent = name), 1600);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text);
  }
}

/** Over plain HTTP a page has no clipboard but what is selected in it. */
function copySelected(text) {
  const area = make("textarea", { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

/** A file for the user to keep. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
