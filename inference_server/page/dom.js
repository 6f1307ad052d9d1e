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
};

export function icon(name) {
  const svg = makeSvg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" });
  svg.append(...ICONS[name].map((d) => makeSvg("path", { d })));
  return svg;
}

/** A button that copies `text()` and says so for a moment. */
export function copyButton(text) {
  const label = make("span", { textContent: "Copy" });
  const button = make("button", { type: "button", className: "quiet" }, icon("copy"), label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      label.textContent = "Copied";
    } catch {
      label.textContent = "Copying is not allowed here";
    }
    setTimeout(() => (label.textContent = "Copy"), 1600);
  });
  return button;
}
